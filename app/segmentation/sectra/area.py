"""Areas of a slide of Sectra's: their tiles, segmented at the model's resolution, as regions of tissue."""

import math
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features
from sectra_client.schemas import CreateInvocation

from app.errors import AreaOutside, ImageTooLarge, TooManyRegions
from app.imaging.contours import TissuePolygon, check_borders, merge_small, polygonise
from app.imaging.gdal import GDAL
from app.imaging.plausibility import rules_for
from app.inference.segmenter import Segmenter
from app.interop import sectra_areas
from app.interop.sectra import AreaTissue, tissue_result
from app.pathology.arrays import RgbImage
from app.pathology.classes import label_indices
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Region, Size
from app.pathology.manifest import ModelManifest
from app.segmentation.budget import PixelBudget
from app.segmentation.concurrently import all_of
from app.segmentation.outlines import LEAST_REGION_PX, TOLERANCE_PX, placed
from app.segmentation.slide import choose_view, warn_of
from app.segmentation.stain import stain_warnings
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.slides.slide import Level, Slide
from app.slides.view import View
from app.telemetry.metrics import SegmentationMetrics

_OUTSIDE = 255
"""Stands for no class; a model has at most 255, counted from 0."""


class AreaSegmentation:
    """Segments areas of slides.

    Args:
        segmenter: The model.
        fetchers: Threads that wait for tiles.
        workers: Threads for outlines.
        metrics: Told of images and pixels.
        max_pixels: The most pixels of an area at the resolution that the model sees, and of all areas at one time.
    """

    def __init__(
        self, segmenter: Segmenter, fetchers: Workers, workers: Workers, metrics: SegmentationMetrics, max_pixels: int
    ) -> None:
        self.manifest = segmenter.manifest
        self._rules = rules_for(self.manifest.stain)
        self._segmenter = segmenter
        self._fetchers = fetchers
        self._workers = workers
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._budget = PixelBudget(max_pixels)

    async def result(self, order: CreateInvocation, slide: Slide) -> dict[str, Any]:
        """Return the result of an order: of its areas, or of the whole slide, with what the slide is unlike.

        Raises:
            AreaOutside: An area has no pixel on the slide.
            ImageTooLarge: One has too many pixels, or too tangled a line.
            TooManyRegions, SlideUnreadable, ArchiveUnavailable, ArchiveDenied, ArchiveRefused, InferenceFailed,
            ModelNotReady: See `segment`.
        """
        size = slide.levels[0].size
        drawn = sectra_areas.ordered_polygons(order)
        outlines = (
            [sectra_areas.whole(size)]
            if drawn is None
            else [await self._workers.run(None, partial(sectra_areas.area, each, size)) for each in drawn]
        )
        for outline in outlines:
            self._view(slide, outline)  # of an order that is refused no tile is fetched
        looks = self._fetchers.run(None, partial(stain_warnings, slide, self._rules))
        both: tuple[Coroutine[Any, Any, Any], ...] = (looks, self._segment_all(slide, outlines))
        warnings, found = await all_of(both)
        for warning in warnings:
            self._metrics.warnings.labels(warning.code).inc()
        return await self._workers.run("encode", partial(tissue_result, order, found, size, self.manifest, warnings))

    async def _segment_all(self, slide: Slide, outlines: Sequence[shapely.MultiPolygon]) -> list[AreaTissue]:
        return [await self.segment(slide, outline) for outline in outlines]

    async def segment(self, slide: Slide, outline: shapely.MultiPolygon) -> AreaTissue:
        """Return the tissue within `outline`, which is in px of the slide's finest level and lies on the slide.

        The rectangle around it is segmented; what lies outside the outline neither counts nor becomes a region.

        Raises:
            ImageTooLarge: The rectangle has too many pixels.
            AreaOutside: The outline has no pixel at the model's resolution.
            TooManyRegions: The tissue falls into too many regions.
            SlideUnreadable, ArchiveUnavailable, ArchiveDenied, ArchiveRefused: See `SectraSlide.read`.
            InferenceFailed, ModelNotReady: See `segment_windows`.
        """
        view = self._view(slide, outline)
        warn_of(view, self.manifest.um_per_px)
        level = view.level
        place = _rectangle(outline, level)

        async def read(region: Region) -> RgbImage:
            there = Region(place.x_px + region.x_px, place.y_px + region.y_px, region.size)
            return await self._fetchers.run(None, partial(view.read, there))

        async with self._budget.hold(place.size.pixels):
            inside = await self._workers.run(None, partial(_rasterised, outline, place, level.downsample))
            segmented = await segment_windows(self._segmenter, place.size, read, self._metrics)
            tissue, counts = await self._workers.run("encode", partial(_found, segmented, inside, self.manifest))
        self._metrics.images.inc()
        return AreaTissue(
            outline=outline,
            tissue=[_on_slide(region, place, level.downsample, slide.levels[0].size) for region in tissue],
            pixel_counts=counts,
            um_per_px=level.um_per_px,
        )

    def _view(self, slide: Slide, outline: shapely.MultiPolygon) -> View:
        def fits(level: Level) -> bool:
            return _rectangle(outline, level).size.pixels <= self._max_pixels

        view = choose_view(slide, self.manifest.um_per_px, fits)
        if not fits(view.level):
            raise ImageTooLarge(
                f"an area has more than {self._max_pixels} px at the model's {self.manifest.um_per_px} um/px;"
                " order a smaller one"
            )
        return view


