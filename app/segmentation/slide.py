"""A whole slide: which of its levels to segment, and its class map in bounded memory."""

from collections.abc import Sequence
from functools import partial

from app.errors import ImageTooLarge
from app.inference.segmenter import Segmenter
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.slides.slide import Level, Slide
from app.telemetry.metrics import Metrics


def choose_level(levels: Sequence[Level], um_per_px: float | None, max_pixels: int) -> int:
    """Return the index of the level to segment.

    It is the one whose pixel spacing is closest to `um_per_px`, by ratio; where that or the slide's own spacing is not
    known, the finest one of at most `max_pixels`.

    Args:
        levels: The slide's, finest first.
        um_per_px: The spacing wanted, in um/px, or None.
        max_pixels: The most pixels a level may have: its class map and confidence are held in memory, 2 bytes each px.

    Raises:
        ImageTooLarge: That level, or every level, has more than `max_pixels`.
    """

    def distance(index: int) -> float:
        spacing = levels[index].um_per_px or 0.0
        return max(spacing / (um_per_px or 1.0), (um_per_px or 1.0) / spacing)

    if um_per_px is not None and all(level.um_per_px for level in levels):
        chosen = min(range(len(levels)), key=distance)
    else:
        fitting = (index for index, level in enumerate(levels) if level.size.pixels <= max_pixels)
        chosen = next(fitting, len(levels) - 1)
    size = levels[chosen].size
    if size.pixels > max_pixels:
        raise ImageTooLarge(
            f"the slide's level at this resolution is {size}, over the {max_pixels} px allowed;"
            " ask for a coarser --um-per-px or allow more --max-pixels"
        )
    return chosen


async def segment_slide(
    segmenter: Segmenter, slide: Slide, level: int, workers: Workers, metrics: Metrics
) -> SegmentedArea:
    """Segment one level of a slide; it is read in worker threads, a few windows ahead of the model.

    Raises:
        SlideUnreadable: The slide does not give its pixels.
        InferenceFailed: The model failed on a window.
        ModelNotReady: The model is stopping.
    """

    async def read(region: Region) -> RgbImage:
        return await workers.run("decode", partial(slide.read, level, region))

    area = await segment_windows(segmenter, slide.levels[level].size, read, metrics)
    metrics.images.inc()
    return area
