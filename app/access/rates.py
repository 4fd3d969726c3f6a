"""How many images a caller may send a minute, over all processes of the service.

The generic cell rate algorithm (ITU-T I.371): of each caller one number is kept, the moment at which all that was sent
would have come at an even pace. It may lie a minute ahead, so a minute's images may come at once.
"""

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b

from app.access.callers import Caller
from app.errors import RateExceeded
from app.shared_numbers import shared_numbers

_MINUTE_NS = 60 * 10**9
_SETS = 1024
_WAYS = 16
"""Places of a caller: one name in a set's sixteen. 1024 sets take 256 KiB, of which the system gives what is used."""

_LONGEST_HELD_SECONDS = 0.25
"""After this whoever holds the lock is gone: it is held for microseconds."""


class Rates:
    """The callers' limits, in numbers that all processes share.

    Args:
        images_per_minute: The limit of a caller that has none of its own; None for no limit.
        clock: Tells nanoseconds, the same in all processes.
    """

    def __init__(self, images_per_minute: int | None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._images_per_minute = images_per_minute
        self._clock = clock
        self._memory = shared_numbers(2 * _SETS * _WAYS)  # of each: whose, and the moment
        forks = "fork" in multiprocessing.get_all_start_methods()
        self._lock = multiprocessing.get_context("fork" if forks else None).Lock()

    def limit_of(self, caller: Caller) -> int | None:
        """Return how many images a caller may send a minute; None where there is no limit."""
        return caller.images_per_minute or self._images_per_minute

    def take(self, caller: Caller, images: int, already: int = 0) -> None:
        """Count `images` of a caller's; of the same request, `already` were counted before.

        Raises:
            RateExceeded: They are too many for now; none is counted, and what was counted already is given back.
        """
        limit = self.limit_of(caller)
        if limit is None:
            return
        each = _MINUTE_NS // limit
        with self._alone():
            now = self._clock()
            at = self._place_of(caller, now)
            moment = max(now, self._memory[at + 1])
            wait = moment + images * each - (now + _MINUTE_NS)
            self._memory[at + 1] = moment + images * each if wait <= 0 else moment - already * each
        if wait > 0:
            seconds = math.ceil(wait / 10**9)
            raise RateExceeded(
                f"{limit} images a minute are this caller's limit; in {seconds} s there is room for {already + images}",
                seconds,
            )

    def give_back(self, caller: Caller, images: int) -> None:
        """Count `images` out again, with which nothing was done."""
        limit = self.limit_of(caller)
        if limit is None or not images:
            return
        with self._alone():
            at = self._found(*_owner_and_places(caller))
            if at is not None:  # else the images' moment has passed, and another has the place
                self._memory[at + 1] -= images * (_MINUTE_NS // limit)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes out; but not for ever, where one was killed that held the lock.

        One that merely stood still for so long may then count beside another, and one of the two miscount.
        """
        self._lock.acquire(timeout=_LONGEST_HELD_SECONDS)
        try:
            yield
        finally:
            with suppress(ValueError):  # of two that no longer waited, the other has given it back
                self._lock.release()

    def _place_of(self, caller: Caller, now: int) -> int:
        """Return where the caller's numbers are; one whose moment has passed is as if it had never come."""
        owner, places = _owner_and_places(caller)
        found = self._found(owner, places)
        if found is not None:
            return found
        at = min(places, key=lambda at: self._memory[at + 1])
        if self._memory[at + 1] > now:
            wait = math.ceil((self._memory[at + 1] - now) / 10**9)
            raise RateExceeded("more callers are at their limits than can be counted", wait)
        self._memory[at], self._memory[at + 1] = owner, 0
        return at

    def _found(self, owner: int, places: range) -> int | None:
        return next((at for at in places if self._memory[at] == owner), None)


def _owner_and_places(caller: Caller) -> tuple[int, range]:
    """Return the caller's number, and the places that may be its."""
    digest = blake2b(caller.name.encode(), digest_size=16).digest()
    first = int.from_bytes(digest[8:], "big") % _SETS * _WAYS * 2
    return int.from_bytes(digest[:8], "big", signed=True), range(first, first + _WAYS * 2, 2)


class Allowance:
    """What one request takes of its caller's limit.

    Args:
        rates: The limits; None where there are none.
        caller: Who sent it.
    """

    def __init__(self, rates: Rates | None, caller: Caller) -> None:
        self._rates = rates
        self._caller = caller
        self._taken = 0

    @property
    def most(self) -> int | None:
        """The most images that can ever come at once; None where there is no limit."""
        return self._rates.limit_of(self._caller) if self._rates else None

    def take(self, images: int) -> None:
        """Count images.

        Raises:
            RateExceeded: They are too many for now; then the request's others are not counted either.
        """
        if self._rates is None:
            return
        taken, self._taken = self._taken, 0
        self._rates.take(self._caller, images, taken)
        self._taken = taken + images

    def give_back(self, images: int | None = None) -> None:
        """Count so many of them out again, or all."""
        if self._rates is not None:
            back = self._taken if images is None else images
            self._rates.give_back(self._caller, back)
            self._taken -= back
