"""A whole slide: at which pixel spacing the model sees it, window by window, and which level carries its class map."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from app.errors import ImageTooLarge
from app.inference.segmenter import Segmenter
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, of_microscope
from app.pathology.manifest import ModelManifest
from app.pathology.tiling import plan_windows
from app.segmentation.scale import is_near, step_to
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.slides.slide import Level, Slide
from app.slides.view import View
from app.telemetry.metrics import SegmentationMetrics

_UM_PER_MM = 1000
_MUCH_COARSER = 1.3
"""Ratio of spacings beyond which the model lacks detail that it was trained on."""

Progress = Callable[[int, int], None]
"""Told, on the event loop, how many regions of how many have been read."""
Seen = Callable[[Region, RgbImage], None]
"""Told, on the event loop, of each region that the model sees, and its (H, W, 3) uint8 pixels."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlideOptions:
    """How slides are answered.

    Attributes:
        um_per_px: The pixel spacing at which the model sees them, or None for its own; see `choose_view`.
        max_pixels: How large they may be; see `choose_view` and `choose_carrier`.
        has_report: Whether a structured report is stored beside each result.
    """

    um_per_px: float | None
    max_pixels: int
    has_report: bool = False


def choose_view(slide: Slide, um_per_px: float | None, fits: Callable[[Level], bool]) -> View:
    """Return how the model sees a slide: at `um_per_px`, from the coarsest level that is no coarser.

    So no detail is missing that the model was trained on, and no more is read than that takes. Where every level is
    coarser, the finest one is enlarged. Where the spacing wanted or the slide's own is not known, the model sees the
    finest level that fits, as it is.

    Args:
        slide: Its levels, finest first. Spacings beyond what a microscope gives count as not known.
        um_per_px: The spacing wanted, in um/px, or None.
        fits: Whether a level is small enough; asked only where no spacing decides.
    """
    levels = slide.levels
    known = ((index, of_microscope(level.um_per_px)) for index, level in enumerate(levels))
    spacings = {index: own for index, own in known if own is not None}
    if um_per_px is None or not spacings:
        return View(slide, next((i for i, level in enumerate(levels) if fits(level)), len(levels) - 1), Fraction(1))
    fine = [index for index, own in spacings.items() if own <= um_per_px or is_near(own, um_per_px)]
    index = max(fine, default=min(spacings))
    return View(slide, index, step_to(spacings[index], um_per_px))


def scale_warning(view: View, um_per_px: float | None) -> str | None:
    """Return a sentence if the model will not see `um_per_px`, or not with the detail that belongs to that; or None.

    Where `um_per_px` is None, nothing says what it should see. A slide is answered all the same.
    """
    own = view.source.um_per_px
    if um_per_px is None:
        return "at which um/px the model was trained is not known: it sees the slide's finest level that fits, as it is"
    if view.step == 1 and not is_near(own or math.inf, um_per_px):
        return (
            "the slide's pixel spacing is not known, not a microscope's, or its pixels are not square: the model, which"
            f" is to see {um_per_px:.3g} um/px, sees them as they are"
        )
    if own is not None and own > _MUCH_COARSER * um_per_px:
        return (
            f"the slide's finest level has {own:.3g} um/px and is enlarged to the model's {um_per_px:.3g}: detail is"
            " missing, and the result is less reliable"
        )
    return None


def warn_of(view: View, um_per_px: float | None) -> None:
    """Log what `scale_warning` says."""
    if (warning := scale_warning(view, um_per_px)) is not None:
        _log.warning("%s", warning)


def check_pixels(level: Level, max_pixels: int, *, takes_mpp: bool = False) -> None:
    """Refuse what is too large to be held in memory.

    Args:
        level: As the model would see it.
        max_pixels: The most pixels that it may have.
        takes_mpp: Whether who asks can state what is not known of the slide's pixel spacing, by --mpp.

    Raises:
        ImageTooLarge: It has more.
    """
    if level.size.pixels <= max_pixels:
        return
    if level.um_per_px is not None:
        coarser = "ask for a coarser --um-per-px or "
    else:  # which is resampled to none
        coarser = "state it with --mpp, so that the model sees the slide at its own, or " if takes_mpp else ""
    raise ImageTooLarge(
        f"the slide is {described(level)}, over the {max_pixels} px allowed; {coarser}allow more --max-pixels"
    )


def described(level: Level) -> str:
    """Return a level's size, as in "3000x2000 px (1.5x1 mm at 0.5 um/px)"."""
    if level.um_per_px is None:
        return f"{level.size} at an unknown pixel spacing"
    width, height = (side * level.um_per_px / _UM_PER_MM for side in (level.size.width_px, level.size.height_px))
    return f"{level.size} ({width:.3g}x{height:.3g} mm at {level.um_per_px:.3g} um/px)"


def choose_carrier(levels: Sequence[Level], view: View, max_pixels: int, among: Sequence[int]) -> int:
    """Return the index of the level that carries the result: of those that fit, the nearest to what the model saw.

    Near is meant by ratio, and of two that are alike within some 7 % the finer one is taken, so that slides of one
    scanner, whose spacings vary a little, are all answered at one level.

    Args:
        levels: The slide's, finest first.
        view: What the model sees.
        max_pixels: The most pixels of a level that carries a class map.
        among: Indices of the levels that may carry it, finest first: that of the view, and coarser ones.

    Raises:
        ImageTooLarge: None of those has so few.
    """
    seen = view.level.um_per_px
    if view.step == 1 or seen is None:
        return view.index

    def distance(index: int) -> float:
        return round(abs(math.log2((levels[index].um_per_px or math.inf) / seen)), 1)

    fitting = [
        index for index in among if levels[index].um_per_px is not None and levels[index].size.pixels <= max_pixels
    ]
    if not fitting:
        check_pixels(levels[among[-1]], max_pixels)
        return among[-1]
    return min(fitting, key=distance)


def counted(views: Sequence[View], manifest: ModelManifest, progress: Progress | None) -> Seen:
    """Return what is to be told of each region that `segment_slide` reads of these, one view after the other."""
    how = manifest.window_px, manifest.margin_px, manifest.stride
    total = sum(len(plan_windows(view.level.size, *how)) for view in views)
    done = 0

    def tell(_region: Region, _pixels: RgbImage) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tell


async def segment_slide(
    segmenter: Segmenter,
    view: View,
    workers: Workers,
    metrics: SegmentationMetrics,
    seen: Seen = lambda _region, _pixels: None,
) -> SegmentedArea:
    """Segment a slide as `view` shows it; it is read in worker threads, a few windows ahead of the model.

    Args:
        segmenter: The model.
        view: What it sees.
        workers: Threads for reading.
        metrics: Told of images and pixels.
        seen: Told of each window that was read.

    Raises:
        SlideUnreadable: The slide does not give its pixels.
        InferenceFailed: The model failed on a window.
        ModelNotReady: The model is stopping, or stuck.
    """

    async def read(region: Region) -> RgbImage:
        pixels = await workers.run("decode", partial(view.read, region))
        seen(region, pixels)
        return pixels

    area = await segment_windows(segmenter, view.level.size, read, metrics)
    metrics.images.inc()
    return area
