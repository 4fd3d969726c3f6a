"""A long mixed load on a running service: `python -m tests.soak --minutes 30`."""
