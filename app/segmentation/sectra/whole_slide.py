"""Sectra's orders of whole slides: answered at once that they are on their way, and with their tissue later."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from sectra_client.schemas import CreateInvocation

from app.errors import ArchiveUnavailable, InferenceFailed, OrderCancelled, OutOfMemory, TesseraError, no_memory_to
from app.interop.sectra import message_result
from app.segmentation.backoff import Backoff
from app.segmentation.deadline import answered_within
from app.segmentation.sectra.area import AreaSegmentation
from app.segmentation.sectra.results import Results
from app.segmentation.sectra.running import RunningOrder
from app.segmentation.workers import Workers
from app.slides.sectra import SectraSlide, open_slide
from app.slides.sectra_callback import Callback

_LONGEST_WAIT_SECONDS = 60.0
"""Before a result is sent again."""
_LEAST_STORING_SECONDS = 60.0
"""In which a result is sent again, also where the slide took all of its time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WholeSlide:
    """One order, and what is held as long as it is carried out: its call-back and its place in the service."""

    order: CreateInvocation
    callback: Callback
    running: RunningOrder
    held: AsyncExitStack


class WholeSlides:
    """Carries out orders of whole slides, each in tasks of its own.

    Args:
        areas: Segments them.
        results: Stores what came of it.
        fetchers: Threads that wait for a call-back.
        seconds: For a slide.
        failed: Told, once for a slide, why it has not been served after its order was answered.
    """

    def __init__(
        self,
        areas: AreaSegmentation,
        results: Results,
        fetchers: Workers,
        seconds: float,
        failed: Callable[[TesseraError], None],
    ) -> None:
        self._areas = areas
        self._results = results
        self._fetchers = fetchers
        self._seconds = seconds
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, ordered: WholeSlide) -> dict[str, Any]:
        """Return the result that Sectra has at first. A caller who leaves before that ends the order.

        Raises:
            OrderCancelled, ModelNotReady: It was ended before that, or the service is stopping.
            SlideUnreadable, ArchiveUnavailable, ArchiveDenied, ArchiveRefused: See `Results.store` and `open_slide`.
        """
        beginning = asyncio.create_task(self._begin(ordered))
        task = asyncio.create_task(self._carry_out(ordered, beginning))
        self._tasks.add(task)
        task.add_done_callback(self._end)
        try:
            return (await asyncio.shield(beginning))[1]
        except asyncio.CancelledError:
            ordered.running.end(OrderCancelled("the request that ordered it ended"))
            raise

    async def close(self) -> None:
        """Wait for the orders, which were told to end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)  # `_end` logs what they raise

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            _log.error("unforeseen error in an order of a whole slide", exc_info=task.exception())

    async def _begin(self, ordered: WholeSlide) -> tuple[SectraSlide, dict[str, Any]]:
        with ordered.running.endable():
            slide = await self._fetchers.run(None, partial(open_slide, ordered.callback, ordered.order.slideId))
        message = self._message(ordered, slide, _on_its_way(self._seconds))
        # Not endable: once written, it has to be replaced.
        stored = await self._results.store(ordered.callback, ordered.order, message, ordered.running.check)
        return slide, stored

    async def _carry_out(
        self, ordered: WholeSlide, beginning: asyncio.Task[tuple[SectraSlide, dict[str, Any]]]
    ) -> None:
        async with ordered.held:
            until = time.monotonic() + self._seconds
            problem: TesseraError | None = None
            has_begun = False
            try:
                slide, _ = await beginning
                has_begun = True
                result, problem = await self._result(ordered, slide)
                await self._store(ordered, result, until)
                _log.info("order of a whole slide answered")
            except TesseraError as error:
                _log.warning("order of a whole slide not answered", extra={"problem": str(error)})
                problem = problem or error
            if has_begun and problem is not None:  # what keeps it from beginning is its caller's answer
                self._failed(problem)

    async def _result(self, ordered: WholeSlide, slide: SectraSlide) -> tuple[dict[str, Any], TesseraError | None]:
        """Return a slide's tissue, or a message that says why there is none; and the problem, if it is known."""
        try:
            with ordered.running.endable():
                async with answered_within(self._seconds, "order an area of it, or try later"):
                    return await self._areas.result(ordered.order, slide), None
        except TesseraError as error:
            _log.warning("order of a whole slide failed", extra={"problem": str(error)})
            return self._message(ordered, slide, f"not segmented: {error}"), error
        except MemoryError:
            lack = OutOfMemory(no_memory_to("segment this slide"))
            _log.warning("order of a whole slide failed", extra={"problem": str(lack)})
            return self._message(ordered, slide, f"not segmented: {lack}"), lack
        except Exception:  # noqa: BLE001  nobody awaits this task; its log, its user and the metrics are told
            _log.exception("unforeseen error in an order of a whole slide")
            fault = InferenceFailed("a fault of the service; its log has the cause")
            return self._message(ordered, slide, f"not segmented: {fault}"), fault

    def _message(self, ordered: WholeSlide, slide: SectraSlide, text: str) -> dict[str, Any]:
        return message_result(ordered.order, text, slide.levels[0].size)

    async def _store(self, ordered: WholeSlide, result: dict[str, Any], until: float) -> None:
        """Replace the result that says that a slide is on its way; where the user has deleted it, store none.

        A call-back that does not answer now is asked again. Cancelling is too late: the work is done.
        """
        until = max(until, time.monotonic() + _LEAST_STORING_SECONDS)
        backoff = Backoff(_LONGEST_WAIT_SECONDS)
        goes_on = True
        while True:
            try:
                await self._results.store(ordered.callback, ordered.order, result, replace_only=True)
                return
            except ArchiveUnavailable:
                wait = backoff.next_seconds()
                if not goes_on or time.monotonic() + wait > until:
                    raise
            goes_on = await ordered.running.wait(wait)


def _on_its_way(seconds: float) -> str:
    """Return the first text, which says when to give up: a service that is killed replaces nothing any more."""
    latest = datetime.now(UTC) + timedelta(seconds=seconds + _LEAST_STORING_SECONDS)
    return (
        f"segmentation is on its way, until {latest + timedelta(minutes=1):%Y-%m-%d %H:%M} UTC at the latest;"
        " if this still stands then, order it again"
    )
