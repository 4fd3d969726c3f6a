"""Bounded threads for image work, so that it never runs on the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from app.telemetry.metrics import Metrics, Stage

_T = TypeVar("_T")


class Workers:
    """A fixed number of threads that decode and encode.

    Args:
        count: How many.
        metrics: Told how long each piece of work takes.
    """

    def __init__(self, count: int, metrics: Metrics) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._metrics = metrics

    async def run(self, stage: Stage | None, work: Callable[[], _T]) -> _T:
        """Return what `work` returns, its time observed under `stage`; a cancelled call not yet begun never will be."""

        def timed() -> _T:
            if stage is None:
                return work()
            with self._metrics.stage(stage):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, timed)

    async def close(self) -> None:
        """Finish what has begun."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
