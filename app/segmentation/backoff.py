"""Waits between tries: longer from one failure to the next."""

import random

_FIRST_WAIT_SECONDS = 1.0


class Backoff:
    """Waits that double from one failure to the next, each shortened at random so that those who wait do not keep step.

    Args:
        most_seconds: No wait is longer.
    """

    def __init__(self, most_seconds: float = 300.0) -> None:
        self._most = most_seconds
        self._longest = _FIRST_WAIT_SECONDS

    def next_seconds(self) -> float:
        """Return how long to wait after one more failure: from half of the longest wait up to all of it."""
        wait = random.uniform(self._longest / 2, self._longest)  # noqa: S311  nobody gains by foreseeing it
        self._longest = min(2 * self._longest, self._most)
        return wait

    def reset(self) -> None:
        """Begin anew: something went well."""
        self._longest = _FIRST_WAIT_SECONDS
