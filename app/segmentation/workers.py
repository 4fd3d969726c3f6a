"""Bounded threads for image work, so that the event loop does none but what is small, and that where it must."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event, get_ident
from typing import Any, TypeVar

from app.errors import StartupError
from app.telemetry.metrics import SegmentationMetrics, Stage

_T = TypeVar("_T")


class Workers:
    """A fixed number of threads that decode and encode.

    All start at once, so that no piece of work ever waits for a thread that cannot be had. A process that forks makes
    its workers afterwards: a fork has none of the threads.

    A single one has no core to itself: handing small work over would cost more than it saves, since all of Python
    waits for one lock. There the event loop does it itself, one piece a turn, so that whatever else is due has its own.

    Args:
        count: How many.
        metrics: Told how long each piece of work takes.
        abandons_when_cancelled: What a caller does that is cancelled while its work runs. True: it returns at once, and
            the work goes on in its thread, as is right for work that waits for an archive. False: it returns when the
            work has ended, because memory and places that it holds for the work are in use until then.

    Raises:
        StartupError: The system gives the process fewer threads; none is left.
    """

    def __init__(self, count: int, metrics: SegmentationMetrics, *, abandons_when_cancelled: bool = False) -> None:
        self._count = count
        self._threads = _started(count)
        self._unfinished: set[asyncio.Future[Any]] = set()
        self._begun: dict[int, float] = {}
        self._metrics = metrics
        self._turn = asyncio.Lock() if count == 1 else None
        self._abandons_when_cancelled = abandons_when_cancelled

    @property
    def busy_seconds(self) -> float:
        """For how long all have been at what each does now: 0 where one is free."""
        begun = list(self._begun.values())
        return max(0.0, time.monotonic() - max(begun)) if len(begun) == self._count else 0.0

    async def run(self, stage: Stage | None, work: Callable[[], _T], *, is_small: bool = False) -> _T:
        """Return what `work` returns; a cancelled call not yet begun never will be.

        Args:
            stage: Under which its time is observed, if at all.
            work: What to do.
            is_small: Whether it takes a few milliseconds at most, whatever it is given.
        """

        def timed() -> _T:
            if stage is None:
                return work()
            with self._metrics.stage(stage):
                return work()

        if is_small and self._turn is not None:
            async with self._turn:
                done = timed()
                await asyncio.sleep(0)
                return done
        begun = self._threads.submit(self._in_thread, timed)
        ended = asyncio.wrap_future(begun)
        self._unfinished.add(ended)
        ended.add_done_callback(self._unfinished.discard)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            ended.add_done_callback(_note)
            if not begun.cancel() and not self._abandons_when_cancelled:
                await _last(ended)
            raise

    def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Work, and keep since when this thread does; see `busy_seconds`."""
        self._begun[get_ident()] = time.monotonic()
        try:
            return work()
        finally:
            self._begun[get_ident()] = math.inf  # and not taken away: another thread may be looking

    async def close(self) -> None:
        """Finish what has begun, drop what has not, and end the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._unfinished:
            await asyncio.wait(self._unfinished)


def _started(count: int) -> ThreadPoolExecutor:
    """Return a pool whose threads all run: each is kept at a piece of work until the last has started.

    Raises:
        StartupError: One cannot be started; those that were end.
    """
    threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
    all_started = Event()
    try:
        for _ in range(count):
            threads.submit(all_started.wait)
    except RuntimeError as error:
        all_started.set()
        threads.shutdown(cancel_futures=True)
        raise StartupError(
            f"a thread for images does not start: {error}; raise the limit on processes (pids), or use fewer cores"
        ) from error
    all_started.set()
    return threads


def _note(ended: asyncio.Future[Any]) -> None:
    """Take what became of work that nobody waits for: asyncio would log a failure, and what it names."""
    if not ended.cancelled():
        ended.exception()


async def _last(ended: asyncio.Future[Any]) -> None:
    """Wait for what cannot be ended, however often this task is cancelled meanwhile: once is being seen to already."""
    while not ended.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((ended,))
