"""Connections to clients, and what each may cost before and after the application has a say."""
