"""Sectra's orders, from the call-back address that each names to the result stored there. Needs the extra `sectra`."""