def _rectangle(outline: shapely.MultiPolygon, level: Level) -> Region:
    """Return the pixels of a level that `outline` touches, at least one."""
    left, top, right, bottom = (value / level.downsample for value in outline.bounds)
    x, y = min(int(left), level.size.width_px - 1), min(int(top), level.size.height_px - 1)
    end_x, end_y = min(math.ceil(right), level.size.width_px), min(math.ceil(bottom), level.size.height_px)
    return Region(x, y, Size(max(1, end_x - x), max(1, end_y - y)))


def _rasterised(outline: shapely.MultiPolygon, place: Region, downsample: float) -> NDArray[np.bool_]:
    """Return (H, W) bool: whether the outline holds the centre of each pixel of `place`.

    Raises:
        AreaOutside: It holds none.
    """
    corner = np.array([place.x_px, place.y_px])
    local = shapely.transform(outline, lambda points: points / downsample - corner)
    shape = (place.size.height_px, place.size.width_px)
    with GDAL:
        drawn: NDArray[np.uint8] = features.rasterize([(local, 1)], out_shape=shape, dtype=np.uint8)
    if not drawn.any():
        raise AreaOutside("an area has less than a pixel at the model's resolution; draw a larger one")
    return drawn.view(bool)


def _found(
    segmented: SegmentedArea, inside: NDArray[np.bool_], manifest: ModelManifest
) -> tuple[list[TissuePolygon], list[int]]:
    """Return the regions of tissue within the outline, and its pixels by class.

    Small regions join others before the outline cuts. What it cuts off joins nothing: neither a corner outside of it,
    nor a corner within of tissue that goes on beyond it.
    """
    tissue = label_indices(manifest.classes)
    try:
        check_borders(np.where(inside, segmented.class_map, np.uint8(_OUTSIDE)))
        class_map = np.where(inside, merge_small(segmented.class_map, LEAST_REGION_PX), np.uint8(_OUTSIDE))
        regions = polygonise(class_map, segmented.confidence, tissue, TOLERANCE_PX, min_area_px=0)
    except TooManyRegions as error:
        raise TooManyRegions("an area's tissue falls into too many regions; order a smaller one") from error
    return regions, pixel_counts(segmented.class_map[inside], len(manifest.classes))


def _on_slide(region: TissuePolygon, place: Region, downsample: float, slide: Size) -> TissuePolygon:
    """Return a region of `place` in px of the slide's finest level, beyond which its last pixels may reach."""
    corner, end = np.array([place.x_px, place.y_px], float), np.array([slide.width_px, slide.height_px], float)
    return placed(region, corner, np.full(2, downsample), end)
