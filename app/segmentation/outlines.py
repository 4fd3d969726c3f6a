"""The tissue of a slide, or of an area of it, as regions: how small, how simplified, where they lie on the slide."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray

from app.errors import TooManyRegions
from app.imaging.contours import TissuePolygon, merge_small, polygonise
from app.imaging.resampling import resample_map
from app.pathology.arrays import ClassMap, ConfidenceMap
from app.pathology.geometry import Size

TOLERANCE_PX = 2.0
"""How far simplified outlines may lie from the borders of pixels."""
LEAST_REGION_PX = 64
"""Smaller regions join their neighbours. At 1 um/px that leaves a fifteenth of them, and a class's area within some 3 %
(docs/decisions/0020)."""
_MOST_TRACED_PIXELS = 2**28
"""Of a class map: tracing takes some 2 bytes, and 50 ns, for each of its pixels."""


def slide_outlines(
    class_map: ClassMap, confidence: ConfidenceMap, keep: Sequence[int], downsample: float, slide: Size
) -> tuple[list[TissuePolygon], int]:
    """Return a slide's regions of the classes in `keep`, in px of its finest level, and at which step they were traced.

    The step is the lowest power of two at which the map, one of so many pixels of it along a side, is small enough, and
    falls into so few regions with borders so short, that they can be traced and a viewer shows them; see `polygonise`.
    Small regions join their neighbours before any pixel is left out, so that what is small decides no step; what is cut
    off a region by a coarser grid joins another in the same way.

    Args:
        class_map: (H, W) uint8, of the whole slide.
        confidence: (H, W) uint8, probability times 255.
        keep: Indices of classes.
        downsample: Pixels of the finest level in one of the map's, along a side.
        slide: Size of the finest level.

    Raises:
        OutOfMemory: There is no memory for it now.
    """
    height, width = class_map.shape
    corner, end = np.zeros(2), np.array([slide.width_px, slide.height_px], float)
    merged = merge_small(class_map, LEAST_REGION_PX)
    step = 1
    while True:  # to its end, which comes: a map of one pixel has one region
        size = Size(-(-width // step), -(-height // step))
        if size.pixels <= _MOST_TRACED_PIXELS:
            coarse, sure = (values if step == 1 else resample_map(values, size) for values in (merged, confidence))
            with suppress(TooManyRegions):
                regions = polygonise(coarse, sure, keep, TOLERANCE_PX, max(1, LEAST_REGION_PX // step**2))
                scale = downsample * np.array([width / size.width_px, height / size.height_px])
                return [placed(region, corner, scale, end) for region in regions], step
        step *= 2


def placed(
    region: TissuePolygon, corner: NDArray[np.float64], scale: NDArray[np.float64], end: NDArray[np.float64]
) -> TissuePolygon:
    """Return a region in px of another grid, past whose end the last pixels of its own may reach.

    Args:
        region: In px of its own grid.
        corner: (2,), x and y from which those count.
        scale: (2,), px of the other grid in one of them.
        end: (2,), width and height of the other grid, in its px.
    """
    outline = shapely.transform(region.outline, lambda points: np.minimum((points + corner) * scale, end))
    return replace(region, outline=outline)
