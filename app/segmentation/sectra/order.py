"""What an order of Sectra's asks to be done on a slide, short of storing it."""

from functools import partial
from typing import Any

from sectra_client.schemas import CreateInvocation

from app.inference.segmenter import Segmenter
from app.interop import sectra as interop
from app.interop import sectra_areas
from app.segmentation.sectra.area import AreaSegmentation
from app.segmentation.workers import Workers
from app.slides.sectra import SectraSlide, open_slide
from app.slides.sectra_callback import Callback
from app.telemetry.metrics import Metrics


class OrderSegmentation:
    """Segments what was ordered.

    Args:
        segmenter: The model.
        fetchers: Threads that wait for tiles.
        workers: Threads for outlines.
        metrics: Told of images and pixels.
        max_pixels: See `AreaSegmentation`.
        software_version: This program's.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        fetchers: Workers,
        workers: Workers,
        metrics: Metrics,
        max_pixels: int,
        software_version: str,
    ) -> None:
        self._areas = AreaSegmentation(segmenter, fetchers, workers, metrics, max_pixels)
        self._fetchers = fetchers
        self._workers = workers
        self._software_version = software_version

    async def open(self, callback: Callback, order: CreateInvocation) -> SectraSlide:
        """Return the slide that was ordered on; see `open_slide`."""
        return await self._fetchers.run(None, partial(open_slide, callback, order.slideId))

    async def segment(self, order: CreateInvocation, slide: SectraSlide) -> dict[str, Any]:
        """Return the result of an order.

        Raises:
            AreaOutside: An area has no pixel on the slide.
            ImageTooLarge: One has too many pixels, or too tangled a line.
            TooManyRegions, SlideUnreadable, ArchiveUnavailable, ArchiveDenied, ArchiveRefused, InferenceFailed,
            ModelNotReady: See `AreaSegmentation.segment`.
        """
        size, manifest = slide.levels[0].size, self._areas.manifest
        drawn = sectra_areas.ordered_polygons(order)
        outlines = (
            [sectra_areas.whole(size)]
            if drawn is None
            else [await self._workers.run(None, partial(sectra_areas.area, each, size)) for each in drawn]
        )
        found = [await self._areas.segment(slide, outline) for outline in outlines]
        return await self._workers.run(
            "encode", partial(interop.tissue_result, order, found, size, manifest, self._software_version)
        )

    def message(self, order: CreateInvocation, slide: SectraSlide, text: str) -> dict[str, Any]:
        """Return a result that says `text` in place of tissue."""
        return interop.message_result(order, text, slide.levels[0].size, self._software_version)
