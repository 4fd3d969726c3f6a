"""Whole slides: pyramids of levels that are read a region at a time."""
