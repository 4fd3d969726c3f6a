"""The model as a front process has it: a Segmenter whose windows are answered by the engine process."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from app.errors import STOPPING, InferenceFailed, ModelNotReady, OutOfMemory
from app.inference.exchange import Asked, Exchange, Outcome, Verb
from app.inference.result import NO_MEMORY, WindowResult
from app.inference.segmenter import Segmenter
from app.pathology.arrays import RgbImage
from app.pathology.manifest import ModelManifest
from app.telemetry.metrics import SegmentationMetrics


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the engine says of itself once its model is warm.

    Attributes:
        manifest: The contract of its model.
        device: Where it runs.
        provider: The runtime's name of that.
        window_concurrency: How many windows of one patch are worth submitting at once.
    """

    manifest: ModelManifest
    device: str
    provider: str
    window_concurrency: int

    @classmethod
    def of(cls, segmenter: Segmenter) -> Self:
        """Return those of a model in this process."""
        return cls(segmenter.manifest, segmenter.device, segmenter.provider, segmenter.window_concurrency)


class RemoteSegmenter:
    """Sends windows to the engine. Its methods are called on the event loop.

    Args:
        facts: What the engine said.
        exchange: This front's slots; `ask` and `answered` are this side of it.
    """

    def __init__(self, facts: EngineFacts, exchange: Exchange) -> None:
        self.manifest = facts.manifest
        self.device = facts.device
        self.provider = facts.provider
        self.window_concurrency = facts.window_concurrency
        self._exchange = exchange
        self._free: asyncio.LifoQueue[int] = asyncio.LifoQueue()  # the same few slots again: their memory is warm
        self._replies: dict[int, tuple[tuple[int, int], asyncio.Future[WindowResult]]] = {}
        self._waiting = 0
        self._open = False

    @property
    def ready(self) -> bool:
        """Whether the engine is there."""
        return self._open

    @property
    def late(self) -> bool:
        """Whether the engine says that a batch has run for longer than it should, whoever's windows are in it."""
        return self._exchange.late

    async def start(
        self,
        metrics: SegmentationMetrics,
        stalled: Callable[[], None] = lambda: None,  # noqa: ARG002  the engine tells it
    ) -> None:
        """Begin to listen to the engine, which tells the supervisor itself when it is stuck, and its model and device.

        Args:
            metrics: Shows how many windows wait for a slot.
            stalled: Never called.
        """
        metrics.queue_depth.set_function(lambda: self._waiting)
        for slot in reversed(range(self._exchange.slots)):
            self._free.put_nowait(slot)
        asyncio.get_running_loop().add_reader(self._exchange.front_end.fileno(), self._read)
        self._open = True

    async def segment(self, window: RgbImage) -> WindowResult:
        """Return what the model says of a window; see `Segmenter.segment`."""
        queued_at = time.perf_counter()
        self._waiting += 1
        try:
            slot = await self._free.get()
        finally:
            self._waiting -= 1
        if not self._open:
            self._free.put_nowait(slot)
            raise ModelNotReady(STOPPING)
        shape = (window.shape[0], window.shape[1])
        self._exchange.image(slot, shape)[...] = window
        reply: asyncio.Future[WindowResult] = asyncio.get_running_loop().create_future()
        self._replies[slot] = shape, reply
        self._ask(Asked(Verb.SEGMENT, slot, shape, queued_at))
        try:
            return await reply
        except asyncio.CancelledError:
            if slot in self._replies and self._replies[slot][1] is reply:  # and not of who has the slot by now
                self._ask(Asked(Verb.WITHDRAW, slot, shape, queued_at))
            raise

    def give_back(self) -> None:
        """Do nothing: the memory is the engine's."""

    async def close(self) -> None:
        """Stop listening; whoever still waits is told that the service stops."""
        if self._open:
            self._stop()

    def _ask(self, asked: Asked) -> None:
        try:
            self._exchange.ask(asked)
        except (BrokenPipeError, ConnectionResetError):  # the engine has just ended
            self._stop()

    def _read(self) -> None:
        answered = self._exchange.answered()
        if answered is None:
            self._stop()
            return
        for slot, outcome in answered:
            shape, reply = self._replies.pop(slot)
            if not reply.done():
                match outcome:
                    case Outcome.SEGMENTED:
                        reply.set_result(self._exchange.take(slot, shape))
                    case Outcome.FAILED:
                        reply.set_exception(InferenceFailed("the model failed on this image"))
                    case Outcome.NO_MEMORY:
                        reply.set_exception(OutOfMemory(NO_MEMORY))
                    case _:
                        reply.set_exception(ModelNotReady(STOPPING))
            self._free.put_nowait(slot)

    def _stop(self) -> None:
        self._open = False
        asyncio.get_running_loop().remove_reader(self._exchange.front_end.fileno())
        for slot, (_, reply) in self._replies.items():
            if not reply.done():
                reply.set_exception(ModelNotReady(STOPPING))
            self._free.put_nowait(slot)
        self._replies.clear()
