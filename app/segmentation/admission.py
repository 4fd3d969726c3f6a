"""The door: how many images and pixels may be in the service at once, and when a refused client should come back."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy

from app.errors import ComeBackLater, QueueFull
from app.shared_numbers import shared_numbers
from app.telemetry.metrics import Metrics

_REMEMBERED = 64
_LONGEST_SECONDS = 60


class Places:
    """How much each front has inside: numbers in memory that all share, each written by one front alone.

    Args:
        fronts: How many serve at a time.
        groups: How many sets of fronts there may be at once, of which all but one are about to leave.
    """

    def __init__(self, fronts: int = 1, groups: int = 1) -> None:
        self.fronts = fronts
        self._groups = groups
        cells = shared_numbers(2 * fronts * groups)
        self._images, self._pixels = cells[: fronts * groups], cells[fronts * groups :]
        self._index = 0

    def free_group(self, taken: set[int]) -> int:
        """Return a group of none of which is left, counted from 0."""
        return next(group for group in range(self._groups) if group not in taken)

    def clear(self, group: int) -> None:
        """Note that none of a group is left: one that was killed could not count out its own."""
        for index in range(group * self.fronts, (group + 1) * self.fronts):
            self._images[index] = self._pixels[index] = 0

    def seen_by(self, index: int, group: int = 0) -> "Places":
        """Return the same places for another front."""
        theirs = copy(self)
        theirs._index = group * self.fronts + index
        return theirs

    @property
    def own_images(self) -> int:
        """Images in this front."""
        return self._images[self._index]

    @property
    def own_pixels(self) -> int:
        """Pixels of the images in this front, as far as their sizes are known."""
        return self._pixels[self._index]

    @property
    def images(self) -> int:
        """Images in the service."""
        return sum(self._images)

    @property
    def pixels(self) -> int:
        """Pixels of the images in the service, as far as their sizes are known."""
        return sum(self._pixels)

    def take(self, *, images: int = 0, pixels: int = 0) -> None:
        """Count these in; negative numbers count them out."""
        self._images[self._index] += images
        self._pixels[self._index] += pixels


class Held:
    """The places that one request holds.

    Args:
        images: How many it holds at first.
        take_more: Takes so many more, or raises QueueFull.

    Attributes:
        images: How many it holds.
        undone: How many of its images were refused for want of places for their pixels. They do not count as work done
            when `Retry-After` is estimated.
    """

    def __init__(self, images: int, take_more: Callable[[int], None]) -> None:
        self.images = images
        self.undone = 0
        self._take_more = take_more

    def grow(self, images: int) -> None:
        """Hold so many more places. A request that is inside is not asked to leave the last place to other fronts.

        Raises:
            QueueFull: Fewer are free; none is taken.
        """
        self._take_more(images)
        self.images += images


class Admission:
    """Counts images, not requests: a list of images weighs as much as its images sent one by one. And their pixels.

    Args:
        images: The most at once, in all fronts.
        pixels: Likewise; an image that has more by itself takes all of them.
        metrics: Shows how many images and pixels there are in this front.
        places: Where they are counted.
    """

    def __init__(self, images: int, pixels: int, metrics: Metrics, places: Places | None = None) -> None:
        self._most_images = images
        self._most_pixels = pixels
        self._places = places or Places()
        self._work = _WorkingTime()
        self._images_done = _Rate(self._places.fronts, self._work)
        self._pixels_done = _Rate(self._places.fronts, self._work)
        metrics.images_in_flight.set_function(lambda: self._places.own_images)
        metrics.pixels_in_flight.set_function(lambda: self._places.own_pixels)

    @contextmanager
    def admit(self, images: int) -> Iterator[Held]:
        """Hold places for a request's images, which may `grow`, for the length of the block.

        Raises:
            QueueFull: Fewer are free for this front; none is taken.
        """
        self._take(images, self._most_to_begin())
        held = Held(images, self._take_more)
        try:
            with self._work:
                yield held
        except ComeBackLater:  # the rest of a list found no place, or was too much: nothing was done
            held.undone = held.images
            raise
        finally:
            self._places.take(images=-held.images)
            self._images_done.note(held.images - held.undone)

    def expect_place(self) -> None:
        """Go on where one more image would find a place in this moment; none is taken.

        Raises:
            QueueFull: It would find none.
        """
        inside = self._places.images
        most = self._most_to_begin()
        if inside >= most:
            raise self._full_of_images(inside, 1, most)

    @contextmanager
    def weigh(self, pixels: int) -> Iterator[None]:
        """Hold an admitted image's pixels for the length of the block.

        Raises:
            QueueFull: Fewer are free; none is taken.
        """
        share = min(pixels, self._most_pixels)
        self._places.take(pixels=share)
        inside = self._places.pixels
        if inside > self._most_pixels:
            self._places.take(pixels=-share)
            raise QueueFull(
                f"there is no room now: {inside - share} of {self._most_pixels} pixels are taken, and this needs"
                f" {share} more; try again later",
                self._pixels_done.seconds_for(inside - self._most_pixels),
            )
        try:
            yield
        finally:
            self._places.take(pixels=-share)
            self._pixels_done.note(share)

    def _take_more(self, images: int) -> None:
        self._take(images, self._most_images)

    def _take(self, images: int, most: int) -> None:
        """Take so many places, where that makes no more than `most` in the service.

        Raises:
            QueueFull: It would; none is taken.
        """
        if not images:  # what is held already must not be refused for what others ask for in this moment
            return
        # Count first, then look: two fronts racing for one place may both be refused, but never both admitted.
        self._places.take(images=images)
        inside = self._places.images
        if inside > most:
            self._places.take(images=-images)
            raise self._full_of_images(inside - images, images, most)

    def _most_to_begin(self) -> int:
        """Return how many images there may be once this front has taken another request's.

        One that has more than its share leaves the last place to the others. All answer at one pace, and a place goes
        to whoever asks first: left to chance, one front would come to have all, and its callers to wait longest.
        """
        has_more = self._places.own_images * self._places.fronts > self._most_images
        return self._most_images - has_more

    def _full_of_images(self, inside: int, more: int, most: int) -> QueueFull:
        kept = " one is kept for others," if inside <= most < self._most_images else ""
        return QueueFull(
            f"there is no room now: {inside} of {self._most_images} places for images are taken,{kept} and this needs"
            f" {more} more; try again later",
            self._images_done.seconds_for(inside + more - self._most_images),
        )


class _WorkingTime:
    """Seconds in which this front had anything to do: it is entered for each request that holds places."""

    def __init__(self) -> None:
        self._entered = 0
        self._since = self._ended = 0.0

    def __enter__(self) -> None:
        if not self._entered:
            self._since = time.monotonic()
        self._entered += 1

    def __exit__(self, *_: object) -> None:
        if self._entered == 1:
            self._ended = self.seconds
        self._entered -= 1

    @property
    def seconds(self) -> float:
        """So far."""
        return self._ended + (time.monotonic() - self._since if self._entered else 0.0)


class _Rate:
    """How fast something is done while there is anything to do, from the last times that it was.

    Args:
        fronts: How many do it; each its share.
        work: The time that counts.
    """

    def __init__(self, fronts: int, work: _WorkingTime) -> None:
        self._fronts = fronts
        self._work = work
        self._done: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def note(self, amount: int) -> None:
        """Note that so much was done just now."""
        if amount:
            self._done.append((self._work.seconds, amount))

    def seconds_for(self, amount: int) -> int:
        """Return in how many seconds so much more will be done, at this rate: 1 to 60."""
        if len(self._done) < 2:
            return 1
        (since, _), *later = self._done  # the oldest was done before the time that counts began
        seconds = self._work.seconds - since
        done = sum(amount for _, amount in later) * self._fronts
        return min(_LONGEST_SECONDS, max(1, math.ceil(amount * seconds / done)))
