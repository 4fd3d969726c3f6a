"""At which size the model sees a patch: its own, or that at which a pixel has the spacing the model was trained at."""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from typing import Literal

from app.errors import ImageTooLarge
from app.pathology.geometry import Size, of_microscope

_NEAR = 1.02
"""Ratio up to which two spacings count as one: resampling would soften the pixels and change nothing else."""
_SAID_BY = {"request": "mpp", "dicom": "its DICOM header", "file": "its TIFF tags"}

FileKind = Literal["dicom", "file"]
Source = Literal["request", FileKind]
Unchanged = Literal["mpp_unknown", "model_um_per_px_unknown", "within_tolerance"]


@dataclass(frozen=True, slots=True)
class Scale:
    """How an image was brought to the model's pixel spacing, or why it was not.

    Attributes:
        um_per_px: The image's, None when not known.
        source: Who said so, None when nobody did.
        model_um_per_px: What the model was trained at, None when not known.
        factor: Pixels that the model sees in one of the image's, along a side; 1 where it sees the image's own.
        unchanged: Why it sees the image's own; None where it does not.
    """

    um_per_px: float | None
    source: Source | None
    model_um_per_px: float | None
    factor: float = 1.0
    unchanged: Unchanged | None = None

    def seen(self, size: Size) -> Size:
        """Return the size at which the model sees an image of `size`, at least 1 px a side."""
        if self.factor == 1:
            return size
        return Size(*(max(1, round(self.factor * side)) for side in (size.width_px, size.height_px)))


def plan_scale(stated: float | None, in_header: float | None, model: float | None, size: Size, kind: FileKind) -> Scale:
    """Return the scale of an image, all spacings in um/px or None.

    Args:
        stated: What the request says, which wins.
        in_header: What the image's file says. Beyond what a microscope gives it counts as not said.
        model: What the model was trained at.
        size: The image's own. Where rescaling would keep it, it counts as not done.
        kind: Of `in_header`: a DICOM header, or another file's tags.
    """
    in_header = of_microscope(in_header)
    source: Source | None = "request" if stated is not None else kind if in_header is not None else None
    own = in_header if stated is None else stated
    if own is None:
        return Scale(own, source, model, unchanged="mpp_unknown")
    if model is None:
        return Scale(own, source, model, unchanged="model_um_per_px_unknown")
    scale = Scale(own, source, model, factor=own / model)
    if is_near(own, model) or scale.seen(size) == size:
        return replace(scale, factor=1.0, unchanged="within_tolerance")
    return scale


def is_near(one: float, other: float) -> bool:
    """Return whether two spacings count as one."""
    return max(one, other) <= _NEAR * min(one, other)


def step_to(own: float, wanted: float) -> Fraction:
    """Return how many pixels of spacing `own` one of `wanted` spans, along a side; both in um/px.

    It is the simplest fraction that gives a spacing which counts as the one wanted; so it is 1 where the two do, and
    the grids of slides coincide every few pixels.
    """
    ratio = wanted / own
    return next(
        Fraction(max(1, round(ratio * parts)), parts)
        for parts in count(1)
        if is_near(max(1, round(ratio * parts)), ratio * parts)
    )


def check_seen(scale: Scale, size: Size, max_side_px: int) -> None:
    """Refuse an image that would be too large at the model's spacing.

    Raises:
        ImageTooLarge: A side would be longer than `max_side_px`.
    """
    seen = scale.seen(size)
    model = scale.model_um_per_px
    if model is None or seen.longest_px <= max_side_px:
        return
    said_by = _SAID_BY[scale.source or "request"]
    otherwise = "" if scale.source == "request" else ", or state mpp"
    raise ImageTooLarge(
        f"the image is {size} at {scale.um_per_px:g} um/px ({said_by}) and would be {seen} at the model's {model:g}"
        f" um/px; each side may have at most {max_side_px} px: send at most {max_side_px * model:g} um a side"
        + otherwise
    )
