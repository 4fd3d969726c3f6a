"""Lanes: threads that run one batch each at a time, and the watch over them.

A thread cannot be ended from outside. One that is stuck in the runtime is therefore reported, once, and whoever started
the process ends it: the lanes' threads do not keep it from ending.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from app.inference.cores import Cores

_T = TypeVar("_T")

_TICK_SECONDS = 0.25

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Job(Generic[_T]):
    """A piece of work.

    Attributes:
        run: The work.
        done: Told on the event loop what it returned or raised.
        late_ticks: For how many it runs before it is late.
        stuck_ticks: For how many it runs before it is stuck.
        ticks: For how many it has run.
    """

    run: Callable[[], _T]
    done: Callable[[_T | BaseException], None]
    late_ticks: float
    stuck_ticks: float
    ticks: int = 0

    @property
    def late(self) -> bool:
        """Whether it has run for longer than it should."""
        return self.ticks >= self.late_ticks


@dataclass(frozen=True, slots=True)
class Patience:
    """How long something may run.

    Both are measured in the event loop's own turns: a machine that stood still, or has no time for this process, is not
    taken for a lane that is stuck.

    Attributes:
        late_seconds: Until its lane may be stuck, or the machine is slow.
        stuck_seconds: Until its lane is taken to be stuck.
    """

    late_seconds: float
    stuck_seconds: float


class Lanes(Generic[_T]):
    """A fixed number of threads. All but the threads' own part is used on the event loop that made it.

    Args:
        cores: How many, and how many of them may run now.
        stalled: Called once, when a lane has run for longer than its work may take.
    """

    def __init__(self, cores: Cores, stalled: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._cores = cores
        self._stalled = stalled
        self._queue: SimpleQueue[_Job[_T] | None] = SimpleQueue()
        self._running: set[_Job[_T]] = set()
        self._watching: asyncio.TimerHandle | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        lanes = range(cores.lanes)
        self._threads = [threading.Thread(target=self._work, name=f"lane {i}", daemon=True) for i in lanes]
        for thread in self._threads:
            thread.start()

    @property
    def free(self) -> int:
        """How many may begin something now."""
        return self._cores.free

    @property
    def late(self) -> bool:
        """Whether something has run for longer than it should, and may yet end."""
        return any(job.late for job in self._running)

    def run(self, run: Callable[[], _T], done: Callable[[_T | BaseException], None], patience: Patience) -> None:
        """Run something in a free lane.

        Args:
            run: What; called in the lane's thread.
            done: Told on the event loop what it returned or raised; never called once a lane is stuck.
            patience: How long it may run.
        """
        job = _Job(run, done, patience.late_seconds / _TICK_SECONDS, patience.stuck_seconds / _TICK_SECONDS)
        self._running.add(job)
        self._cores.begin()
        self._at_rest.clear()
        self._queue.put(job)
        self._watch()

    async def close(self) -> None:
        """Finish what runs, and wait for it, unless it is stuck; end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        await self._at_rest.wait()
        if self._watching is not None:
            self._watching.cancel()

    def give_up(self) -> None:
        """Wait for nothing that runs: the process ends, and nobody is told of it any more."""
        self._running.clear()
        self._at_rest.set()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                outcome: _T | BaseException = job.run()
            except BaseException as error:  # noqa: BLE001  whatever it is, its callers wait for it
                outcome = error
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._finish, job, outcome)
            del job, outcome  # not until the next batch

    def _finish(self, job: _Job[_T], outcome: _T | BaseException) -> None:
        if job in self._running:
            self._running.discard(job)
            self._cores.end()
            if not self._running:
                self._at_rest.set()
            job.done(outcome)

    def _watch(self) -> None:
        if self._watching is None:
            # In a context of its own: in that of the request which happens to begin the watch its id would be told.
            self._watching = self._loop.call_later(_TICK_SECONDS, self._tick, context=Context())

    def _tick(self) -> None:
        self._watching = None
        for job in self._running:
            was_late = job.late
            job.ticks += 1
            if job.late and not was_late:
                _log.warning("a batch has run for %.1f s", job.ticks * _TICK_SECONDS)
        if any(job.ticks >= job.stuck_ticks for job in self._running):
            self.give_up()
            self._stalled()
        elif self._running:
            self._watch()
