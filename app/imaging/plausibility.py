"""What to warn of: an image that shows too little, or does not look like H&E tissue in focus; a slide of another stain.

For a model of another stain `rules_for` leaves out what goes by H&E's colours. What is done about a warning is decided
elsewhere. What the limits were measured on, and what they miss: docs/warnings.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from app.imaging.appearance import LEAST_SLIDE_TISSUE, Appearance
from app.imaging.sharpness import LEAST_SIDE_PX
from app.pathology.manifest import HE

WarningCode: TypeAlias = Literal["too_small", "low_tissue", "out_of_distribution", "pen_marks", "out_of_focus"]
WARNING_CODES: tuple[WarningCode, ...] = get_args(WarningCode)

LEAST_TISSUE = 0.05
LEAST_HE_STAIN = 0.65
MOST_INK = 0.01
LEAST_SHARPNESS = 0.45
"""The limits of `Appearance`'s numbers, beyond which an image is warned about."""


@dataclass(frozen=True, slots=True)
class InputWarning:
    """Why an answer may be worth little.

    Attributes:
        code: Stable, for programs.
        message: One sentence for a pathologist, with what was measured.
    """

    code: WarningCode
    message: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What images are warned about; `rules_for` has those of a stain.

    Attributes:
        of_patch: Returns what to warn of about a patch that `appearance` measured.
        of_slide: The same about a slide that `slide_appearance` measured.
        trust_header: Whether a slide is warned about whose header names another stain.
    """

    of_patch: Callable[[Appearance], tuple[InputWarning, ...]]
    of_slide: Callable[[Appearance], tuple[InputWarning, ...]]
    trust_header: bool


def rules_for(stain: str) -> Rules:
    """Return the rules for what a model of `stain`, as its manifest has it, is given.

    The limits of colours were measured on H&E and hold for no other stain: without them, what is left counts density
    and detail.
    """
    if stain == HE:
        return Rules(input_warnings, slide_warnings, trust_header=True)
    return Rules(lambda seen: _too_little(seen) or _out_of_focus(seen), _without_tissue, trust_header=False)


def input_warnings(seen: Appearance) -> tuple[InputWarning, ...]:
    """Return what to warn of about a patch that should be H&E.

    Where there are hardly any pixels or tissue, or it is not H&E, this stands alone: the other measures then mean
    nothing.
    """
    if alone := _too_little(seen):
        return alone
    if seen.he_stain < LEAST_HE_STAIN:
        message = (
            f"Only {seen.he_stain:.0%} of what is dark has the colours of haematoxylin and eosin; "
            "the model has learnt nothing about other stains or photographs."
        )
        return (InputWarning("out_of_distribution", message),)
    return _pen_marks(seen, "patch") + _out_of_focus(seen)


def slide_warnings(seen: Appearance) -> tuple[InputWarning, ...]:
    """Return what to warn of about a slide that should be H&E; nearly nothing but glass is usual."""
    if alone := _without_tissue(seen):
        return alone
    if seen.he_stain < LEAST_HE_STAIN:
        message = (
            f"Only {seen.he_stain:.0%} of what is stained on the slide has the colours of haematoxylin and eosin; "
            "the model has learnt nothing about other stains."
        )
        return (InputWarning("out_of_distribution", message),)
    return _pen_marks(seen, "slide")


def _too_little(seen: Appearance) -> tuple[InputWarning, ...]:
    """Return a warning of few pixels, or of little that absorbs light, in whatever colour."""
    if min(seen.size.width_px, seen.size.height_px) < LEAST_SIDE_PX:
        message = (
            f"The model saw only {seen.size}, and less than {LEAST_SIDE_PX} px a side is too little to go by; "
            "send a larger patch, or check its pixel size."
        )
        return (InputWarning("too_small", message),)
    if seen.tissue < LEAST_TISSUE:
        message = f"Only {seen.tissue:.1%} of the patch is stained; the answer rests on hardly any tissue."
        return (InputWarning("low_tissue", message),)
    return ()


def _without_tissue(seen: Appearance) -> tuple[InputWarning, ...]:
    """Return a warning of a slide on which next to nothing absorbs light, in whatever colour."""
    if seen.tissue >= LEAST_SLIDE_TISSUE:
        return ()
    message = f"Less than {LEAST_SLIDE_TISSUE:.1%} of the slide is stained; no tissue was found on it."
    return (InputWarning("low_tissue", message),)


def _out_of_focus(seen: Appearance) -> tuple[InputWarning, ...]:
    if seen.sharpness is None or seen.sharpness >= LEAST_SHARPNESS:
        return ()
    message = (
        f"The finest detail is weak (sharpness {seen.sharpness:.2f}, where {LEAST_SHARPNESS} and more is sharp); "
        "the patch may be out of focus or enlarged."
    )
    return (InputWarning("out_of_focus", message),)


def _pen_marks(seen: Appearance, what: str) -> tuple[InputWarning, ...]:
    if seen.ink <= MOST_INK:
        return ()
    message = (
        f"{seen.ink:.0%} of the {what} is dark in a colour that H&E tissue lacks; "
        "pen marks, dye or pigment may be taken for tissue."
    )
    return (InputWarning("pen_marks", message),)
