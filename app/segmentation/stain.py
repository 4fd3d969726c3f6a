"""Whether a whole slide is stained as the model knows it, told before it is segmented."""

from collections.abc import Sequence

import numpy as np

from app.errors import OtherStain
from app.imaging.appearance import slide_appearance
from app.imaging.plausibility import InputWarning, Rules
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides.slide import Slide

_OVERVIEW_PX = 1024
"""The longest side from which on a level shows what a slide looks like: thin pieces of tissue are not yet blurred."""
_MOST_OVERVIEW_PX = 2**24
"""Most pixels that are read at once for that: 48 MiB."""
_PIECES, _PIECE_PX = 16, 32
_STATED = InputWarning(
    "out_of_distribution",
    "The slide's header names other stains than haematoxylin and eosin; the model has learnt nothing about those.",
)


def stain_warnings(slide: Slide, rules: Rules, *, states_other: bool = False) -> tuple[InputWarning, ...]:
    """Return what to warn of about a slide; blocks. No pixels are read where its header says enough.

    Args:
        slide: What is looked at.
        rules: Those of the model's stain.
        states_other: Whether its header names other stains than H&E. Only DICOM has codes for that.

    Raises:
        SlideUnreadable: The slide does not give its pixels.
    """
    if rules.trust_header and states_other:
        return (_STATED,)
    return rules.of_slide(slide_appearance(overview(slide)))


def check_stain(warnings: Sequence[tuple[InputWarning, ...]]) -> None:
    """Refuse a slide none of whose areas with tissue looks like H&E.

    Raises:
        OtherStain: It is one.
    """
    codes = [{warning.code for warning in found} for found in warnings]
    looks_like_he = any(not {"out_of_distribution", "low_tissue"} & found for found in codes)
    other = next((one for found in warnings for one in found if one.code == "out_of_distribution"), None)
    if other is not None and not looks_like_he:
        raise OtherStain(other.message)


def overview(slide: Slide) -> RgbImage:
    """Return (H, W, 3) uint8, what a slide looks like from afar; blocks, at a cost that is bounded.

    It is the coarsest level of some size. Of one that is large nevertheless, as of a slide without coarse levels, it is
    pieces from all over it, put together.

    Raises:
        SlideUnreadable: The slide does not give its pixels.
    """
    large = [index for index, level in enumerate(slide.levels) if level.size.longest_px >= _OVERVIEW_PX]
    index = max(large, default=0)
    whole = slide.levels[index].size
    if whole.pixels <= _MOST_OVERVIEW_PX:
        return slide.read(index, Region(0, 0, whole))
    piece = Size(*(max(1, min(_PIECE_PX, side // _PIECES)) for side in (whole.width_px, whole.height_px)))
    lefts, tops = (
        np.linspace(0, side - of_piece, _PIECES).astype(int).tolist()
        for side, of_piece in ((whole.width_px, piece.width_px), (whole.height_px, piece.height_px))
    )
    return np.vstack([np.hstack([slide.read(index, Region(left, top, piece)) for left in lefts]) for top in tops])
