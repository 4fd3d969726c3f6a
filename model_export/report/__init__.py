"""A run folder as pictures and as one page."""
