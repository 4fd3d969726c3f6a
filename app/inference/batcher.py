"""Batching: windows of different requests onto one session, at once when a lane is idle, never waiting for more.

Runs on the event loop; only `run` leaves it, to one thread a lane. A caller that stops waiting cancels its entry,
which is then dropped before it costs inference.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.errors import InferenceFailed, ModelNotReady
from app.inference.result import BatchResult, WindowResult
from app.pathology.arrays import RgbBatch, RgbImage
from app.telemetry.metrics import Metrics


@dataclass(slots=True)
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
        windows: Windows in a batch.
        pixels: Pixels in a batch of several windows, which bounds its memory.
    """

    lanes: int
    windows: int
    pixels: int


class Batcher:
    """Groups windows by shape and runs the group whose first has waited longest.

    Args:
        run: Runs one batch; called in the lanes' threads.
        limits: How much may run at once.
        metrics: Told of waits, batch sizes and run times.
        turns: Held by a lane while it runs a batch; processes with lanes of their own share the cores by it.
    """

    def __init__(
        self,
        run: Callable[[RgbBatch], BatchResult],
        limits: BatchLimits,
        metrics: Metrics,
        turns: AbstractContextManager[object] | None = None,
    ) -> None:
        self._turns = turns or nullcontext()
        self._run = run
        self._limits = limits
        self._idle = limits.lanes
        self._metrics = metrics
        self._groups: dict[tuple[int, ...], deque[_Entry]] = {}
        self._threads = ThreadPoolExecutor(limits.lanes, thread_name_prefix="lane")
        self._closed = False
        metrics.queue_depth.set_function(lambda: sum(len(group) for group in self._groups.values()))

    async def submit(self, image: RgbImage) -> WindowResult:
        """Return what the model says of (H, W, 3) `image`, whose sides are multiples of the model's stride.

        Raises:
            InferenceFailed: The runtime failed on the batch.
            ModelNotReady: The batcher is closed.
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
            ModelNotReady: The batcher is closed.
        """
        if self._closed:
            raise ModelNotReady("the service is stopping")
        entry = _Entry(image, asyncio.get_running_loop().create_future(), queued_at)
        self._groups.setdefault(image.shape, deque()).append(entry)
        self._dispatch()
        return entry.reply

    async def close(self) -> None:
        """Refuse new windows, fail the waiting ones and wait for the running ones."""
        self._closed = True
        for entry in (entry for group in self._groups.values() for entry in group):
            if not entry.reply.done():
                entry.reply.set_exception(ModelNotReady("the service is stopping"))
        self._groups.clear()
        await asyncio.to_thread(self._threads.shutdown)

    def _dispatch(self) -> None:
        while self._idle and (batch := self._next_batch()):
            self._idle -= 1
            running = asyncio.get_running_loop().run_in_executor(self._threads, self._run_batch, batch)
            running.add_done_callback(partial(self._finish, batch))

    def _next_batch(self) -> list[_Entry]:
        """Take the next batch off the queue; empty when nothing waits."""
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
        share = -(-len(group) // self._idle)  # leave the other idle lanes theirs
        affordable = max(1, self._limits.pixels // (shape[0] * shape[1]))
        batch = [group.popleft() for _ in range(min(len(group), share, affordable, self._limits.windows))]
        if not group:
            del self._groups[shape]
        return batch

    def _run_batch(self, batch: list[_Entry]) -> list[WindowResult | Exception]:
        """In a lane's thread: wait times, then a result or a failure for each entry."""
        with self._turns:
            return self._run_now(batch)

    def _run_now(self, batch: list[_Entry]) -> list[WindowResult | Exception]:
        start = time.perf_counter()
        for entry in batch:
            self._metrics.stage_duration.labels("queue").observe(start - entry.queued_at)
        self._metrics.batch_size.observe(len(batch))
        with self._metrics.stage("infer"):
            return self._results([entry.image for entry in batch])

    def _results(self, images: list[RgbImage]) -> list[WindowResult | Exception]:
        """Run the images together; where that fails, one by one, so that each answers for itself alone."""
        try:
            results = list(_split(self._run(_batch(images))))
            if len(results) != len(images):
                raise InferenceFailed(f"the model answered {len(results)} of {len(images)} windows")
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base; it is handed to the caller
            if len(images) == 1:
                return [error]
            return [self._results([image])[0] for image in images]
        return list(results)

    def _finish(self, batch: list[_Entry], running: asyncio.Future[list[WindowResult | Exception]]) -> None:
        """Back on the event loop: hand out results and failures, and use the lane again."""
        self._idle += 1
        for entry, result in zip(batch, running.result(), strict=True):
            if entry.reply.done():
                continue
            if isinstance(result, WindowResult):
                entry.reply.set_result(result)
            else:
                failure = InferenceFailed("the model failed on this image")
                failure.__cause__ = result
                entry.reply.set_exception(failure)
        self._dispatch()


def _batch(images: list[RgbImage]) -> RgbBatch:
    """Return (N, H, W, 3); one image by itself is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


def _split(result: BatchResult) -> Iterator[WindowResult]:
    for class_map, confidence, probabilities in zip(
        result.class_maps, result.confidences, result.label_probabilities, strict=True
    ):
        yield WindowResult(class_map, confidence, probabilities)
