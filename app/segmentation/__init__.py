"""Use cases: what a user asks for, told in terms of the floors below."""
