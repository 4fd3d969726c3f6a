"""Batching: windows of different requests onto one session, at once when a lane is free, never waiting for more.

Runs on the event loop; only `run` leaves it, to one thread a lane. A caller that stops waiting cancels its entry,
which is then dropped before it costs inference.
"""

import asyncio
import logging
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

from app.errors import MODEL_GONE, STOPPING, InferenceFailed, ModelNotReady, OutOfMemory
from app.inference.batch import BatchLimits, BatchRunner, batch_forms, batch_sizes
from app.inference.cores import Cores
from app.inference.lanes import Lanes, Patience
from app.inference.result import BatchResult, WindowResult
from app.pathology.arrays import RgbBatch, RgbImage
from app.telemetry.logging import request_id
from app.telemetry.metrics import SegmentationMetrics

_AGAIN_SECONDS = 0.003
"""How often windows that wait ask for cores that other processes have left: nobody tells them."""
_SLOW, _SLOWEST = 3, 10
"""A batch that takes `_SLOW` times as long as it should is late; at `_SLOWEST` times its lane counts as stuck. Neither
happens before `stall_seconds` are over: others may use the machine."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Entry:
    """A window that waits, the reply its caller waits for, and on whose behalf what becomes of it is logged."""

    image: RgbImage
    reply: asyncio.Future[WindowResult]
    queued_at: float
    context: Context = field(default_factory=copy_context)


class Batcher:
    """Groups windows by shape and runs the group one of which has waited longest, the longest waits first.

    Args:
        run: Runs one batch; called in the lanes' threads.
        limits: How much may run at once.
        metrics: Told of waits, batch sizes and run times.
        cores: What several processes share, as many as there are lanes; None where there is one process.
        stalled: Called once, when a lane is stuck or the model runs nothing any more; all who wait have been told that
            it is not ready.
        works: Whether the model runs at all; asked in a lane's thread once it has failed on all windows of a batch.
    """

    def __init__(
        self,
        run: Callable[[RgbBatch], BatchResult],
        limits: BatchLimits,
        metrics: SegmentationMetrics,
        cores: Cores | None = None,
        stalled: Callable[[], None] = lambda: None,
        works: Callable[[], bool] = lambda: True,
    ) -> None:
        self._runner = BatchRunner(run, works, limits.pixels)
        self._has_stalled = False
        self._limits = limits
        self._known_forms: set[tuple[int, ...]] = set(limits.warm)
        self._metrics = metrics
        self._groups: dict[tuple[int, ...], deque[_Entry]] = {}
        self._cores = cores or Cores(limits.lanes)
        self._lanes: Lanes[list[WindowResult | Exception]] = Lanes(self._cores, self._stall)
        self._asking_again: asyncio.TimerHandle | None = None
        self._running: list[list[_Entry]] = []
        self._stalled = stalled
        self._closed: str | None = None
        metrics.queue_depth.set_function(lambda: sum(len(group) for group in self._groups.values()))

    @property
    def open(self) -> bool:
        """Whether windows are taken: not once it is closed, a lane is stuck, or the model runs nothing any more."""
        return self._closed is None

    @property
    def late(self) -> bool:
        """Whether a batch has run for longer than it should."""
        return self._lanes.late

    async def submit(self, image: RgbImage) -> WindowResult:
        """Return what the model says of (H, W, 3) `image`, whose sides are multiples of the model's stride.

        Raises:
            InferenceFailed: The runtime failed on the window.
            OutOfMemory: There is no memory to run it.
            ModelNotReady: It is not open.
        """
        reply = self.enqueue(image, time.perf_counter())
        try:
            return await reply
        finally:
            del reply  # one that failed holds its error, whose traceback holds this frame and the image in it

    def enqueue(self, image: RgbImage, queued_at: float) -> asyncio.Future[WindowResult]:
        """Return what the model will say of `image`; to cancel it takes it off the queue.

        Args:
            image: As `submit` takes it; it must stay as it is until the reply is done.
            queued_at: Since when it waits, by `time.perf_counter`; the longest wait has its turn first.

        Raises:
            ModelNotReady: It is not open.
        """
        if self._closed is not None:
            raise ModelNotReady(self._closed)
        entry = _Entry(image, asyncio.get_running_loop().create_future(), queued_at)
        insort(self._groups.setdefault(image.shape, deque()), entry, key=attrgetter("queued_at"))
        self._dispatch()
        return entry.reply

    async def close(self) -> None:
        """Refuse new windows, fail the waiting ones and wait for the running ones."""
        self._refuse(STOPPING)
        await self._lanes.close()

    def _refuse(self, reason: str) -> None:
        """Take no window from now on, and fail those that wait."""
        self._closed = self._closed or reason
        for entry in (entry for group in self._groups.values() for entry in group):
            _fail(entry, ModelNotReady(reason))
        self._groups.clear()

    def _stall(self) -> None:
        """A lane is stuck, or the model broken: nobody is left waiting for it. Once is enough, if both come to pass."""
        if self._has_stalled:
            return
        self._has_stalled = True
        self._lanes.give_up()
        self._refuse(MODEL_GONE)
        for entry in (entry for batch in self._running for entry in batch):
            _fail(entry, ModelNotReady(MODEL_GONE))
        self._running.clear()
        self._stalled()

    def _dispatch(self) -> None:
        # What is free is asked once a batch: other processes change it at any moment.
        while (free := self._lanes.free) and (batch := self._next_batch(free)):
            self._running.append(batch)
            self._lanes.run(partial(self._run_batch, batch), partial(self._finish, batch), self._patience(batch))
        if self._groups and self._cores.are_shared and self._asking_again is None:
            loop = asyncio.get_running_loop()
            self._asking_again = loop.call_later(_AGAIN_SECONDS, self._ask_again, context=Context())

    def _ask_again(self) -> None:
        self._asking_again = None
        self._dispatch()

    def _patience(self, batch: list[_Entry]) -> Patience:
        shape, stall = batch[0].image.shape, self._limits.stall_seconds
        expected = self._limits.seconds_per_pixel * len(batch) * shape[0] * shape[1]
        is_known = self._known_forms.issuperset(batch_forms(len(batch), shape))
        first = 0.0 if is_known else self._limits.first_seconds
        return Patience(max(stall, _SLOW * expected), max(stall, first, _SLOWEST * expected))

    def _next_batch(self, free: int) -> list[_Entry]:
        """Take the next batch off the queue, for one of `free` lanes; empty when nothing waits."""
        for shape in list(self._groups):
            waiting = deque(entry for entry in self._groups[shape] if not entry.reply.done())  # the rest gave up
            if waiting:
                self._groups[shape] = waiting
            else:
                del self._groups[shape]
        if not self._groups:
            return []
        shape = min(self._groups, key=lambda shape: self._groups[shape][0].queued_at)
        group = self._groups[shape]
        share = -(-len(group) // free)  # leave the other free lanes theirs
        affordable = max(1, self._runner.most_pixels // (shape[0] * shape[1]))
        most = min(len(group), share, affordable, self._limits.windows)
        batch = [group.popleft() for _ in range(batch_sizes(most)[-1])]
        if not group:
            del self._groups[shape]
        return batch

    def _run_batch(self, batch: list[_Entry]) -> list[WindowResult | Exception]:
        """In a lane's thread: wait times, then a result or a failure for each entry."""
        start = time.perf_counter()
        for entry in batch:
            self._metrics.stage_duration.labels("queue").observe(start - entry.queued_at)
        self._metrics.batch_size.observe(len(batch))
        with self._metrics.stage("infer"):
            return self._runner.results([entry.image for entry in batch])

    def _finish(self, batch: list[_Entry], outcome: list[WindowResult | Exception] | BaseException) -> None:
        """Back on the event loop: hand out results and failures, and use the lane again."""
        if self._runner.is_broken and self.open:
            self._stall()
        if batch not in self._running:  # all of it has been told
            return
        self._running.remove(batch)
        results = [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome
        if not any(isinstance(result, BaseException) for result in results):
            self._known_forms.add((len(batch), *batch[0].image.shape))
        told: set[tuple[str | None, str]] = set()
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, OutOfMemory):
                _fail(entry, result)
            elif isinstance(result, BaseException):
                failure = InferenceFailed("the model failed on this image")
                failure.__cause__ = result
                _fail(entry, failure)
                known = entry.context.get(request_id), repr(result)
                if known not in told:  # once for a request whose windows fail alike
                    entry.context.run(_log.error, "the model failed on a window", exc_info=result)
                told.add(known)
            elif not entry.reply.done():
                entry.reply.set_result(result)
        self._dispatch()


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.reply.done():
        entry.reply.set_exception(error)
