"""The door: how many images may be in the service at once, and when a refused client should come back."""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import QueueFull
from app.telemetry.metrics import Metrics

_REMEMBERED = 64
_LONGEST_SECONDS = 60


class Admission:
    """Counts images, not requests: a list of images weighs as much as its images sent one by one.

    Args:
        capacity: The most images at once.
        metrics: Shows how many there are.
    """

    def __init__(self, capacity: int, metrics: Metrics) -> None:
        self._capacity = capacity
        self._inside = 0
        self._finished: deque[float] = deque(maxlen=_REMEMBERED)
        metrics.images_in_flight.set_function(lambda: self._inside)

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold `images` places for the length of the block.

        Raises:
            QueueFull: Fewer are free; none is taken.
        """
        if self._inside + images > self._capacity:
            raise QueueFull(
                f"the queue is full ({self._inside} of {self._capacity} images); try again later",
                self._retry_after_seconds(images),
            )
        self._inside += images
        finished = images
        try:
            yield
        except QueueFull:  # the rest of a list found no place: nothing was done
            finished = 0
            raise
        finally:
            self._inside -= images
            self._finished.extend([time.monotonic()] * finished)

    def _retry_after_seconds(self, images: int) -> int:
        """Return when `images` places should be free at the rate of late: 1 to 60 s."""
        if len(self._finished) < 2:
            return 1
        span = time.monotonic() - self._finished[0]
        needed = self._inside + images - self._capacity
        return min(_LONGEST_SECONDS, max(1, math.ceil(needed * span / len(self._finished))))
