"""The door: how many images may be in the service at once, and when a refused client should come back."""

import math
import mmap
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

from app.errors import QueueFull
from app.telemetry.metrics import Metrics

_REMEMBERED = 64
_LONGEST_SECONDS = 60
_COUNT_BYTES = 8


class Places:
    """How many images each front has inside: a number a front in memory that all share, written by that front alone.

    Args:
        fronts: How many there are. It is made before they are forked.
        index: Which of them this one is, from 0.
    """

    def __init__(self, fronts: int = 1, index: int = 0) -> None:
        self.fronts = fronts
        self._inside = memoryview(mmap.mmap(-1, fronts * _COUNT_BYTES)).cast("q")
        self._index = index

    def seen_by(self, index: int) -> "Places":
        """Return the same places for another front."""
        theirs = copy(self)
        theirs._index = index
        return theirs

    @property
    def own(self) -> int:
        """Images in this front."""
        return self._inside[self._index]

    @property
    def all(self) -> int:
        """Images in the service."""
        return sum(self._inside)

    def take(self, images: int) -> None:
        """Count `images` in; a negative number counts them out."""
        self._inside[self._index] += images


class Admission:
    """Counts images, not requests: a list of images weighs as much as its images sent one by one.

    Args:
        capacity: The most images at once, in all fronts.
        metrics: Shows how many there are in this one.
        places: Where they are counted.
    """

    def __init__(self, capacity: int, metrics: Metrics, places: Places | None = None) -> None:
        self._capacity = capacity
        self._places = places or Places()
        self._finished: deque[float] = deque(maxlen=_REMEMBERED)
        metrics.images_in_flight.set_function(lambda: self._places.own)

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold `images` places for the length of the block.

        Raises:
            QueueFull: Fewer are free; none is taken.
        """
        self._places.take(images)  # before looking: of two fronts that find one place, both may go, none stays too many
        missing = self._places.all - self._capacity
        if missing > 0:
            self._places.take(-images)
            raise QueueFull(
                f"the queue is full ({self._capacity + missing - images} of {self._capacity} images); try again later",
                self._retry_after_seconds(missing),
            )
        finished = images
        try:
            yield
        except QueueFull:  # the rest of a list found no place: nothing was done
            finished = 0
            raise
        finally:
            self._places.take(-images)
            self._finished.extend([time.monotonic()] * finished)

    def _retry_after_seconds(self, missing: int) -> int:
        """Return when `missing` places more should be free at the rate of late: 1 to 60 s. Each front has its share."""
        if len(self._finished) < 2:
            return 1
        span = time.monotonic() - self._finished[0]
        finished = len(self._finished) * self._places.fronts
        return min(_LONGEST_SECONDS, max(1, math.ceil(missing * span / finished)))
