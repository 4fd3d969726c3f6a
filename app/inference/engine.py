"""The engine: one model on one device, answering the windows of every front process."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial

from app.errors import InferenceFailed, ModelNotReady, OutOfMemory
from app.inference.exchange import Exchange, Outcome, Verb
from app.inference.model import BatchedSegmenter
from app.inference.result import WindowResult

_TELL_SECONDS = 0.25

_log = logging.getLogger(__name__)


class Engine:
    """Takes windows off exchanges and puts back what the model says. Its methods are called on the event loop.

    Args:
        segmenter: The model, started.
        exchanges: One for each front; `asked` and `answer` are this side of them.
    """

    def __init__(self, segmenter: BatchedSegmenter, exchanges: Sequence[Exchange]) -> None:
        self._segmenter = segmenter
        self._exchanges = exchanges
        self._running: dict[tuple[Exchange, int], asyncio.Future[WindowResult]] = {}

    def start(self, alone: Callable[[], None] = lambda: None) -> None:
        """Begin to listen to the fronts.

        Args:
            alone: Called when all of them have ended.
        """
        self._alone = alone
        self._fronts = len(self._exchanges)
        for exchange in self._exchanges:
            asyncio.get_running_loop().add_reader(exchange.engine_end.fileno(), self._read, exchange)
        self._tell_late()

    def _tell_late(self) -> None:
        """Tell the fronts now and from time to time, also while nobody waits: a batch outlives those who gave up."""
        late = self._segmenter.late or not self._segmenter.ready  # a model that is stuck is not late any more
        for exchange in self._exchanges:
            exchange.late = late
        if self._fronts:
            asyncio.get_running_loop().call_later(_TELL_SECONDS, self._tell_late)

    def _read(self, exchange: Exchange) -> None:
        asked = exchange.asked()
        if asked is None:  # its front has ended; who ended it decides what becomes of the service
            asyncio.get_running_loop().remove_reader(exchange.engine_end.fileno())
            self._fronts -= 1
            if not self._fronts:
                self._alone()
            return
        for message in asked:
            key = (exchange, message.slot)
            if message.verb is Verb.WITHDRAW:
                if key in self._running:
                    self._running[key].cancel()
                continue
            try:
                image = exchange.image(message.slot, message.shape)
                reply = self._segmenter.enqueue(image, message.queued_at)
            except ModelNotReady:
                self._say(exchange, message.slot, Outcome.NOT_READY)
                continue
            self._running[key] = reply
            reply.add_done_callback(partial(self._answer, exchange, message.slot))

    def _answer(self, exchange: Exchange, slot: int, reply: asyncio.Future[WindowResult]) -> None:
        del self._running[exchange, slot]
        if reply.cancelled():
            outcome = Outcome.WITHDRAWN
        elif (error := reply.exception()) is None:
            outcome = self._put(exchange, slot, reply.result())
        elif isinstance(error, InferenceFailed):
            outcome = Outcome.FAILED
        elif isinstance(error, OutOfMemory):
            outcome = Outcome.NO_MEMORY
        else:
            outcome = Outcome.NOT_READY
        self._say(exchange, slot, outcome)

    def _put(self, exchange: Exchange, slot: int, result: WindowResult) -> Outcome:
        """Leave a result in its slot, and return what to answer: whoever waits has to be told something."""
        try:
            exchange.put(slot, result)
        except MemoryError:
            return Outcome.NO_MEMORY
        except Exception as error:  # noqa: BLE001  whatever it is, somebody waits
            _log.error("a window's result could not be handed over", exc_info=error)
            return Outcome.FAILED
        return Outcome.SEGMENTED

    def _say(self, exchange: Exchange, slot: int, outcome: Outcome) -> None:
        try:
            exchange.answer(slot, outcome)
        except (BrokenPipeError, ConnectionResetError):
            _log.debug("a front ended before its window was answered")
