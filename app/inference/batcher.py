"""Batching: windows of different requests onto one session, at once when a lane is free, never waiting for more.

Runs on the event loop; only `run` leaves it, to one thread a lane. A caller that stops waiting cancels its entry,
which is then dropped before it costs inference.
"""

import asyncio
import logging
import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np

from app.errors import MODEL_GONE, STOPPING, InferenceFailed, ModelNotReady, OutOfMemory
from app.inference.cores import Cores
from app.inference.lanes import Lanes, Patience
from app.inference.result import BatchResult, WindowResult
from app.pathology.arrays import RgbBatch, RgbImage
from app.telemetry.metrics import SegmentationMetrics

_AGAIN_SECONDS = 0.003
"""After so long windows that wait ask again for the cores that other processes leave, of which nobody tells them."""
_SLOW, _SLOWEST = 3, 10
"""How many times what it should take a batch may take before it is late, and before its lane is taken to be stuck,
where that is more than the stall's seconds: others may use the machine."""

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Entry:
    """A window that waits, and the reply its caller waits for."""

    image: RgbImage
    reply: asyncio.Future[WindowResult]
    queued_at: float


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much may run at once.

    Attributes:
        lanes: Batches.
        windows: Windows in a batch; it has the largest power of two of them that is no more.
        pixels: Pixels in a batch of several windows, which bounds its memory.
        stall_seconds: How long a batch may take, or ten times what it should, before its lane is taken to be stuck.
        seconds_per_pixel: What it should take.
        first_seconds: How long the first batch of a size and shape may take before its lane is taken to be stuck.
        warm: The (N, H, W, 3) of batches that have been run already.
    """

    lanes: int
    windows: int
    pixels: int
    stall_seconds: float = math.inf
    seconds_per_pixel: float = 0.0
    first_seconds: float = 0.0
    warm: frozenset[tuple[int, ...]] = frozenset()


class Batcher:
    """Groups windows by shape and runs the group one of which has waited longest, the longest waits first.

    Args:
        run: Runs one batch; called in the lanes' threads.
        works: Whether the model runs at all; asked there once it has failed on all windows of a batch.
        limits: How much may run at once.
        metrics: Told of waits, batch sizes and run times.
        cores: What several processes share, as many as there are lanes; None where there is one process.
        stalled: Called once, when a lane is stuck or the model runs nothing any more; all who wait have been told that
            it is not ready.
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
        self._run = run
        self._works = works
        self._is_broken = self._has_stalled = False
        self._limits = limits
        self._most_pixels = limits.pixels
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
            expected = self._limits.seconds_per_pixel * sum(_pixels(entry.image) for entry in batch)
            stall = self._limits.stall_seconds
            first = 0.0 if self._known_forms.issuperset(_forms(batch)) else self._limits.first_seconds
            patience = Patience(max(stall, _SLOW * expected), max(stall, first, _SLOWEST * expected))
            self._lanes.run(partial(self._run_batch, batch), partial(self._finish, batch), patience)
        if self._groups and self._cores.are_shared and self._asking_again is None:
            loop = asyncio.get_running_loop()
            self._asking_again = loop.call_later(_AGAIN_SECONDS, self._ask_again, context=Context())

    def _ask_again(self) -> None:
        self._asking_again = None
        self._dispatch()

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
        affordable = max(1, self._most_pixels // (shape[0] * shape[1]))
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
            results = self._results([entry.image for entry in batch])
        failures = [result for result in results if isinstance(result, Exception)]
        # Of memory it may have some again; what failed otherwise may be the windows' fault, or the end of the model.
        if len(failures) == len(batch) and not isinstance(failures[0], OutOfMemory) and not self._works():
            _log.error("the model runs nothing any more", exc_info=failures[0])
            self._is_broken = True
        return results

    def _results(self, images: list[RgbImage]) -> list[WindowResult | Exception]:
        """Run the images together; where that fails, each half by itself, so that one that fails fails alone."""
        try:
            results = list(_split(_checked(self._run(_batch(images)), (len(images), *images[0].shape[:2]))))
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base; it is handed to the caller
            if len(images) == 1:
                return [error]
            half = len(images) // 2
            if isinstance(error, OutOfMemory):
                self._most_pixels = min(self._most_pixels, half * _pixels(images[0]))
                said = "no memory for %d windows at once; batches have at most %d px from now on"
                _log.warning(said, len(images), self._most_pixels)
            return [*self._results(images[:half]), *self._results(images[half:])]
        return list(results)

    def _finish(self, batch: list[_Entry], outcome: list[WindowResult | Exception] | BaseException) -> None:
        """Back on the event loop: hand out results and failures, and use the lane again."""
        if self._is_broken and self.open:
            self._stall()
        if batch not in self._running:  # all of it has been told
            return
        self._running.remove(batch)
        results = [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome
        if not any(isinstance(result, BaseException) for result in results):
            self._known_forms.add((len(batch), *batch[0].image.shape))
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, OutOfMemory):
                _fail(entry, result)
            elif isinstance(result, BaseException):
                failure = InferenceFailed("the model failed on this image")
                failure.__cause__ = result
                _fail(entry, failure)
            elif not entry.reply.done():
                entry.reply.set_result(result)
        self._dispatch()


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return how many windows a batch of at most `most` may have, ascending: 1, 2, 4 and so on.

    A GPU gets ready for each size anew, so there are few; what is left over is the next batch.
    """
    return tuple(1 << power for power in range(most.bit_length()))


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.reply.done():
        entry.reply.set_exception(error)


def _forms(batch: list[_Entry]) -> Iterator[tuple[int, ...]]:
    """Yield the (N, H, W, 3) of all that may be run of a batch: where it fails, its halves, down to single windows."""
    return ((size, *batch[0].image.shape) for size in batch_sizes(len(batch)))


def _pixels(image: RgbImage) -> int:
    height, width, _ = image.shape
    return int(height * width)


def _batch(images: list[RgbImage]) -> RgbBatch:
    """Return (N, H, W, 3); one image by itself is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


def _checked(result: BatchResult, form: tuple[int, ...]) -> BatchResult:
    """Return what the model said of windows of `form`, (N, H, W); maps of another would be put together as they are.

    Raises:
        InferenceFailed: Its maps have another.
    """
    for maps in (result.class_maps, result.confidences):
        if maps.shape != form:
            raise InferenceFailed(f"the model answered maps of {maps.shape} for windows of {form}")
    return result


def _split(result: BatchResult) -> Iterator[WindowResult]:
    for class_map, confidence, probabilities in zip(
        result.class_maps, result.confidences, result.label_probabilities, strict=True
    ):
        yield WindowResult(class_map, confidence, probabilities)
