"""What a DICOM image's header says of its total pixel matrix: what covers it, its spacing, its place on the glass.

An image that is not tiled is a matrix of one frame.
Source: DICOM PS3.3, sections C.8.12.2.1 (Image Orientation (Slide)) and C.8.12.4 (Whole Slide Microscopy Image), where
no other is named.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.errors import SlideUnreadable
from app.pathology.geometry import of_square_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

_SEVERAL = {
    "TotalPixelMatrixFocalPlanes": "focal planes",
    "NumberOfOpticalPaths": "optical paths",
}
"""Attributes that count what an instance may have several of, and that by name."""
_UM_PER_MM = 1000
_MOST = 0.5
"""A pyramid is its own scanned area if finer pyramids cover at most this share of it."""


def is_tiled(dataset: "Dataset") -> bool:
    """Return whether an image's frames are tiles of a larger one."""
    return "TotalPixelMatrixColumns" in dataset


def is_part(dataset: "Dataset") -> bool:
    """Return whether an instance is one of several of a concatenation (PS3.3, section C.7.6.16)."""
    return "ConcatenationUID" in dataset and dataset.get("InConcatenationTotalNumber") != 1


def frame_count(dataset: "Dataset") -> int:
    """Return how many frames an instance has."""
    return int(dataset.get("NumberOfFrames") or 1)


def too_many_frames(dataset: "Dataset") -> str | None:
    """Return in words how many frames a tiled image has, if they are more than cover its total pixel matrix once.

    Then it has several focal planes or optical paths, whether it states so or not, or its tiles overlap.
    """
    rows = -(-int(dataset.TotalPixelMatrixRows) // int(dataset.Rows))
    needed = rows * -(-int(dataset.TotalPixelMatrixColumns) // int(dataset.Columns))
    count = frame_count(dataset)
    return f"{count} frames where {needed} cover it" if count > needed else None


def check_single(dataset: "Dataset") -> None:
    """Refuse a level of several focal planes or optical paths, also a sparse one that does not state how many.

    Raises:
        SlideUnreadable: It is one.
    """
    for keyword, what in _SEVERAL.items():
        if (count := int(dataset.get(keyword) or 1)) > 1:
            raise SlideUnreadable(
                f"a level of the slide has {count} {what}; store the one to be segmented in a series of its own"
            )
    if found := too_many_frames(dataset):
        raise SlideUnreadable(
            f"a level of the slide has {found}; store one focal plane and one optical path, without overlaps, in a"
            " series of its own"
        )


def um_per_px(dataset: "Dataset") -> float | None:
    """Return the pixel spacing in um/px, the mean of the two directions; None where the header has none to use.

    A frame's stands in the data set itself, a tiled slide's in its shared functional groups; the other place is asked
    where that one is empty. A spacing that is no positive number, or of pixels that are not square within 2 %, is
    none: broken metadata does not cost the pixels.

    Source: DICOM PS3.3, sections 10.7.1 (Pixel Spacing) and C.7.6.16.2.1 (Pixel Measures).

    Raises:
        MemoryError: There is no memory to read it now.
    """
    places = (_shared, _own) if is_tiled(dataset) else (_own, _shared)
    try:
        spacing = next(filter(None, (place(dataset) for place in places)))
        down, across = (_UM_PER_MM * float(value) for value in spacing)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  absent, or damaged in whatever way; the pixels are judged elsewhere
        return None
    return of_square_pixels(down, across)


def begins_with(header: "Dataset", other: "Dataset") -> bool:
    """Return whether a level begins where another does, within a pixel of its own; also where that is not said."""
    try:
        apart_mm = float(np.hypot(*(_origin(header) - _origin(other))))
        return apart_mm <= min(_spacing_mm(header))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return True


def not_shown_finer(headers: Sequence["Dataset"]) -> list[int]:
    """Return which pyramids, in their order, are scanned areas of their own: finer ones show less than half of them.

    Args:
        headers: Of the finest level of each pyramid. One that does not say where it lies is an area of its own.
    """
    kept: list[int] = []
    for index in sorted(range(len(headers)), key=lambda index: _fineness(headers[index])):
        if sum(_share_shown(headers[index], headers[finer]) for finer in kept) <= _MOST:
            kept.append(index)
    return sorted(kept)


def _fineness(header: "Dataset") -> float:
    try:
        return sum(_spacing_mm(header))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return np.inf


def _share_shown(header: "Dataset", other: "Dataset") -> float:
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


def _corners(header: "Dataset") -> NDArray[np.float64]:
    """Return (4, 2), x and y in mm on the glass."""
    down, across = _spacing_mm(header)
    sides = np.array([[header.TotalPixelMatrixColumns * across], [header.TotalPixelMatrixRows * down]], float)
    right, bottom = sides * _axes(header)
    corners: NDArray[np.float64] = _origin(header) + np.array([0 * right, right, bottom, right + bottom])
    return corners


def _axes(header: "Dataset") -> NDArray[np.float64]:
    """Return (2, 2), the directions of rows and of columns on the glass."""
    return np.array(header.ImageOrientationSlide, float).reshape(2, 3)[:, :2]


def _origin(header: "Dataset") -> NDArray[np.float64]:
    """Return (2,), x and y in mm on the glass."""
    [place] = header.TotalPixelMatrixOriginSequence
    return np.array([place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem], float)


def _spacing_mm(header: "Dataset") -> tuple[float, float]:
    """Return mm from row to row and from column to column, of a level that states them."""
    down, across = _shared(header)
    return float(down), float(across)


def _own(dataset: "Dataset") -> Any:
    return dataset.get("PixelSpacing")


def _shared(dataset: "Dataset") -> Any:
    for group in dataset.get("SharedFunctionalGroupsSequence") or ():
        for measures in group.get("PixelMeasuresSequence") or ():
            return measures.get("PixelSpacing")
    return None
