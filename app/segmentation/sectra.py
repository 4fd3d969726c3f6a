"""Orders of Sectra's, from the call-back address that each names to the result stored there.

Areas are answered with their stored result. A whole slide takes longer than a viewer waits: a result that says so is
stored and answered at once, and replaced when the tissue is known, as in the whole-slide example of Sectra's SDK.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from sectra_client.schemas import CreateInvocation

from app.errors import DeadlineExceeded, ImageTooLarge, ModelNotReady, OrderCancelled, TesseraError
from app.inference.segmenter import Segmenter
from app.interop import sectra as interop
from app.segmentation.admission import Admission
from app.segmentation.sectra_area import AreaSegmentation
from app.segmentation.sectra_results import store
from app.segmentation.workers import Workers
from app.slides.sectra import SectraSlide, open_slide
from app.slides.sectra_callback import CONNECTIONS, Callback
from app.telemetry.metrics import Metrics

_MOST_AREAS = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SectraOptions:
    """On what terms orders are taken.

    Attributes:
        ordered_on: The SDK's name of what a user orders on: taggedPolygon, multiArea or wholeSlide.
        hosts: Of call-back addresses; see `Callback`.
        pixels: In an area at the resolution that the model sees, and in all areas that are worked on at one time.
        area_seconds: For the areas of one order.
        slide_seconds: For a whole slide.
    """

    ordered_on: str
    hosts: tuple[str, ...]
    pixels: int
    area_seconds: float
    slide_seconds: float


class SectraOrders:
    """Carries out orders. Its methods are called on the event loop.

    Args:
        segmenter: The model.
        workers: Threads for outlines. Tiles are waited for in threads of their own: an archive can be slow.
        admission: The service's door; an area counts as an image, and so does a slide.
        metrics: Told of images and pixels.
        options: On what terms.
        software_version: This program's.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        workers: Workers,
        admission: Admission,
        metrics: Metrics,
        options: SectraOptions,
        software_version: str,
    ) -> None:
        self.software_version = software_version
        self._fetchers = Workers(CONNECTIONS, metrics)
        self._areas = AreaSegmentation(segmenter, self._fetchers, workers, metrics, options.pixels)
        self._workers = workers
        self._admission = admission
        self._tls = ssl.create_default_context()
        self._options = options
        self._running: set[_Running] = set()
        self._later: set[asyncio.Task[None]] = set()
        self._storing: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._closed = False

    def registration(self, url: str) -> dict[str, Any]:
        """Return what Sectra's configuration page asks an application for; `url` is where it was asked."""
        return interop.registration(url, self._options.ordered_on)

    async def create(self, order: CreateInvocation) -> dict[str, Any]:
        """Carry out an order and return its result as Sectra has stored it.

        Raises:
            CallbackRefused: The call-back address is not allowed; nothing was sent there.
            ArchiveUnavailable, ArchiveDenied, ArchiveRefused: It does not do what the SDK says.
            SlideUnreadable: It has no tiles of the slide that can be read.
            AreaOutside: An area has no pixel on the slide.
            ImageTooLarge: An area has too many pixels, or the order too many areas.
            TooManyRegions: The tissue falls into too many regions.
            QueueFull: The service has no place for it.
            DeadlineExceeded: The areas took too long.
            OrderCancelled: The user took it back.
            InferenceFailed: The model failed on it.
            ModelNotReady: The service is stopping.
        """
        areas = interop.ordered_polygons(order)
        if areas is not None and len(areas) > _MOST_AREAS:
            raise ImageTooLarge(f"the order has {len(areas)} areas; at most {_MOST_AREAS} are taken")
        address = order.callbackInfo
        callback = Callback(address.url, address.token, self._options.hosts, self.software_version, self._tls)
        async with AsyncExitStack() as held:
            held.enter_context(closing(callback))
            held.enter_context(self._admission.admit(1 if areas is None else len(areas)))
            async with self._endable(order, self._options.area_seconds):
                slide = await self._fetchers.run(None, partial(open_slide, callback, order.slideId))
                if areas is not None:
                    result = await self._segment(order, slide)
            if areas is not None:
                return await self._store(callback, order, result)
            answer = await self._store(callback, order, self._message(order, slide, "segmentation is on its way"))
            task = asyncio.create_task(self._segment_later(callback, order, slide, held.pop_all()))
            self._later.add(task)
            task.add_done_callback(self._later.discard)
            return answer

    def cancel(self, token: str) -> None:
        """End the orders that came with this cancellation token; one that is done stays as it is."""
        for running in self._running:
            if running.token == token:
                running.end(OrderCancelled("the order was cancelled"))

    async def close(self) -> None:
        """End every order; one whose whole slide is on its way is told to Sectra as not done."""
        self._closed = True
        for running in self._running:
            running.end(_stopping())
        await asyncio.gather(*self._later)
        await self._fetchers.close()

    async def _segment_later(
        self, callback: Callback, order: CreateInvocation, slide: SectraSlide, held: AsyncExitStack
    ) -> None:
        """Replace the result that says that a slide is on its way; where the user has deleted it, store none."""
        async with held:
            try:
                async with self._endable(order, self._options.slide_seconds):
                    result = await self._segment(order, slide)
            except TesseraError as error:
                _log.warning("order of a whole slide failed", extra={"problem": str(error)})
                result = self._message(order, slide, f"not segmented: {error}")
            except Exception:  # noqa: BLE001  nobody awaits this task; its log and its user are told
                _log.exception("unforeseen error in an order of a whole slide")
                result = self._message(order, slide, "not segmented: a fault of the service; its log has the cause")
            try:
                await self._store(callback, order, result, replace_only=True)
                _log.info("order of a whole slide answered")
            except TesseraError as error:
                _log.warning("result of a whole slide not stored", extra={"problem": str(error)})

    async def _segment(self, order: CreateInvocation, slide: SectraSlide) -> dict[str, Any]:
        size = slide.levels[0].size
        areas = await self._workers.run(None, partial(interop.areas, order, size))
        found = [await self._areas.segment(slide, area) for area in areas]
        manifest = self._areas.manifest
        return await self._workers.run(
            "encode", partial(interop.tissue_result, order, found, size, manifest, self.software_version)
        )

    def _message(self, order: CreateInvocation, slide: SectraSlide, text: str) -> dict[str, Any]:
        return interop.message_result(order, text, slide.levels[0].size, self.software_version)

    async def _store(
        self, callback: Callback, order: CreateInvocation, result: dict[str, Any], replace_only: bool = False
    ) -> dict[str, Any]:
        """Store a result, in place of one that the same order gave before, and return it as stored."""
        key = (order.slideId, interop.order_key(order))
        lock = self._storing.setdefault(key, asyncio.Lock())
        async with lock:
            return await self._fetchers.run(None, partial(store, callback, order, result, replace_only))

    @asynccontextmanager
    async def _endable(self, order: CreateInvocation, seconds: float) -> AsyncIterator[None]:
        """Let `cancel`, `close` and a deadline end the block.

        Raises:
            OrderCancelled, ModelNotReady, DeadlineExceeded: They did.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be ended")
        if self._closed:
            raise _stopping()
        running = _Running(order.cancellationToken, task)
        self._running.add(running)
        try:
            async with asyncio.timeout(seconds) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise DeadlineExceeded(f"not done within {seconds:g} s; order a smaller area, or try later") from None
        except asyncio.CancelledError:
            if running.reason is not None and task.uncancel() == 0:
                raise running.reason from None
            raise
        finally:
            self._running.discard(running)


@dataclass(eq=False, slots=True)
class _Running:
    """Work that can be ended: its token, its task, and why it was ended."""

    token: str
    task: "asyncio.Task[Any]"
    reason: TesseraError | None = None

    def end(self, reason: TesseraError) -> None:
        if self.reason is None:
            self.reason = reason
            self.task.cancel()


def _stopping() -> ModelNotReady:
    return ModelNotReady("the service is stopping; order it again later")
