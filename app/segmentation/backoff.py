"""Waits between tries: longer from one failure to the next."""

import random

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 300.0


class Backoff:
    """Waits that double from one failure to the next, each shortened at random so that watchers do not keep step."""

    def __init__(self) -> None:
        self._longest = _FIRST_WAIT_SECONDS

    def next_seconds(self) -> float:
        """Return how long to wait after one more failure: from half of the longest wait up to all of it."""
        wait = random.uniform(self._longest / 2, self._longest)  # noqa: S311  nobody gains by foreseeing it
        self._longest = min(2 * self._longest, _LONGEST_WAIT_SECONDS)
        return wait

    def reset(self) -> None:
        """Begin anew: something went well."""
        self._longest = _FIRST_WAIT_SECONDS
