"""The model as a front process has it: a Segmenter whose windows are answered by the engine process."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from app.errors import MODEL_GONE, STOPPING, InferenceFailed, ModelNotReady, OutOfMemory, TesseraError
from app.inference.exchange import Asked, Exchange, Outcome, Verb
from app.inference.result import NO_MEMORY, WindowResult
from app.inference.segmenter import Segmenter
from app.pathology.arrays import RgbImage
from app.pathology.manifest import ModelManifest
from app.telemetry.logging import request_id
from app.telemetry.metrics import SegmentationMetrics

_FAILED = "the model failed on this image"
_NO_ROOM = "the model takes no more images now; try again in a few seconds"

_log = logging.getLogger(__name__)


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
        self._why_closed = STOPPING
        self._told_of: str | None = None

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
            raise ModelNotReady(self._why_closed)
        shape = (window.shape[0], window.shape[1])
        reply: asyncio.Future[WindowResult] = asyncio.get_running_loop().create_future()
        self._replies[slot] = shape, reply
        try:
            self._exchange.image(slot, shape)[...] = window
            self._ask(Asked(Verb.SEGMENT, slot, shape, queued_at))
        except Exception:
            del self._replies[slot]  # the engine knows nothing of it
            self._free.put_nowait(slot)
            raise
        try:
            return await reply
        except asyncio.CancelledError:
            if slot in self._replies and self._replies[slot][1] is reply:  # and not of who has the slot by now
                with suppress(ModelNotReady):  # else its answer is waited for
                    self._ask(Asked(Verb.WITHDRAW, slot, shape, queued_at))
            raise
        except InferenceFailed as error:
            if request_id.get() is None or request_id.get() != self._told_of:  # once for all windows of a request
                _log.error("the model failed on a window", exc_info=error)
            self._told_of = request_id.get()
            raise

    def give_back(self) -> None:
        """Do nothing: the windows' memory is the exchange's, which both processes have, and stays as it is."""

    async def close(self) -> None:
        """Stop listening; whoever still waits is told that the service stops."""
        if self._open:
            self._stop(STOPPING)

    def _ask(self, asked: Asked) -> None:
        """Send the engine a message; where it has just ended, all who wait are told so.

        Raises:
            ModelNotReady: There is no room for the message.
        """
        try:
            self._exchange.ask(asked)
        except (BrokenPipeError, ConnectionResetError):
            self._stop(MODEL_GONE)
        except OSError as error:
            raise ModelNotReady(_NO_ROOM) from error

    def _read(self) -> None:
        answered = self._exchange.answered()
        if answered is None:
            self._stop(MODEL_GONE)
            return
        for slot, outcome in answered:
            shape, reply = self._replies.pop(slot)
            if not reply.done():
                found = self._found(slot, shape, outcome)
                if isinstance(found, WindowResult):
                    reply.set_result(found)
                else:
                    reply.set_exception(found)
            self._free.put_nowait(slot)

    def _found(self, slot: int, shape: tuple[int, int], outcome: Outcome) -> WindowResult | TesseraError:
        """Return what became of a slot's (H, W) window. It raises nothing: others were answered with it."""
        match outcome:
            case Outcome.SEGMENTED:
                try:
                    return self._exchange.take(slot, shape)
                except MemoryError as error:
                    return _caused_by(error, OutOfMemory(NO_MEMORY))
                except Exception as error:  # noqa: BLE001  it is handed to the caller
                    return _caused_by(error, InferenceFailed(_FAILED))
            case Outcome.FAILED:
                failure = InferenceFailed(_FAILED)
                failure.add_note("the engine's log has the cause")
                return failure
            case Outcome.NO_MEMORY:
                return OutOfMemory(NO_MEMORY)
            case _:  # the engine ends after its fronts: one that takes no windows before that is stuck
                return ModelNotReady(MODEL_GONE)

    def _stop(self, why: str) -> None:
        self._open = False
        self._why_closed = why
        asyncio.get_running_loop().remove_reader(self._exchange.front_end.fileno())
        for slot, (_, reply) in self._replies.items():
            if not reply.done():
                reply.set_exception(ModelNotReady(why))
            self._free.put_nowait(slot)
        self._replies.clear()


def _caused_by(cause: Exception, failure: TesseraError) -> TesseraError:
    failure.__cause__ = cause
    return failure
