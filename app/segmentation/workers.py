"""Bounded threads for image work, so that the event loop does none but what is small, and that where it must."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.telemetry.metrics import Metrics, Stage

_T = TypeVar("_T")


class Workers:
    """A fixed number of threads that decode and encode.

    A single one has no core to itself: handing small work over would cost more than it saves, since all of Python
    waits for one lock. There the event loop does it itself, one piece a turn, so that whatever else is due has its own.

    Args:
        count: How many.
        metrics: Told how long each piece of work takes.
    """

    def __init__(self, count: int, metrics: Metrics) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._metrics = metrics
        self._turn = asyncio.Lock() if count == 1 else None

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
        return await asyncio.get_running_loop().run_in_executor(self._threads, timed)

    async def close(self) -> None:
        """Finish what has begun."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
