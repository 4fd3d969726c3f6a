"""Bounded threads for image work, so that the event loop does none but what is small, and that where it must."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import get_ident
from typing import Any, TypeVar

from app.telemetry.metrics import SegmentationMetrics, Stage

_T = TypeVar("_T")


class Workers:
    """A fixed number of threads that decode and encode.

    A single one has no core to itself: handing small work over would cost more than it saves, since all of Python
    waits for one lock. There the event loop does it itself, one piece a turn, so that whatever else is due has its own.

    Args:
        count: How many.
        metrics: Told how long each piece of work takes.
        is_left: Whether a caller that is cancelled leaves what has begun to itself, as it should where that waits for
            an archive. Else it stays until the end: what it holds for the work is in use until then.
    """

    def __init__(self, count: int, metrics: SegmentationMetrics, *, is_left: bool = False) -> None:
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._begun: dict[int, float] = {}
        self._metrics = metrics
        self._turn = asyncio.Lock() if count == 1 else None
        self._is_left = is_left

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
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            ended.add_done_callback(_note)
            if not begun.cancel() and not self._is_left:
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
        """Finish what has begun."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)


def _note(ended: asyncio.Future[Any]) -> None:
    """Take what became of work that nobody waits for: asyncio would log a failure, and what it names."""
    if not ended.cancelled():
        ended.exception()


async def _last(ended: asyncio.Future[Any]) -> None:
    """Wait for what cannot be ended, however often this task is cancelled meanwhile: once is being seen to already."""
    while not ended.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait((ended,))
