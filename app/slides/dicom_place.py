"""Where the levels of a slide lie on the glass, as their headers say.

Source: DICOM PS3.3, sections C.8.12.2.1 and C.8.12.4 (Total Pixel Matrix Origin, Image Orientation (Slide)).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

_MOST = 0.5
"""Share of a pyramid that finer ones may show, and it is still an area of its own."""


def begins_with(header: Dataset, other: Dataset) -> bool:
    """Return whether a level begins where another does, within a pixel of its own; also where that is not said."""
    try:
        apart_mm = float(np.hypot(*(_origin(header) - _origin(other))))
        return apart_mm <= min(_spacing(header))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return True


def not_shown_finer(headers: Sequence[Dataset]) -> list[int]:
    """Return which pyramids, in their order, are scanned areas of their own: finer ones show less than half of them.

    Args:
        headers: Of the finest level of each pyramid. One that does not say where it lies is an area of its own.
    """
    kept: list[int] = []
    for index in sorted(range(len(headers)), key=lambda index: _fineness(headers[index])):
        if sum(_share_shown(headers[index], headers[finer]) for finer in kept) <= _MOST:
            kept.append(index)
    return sorted(kept)


def _fineness(header: Dataset) -> float:
    try:
        return sum(_spacing(header))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return np.inf


def _share_shown(header: Dataset, other: Dataset) -> float:
    """Return which part of a level's rectangle lies in another's, 0 to 1; 0 where that is not said."""
    try:
        if header.FrameOfReferenceUID != other.FrameOfReferenceUID:
            return 0.0
        axes = _axes(header)
        own, others = (corners @ axes.T for corners in (_corners(header), _corners(other)))
        both = np.minimum(own.max(axis=0), others.max(axis=0)) - np.maximum(own.min(axis=0), others.min(axis=0))
        return float(np.prod(both.clip(0)) / np.prod(np.ptp(own, axis=0)))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return 0.0


def _corners(header: Dataset) -> NDArray[np.float64]:
    """Return (4, 2), x and y in mm on the glass."""
    down, across = _spacing(header)
    sides = np.array([[header.TotalPixelMatrixColumns * across], [header.TotalPixelMatrixRows * down]], float)
    right, bottom = sides * _axes(header)
    corners: NDArray[np.float64] = _origin(header) + np.array([0 * right, right, bottom, right + bottom])
    return corners


def _axes(header: Dataset) -> NDArray[np.float64]:
    """Return (2, 2), the directions of rows and of columns on the glass."""
    return np.array(header.ImageOrientationSlide, float).reshape(2, 3)[:, :2]


def _origin(header: Dataset) -> NDArray[np.float64]:
    [place] = header.TotalPixelMatrixOriginSequence
    return np.array([place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem], float)


def _spacing(header: Dataset) -> tuple[float, float]:
    """Return mm from row to row and from column to column."""
    down, across = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return float(down), float(across)
