"""Orders of Sectra's, from the call-back address that each names to the result stored there.

Areas are answered with their stored result. A whole slide takes longer than a viewer waits: a result that says so is
stored and answered at once, and replaced when the tissue is known, as in the whole-slide example of Sectra's SDK.
"""

import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from sectra_client.schemas import CreateInvocation

from app.errors import ImageTooLarge, TesseraError
from app.inference.segmenter import Segmenter
from app.interop import sectra as interop
from app.interop import sectra_areas
from app.segmentation.admission import Admission
from app.segmentation.sectra.area import AreaSegmentation
from app.segmentation.sectra.results import Results
from app.segmentation.sectra.running import RunningOrders
from app.segmentation.sectra.whole_slide import WholeSlide, WholeSlides
from app.segmentation.workers import Workers
from app.slides.sectra import open_slide
from app.slides.sectra_callback import CONNECTIONS, Callback
from app.telemetry.metrics import SegmentationMetrics


@dataclass(frozen=True, slots=True)
class SectraOptions:
    """On what terms orders are taken.

    Attributes:
        ordered_on: The SDK's name of what a user orders on: taggedPolygon, multiArea or wholeSlide.
        hosts: Of call-back addresses; see `Callback`.
        areas: The most in one order.
        pixels: In an area at the resolution that the model sees, and in all areas that are worked on at one time.
        slide_seconds: For a whole slide; who asks for areas bounds the time themselves.
    """

    ordered_on: str
    hosts: tuple[str, ...]
    areas: int
    pixels: int
    slide_seconds: float


class SectraOrders:
    """Carries out orders. Its methods are called on the event loop.

    Args:
        segmenter: The model.
        workers: Threads for outlines. Tiles are waited for in threads of their own: an archive can be slow.
        admission: The service's door; an area counts as an image, and so does a slide.
        metrics: Told of images and pixels.
        options: On what terms.
        failed: Told why a whole slide has not been served whose order was answered before.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        workers: Workers,
        admission: Admission,
        metrics: SegmentationMetrics,
        options: SectraOptions,
        failed: Callable[[TesseraError], None],
    ) -> None:
        self._fetchers = Workers(CONNECTIONS, metrics, abandons_when_cancelled=True)
        self._areas = AreaSegmentation(segmenter, self._fetchers, workers, metrics, options.pixels)
        self._results = Results(self._fetchers)
        self._slides = WholeSlides(self._areas, self._results, self._fetchers, options.slide_seconds, failed)
        self._admission = admission
        self._tls = ssl.create_default_context()
        self._options = options
        self._running = RunningOrders()

    def registration(self, url: str) -> dict[str, Any]:
        """Return what Sectra's configuration page asks an application for; `url` is where it was asked."""
        return interop.registration(url, self._options.ordered_on)

    async def create(self, order: CreateInvocation) -> dict[str, Any]:
        """Carry out an order and return its result as Sectra has stored it.

        Raises:
            CallbackRefused: The call-back address is not allowed; nothing was sent there.
            ArchiveUnavailable, ArchiveDenied, ArchiveRefused: It does not do what the SDK says.
            SlideUnreadable: It has no tiles of the slide that can be read.
            AreaOutside: An area has no pixel on the slide, or there is none.
            ImageTooLarge: An area has too many pixels or too tangled a line, or the order too many areas.
            TooManyRegions: The tissue falls into too many regions.
            QueueFull: The service has no place for it.
            OrderCancelled: The user took it back.
            InferenceFailed: The model failed on it.
            ModelNotReady: The service is stopping.
        """
        drawn = sectra_areas.ordered_polygons(order)
        if drawn is not None and len(drawn) > self._options.areas:
            raise ImageTooLarge(f"the order has {len(drawn)} areas; at most {self._options.areas} are taken")
        address = order.callbackInfo
        async with AsyncExitStack() as held:
            running = held.enter_context(self._running.enter(order.cancellationToken))
            callback = Callback(address.url, address.token, self._options.hosts, self._tls)
            held.enter_context(closing(callback))
            held.enter_context(self._admission.admit(1 if drawn is None else len(drawn)))
            if drawn is None:
                return await self._slides.begin(WholeSlide(order, callback, running, held.pop_all()))
            with running.endable():
                slide = await self._fetchers.run(None, partial(open_slide, callback, order.slideId))
                await self._results.check(callback, order)
                result = await self._areas.result(order, slide)
            return await self._results.store(callback, order, result, running.check)

    def cancel(self, token: str) -> None:
        """End the orders that came with this cancellation token; one that is done stays as it is."""
        self._running.cancel(token)

    async def close(self) -> None:
        """End every order; one whose whole slide is on its way is told to Sectra as not done."""
        self._running.stop()
        await self._slides.close()
        await self._fetchers.close()
