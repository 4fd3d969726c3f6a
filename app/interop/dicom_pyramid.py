"""A class map as a pyramid of DICOM Segmentations, so that a viewer draws a whole slide from a few tiles.

highdicom's own `create_segmentation_pyramid` takes only slides that carry a Pyramid UID, which many scanners leave out.
"""

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from app.imaging.dicom_packages import require_dicom
from app.interop.dicom_identity import derived_uid, parameters_of, repeating_the_source, result_key
from app.interop.dicom_seg import PyramidLevel, segmentation_object
from app.interop.provenance import Conditions
from app.pathology.arrays import ClassMap
from app.pathology.geometry import of_microscope, of_square_pixels
from app.pathology.manifest import ModelManifest

if TYPE_CHECKING:
    from pydicom import Dataset

BEYOND = 255
"""No class has this index (`ModelManifest.classes`), so it is in no segment."""
_ROWS_AT_ONCE = 1024
_UM_PER_MM = 1000

Spans = tuple[Fraction, Fraction]
"""Rows and columns of one grid in a row and a column of another, which begins in the same corner."""

SAME: Spans = (Fraction(1), Fraction(1))


def pyramid_series_uid(source: "Dataset", manifest: ModelManifest, spans: Spans) -> str:
    """Return the Series Instance UID of a model's pyramid for its finest level; known before the slide is segmented.

    Each level that is a pyramid's finest has a series of its own, and so has each spacing at which the model saw the
    slide: viewers take all instances of a series for one pyramid.
    """
    return derived_uid("pyramid series", str(source.SOPInstanceUID), result_key(manifest), *_named(spans))


def level_spans(fine: "Dataset", coarse: "Dataset") -> Spans:
    """Return how many pixels of a level one of a coarser level spans, from their headers.

    Raises:
        UnsupportedImage: A header lacks its size or spacing.
    """
    with repeating_the_source():
        return _steps(_size(fine), _spacing(fine), _size(coarse), _spacing(coarse))


def conditions_of(source: "Dataset", spans: Spans, warnings: tuple[str, ...]) -> Conditions:
    """Return what a result of a slide's level says of itself; a spacing that is not used counts as not known.

    Args:
        source: Header of the finest level that has a result.
        spans: How many pixels of the class map one of that level spans.
        warnings: Codes of what is odd about the slide.

    Raises:
        UnsupportedImage: The header lacks its spacing.
    """
    with repeating_the_source():
        down, across = (_UM_PER_MM * side for side in _spacing(source))
    return Conditions(of_microscope(of_square_pixels(down, across)), float(spans[1]), warnings)


def segmentation_pyramid(
    levels: Sequence["Dataset"],
    class_map: ClassMap,
    manifest: ModelManifest,
    spans: Spans,
    warnings: tuple[str, ...],
) -> "tuple[Dataset, ...]":
    """Return a Segmentation for each level, finest first: one series, one pyramid, the same segments and tracking UIDs.

    Levels beyond the first of a single tile are left out: they would save nothing. UIDs and bytes follow from the
    arguments, as those of `segmentation_object` do.

    Args:
        levels: Of one slide, finest first, each as the header that `segmentation_object` takes.
        class_map: (H, W) uint8, of what the model saw.
        manifest: The model that made the map.
        spans: How many pixels of the class map one of the first level spans.
        warnings: Codes of what is odd about the slide.

    Raises:
        UnsupportedImage: A level lacks what the objects must repeat.
        ExtraMissing: The packages that write DICOM are not installed.
    """
    require_dicom()
    with repeating_the_source():
        sizes = [_size(source) for source in levels]
        tiles = [(int(source.Rows), int(source.Columns)) for source in levels]
        origins = [str(source.SOPInstanceUID) for source in levels]
        series_uid = pyramid_series_uid(levels[0], manifest, spans)
        spacings = [_spacing(source) for source in levels]
    conditions = conditions_of(levels[0], spans, warnings)
    content = hashlib.sha256(np.ascontiguousarray(class_map).data).hexdigest()
    stated = str(parameters_of(manifest, conditions))
    pyramid_uid = derived_uid("pyramid", *origins, result_key(manifest), content, *_named(spans), stated)
    last = next((index for index, size in enumerate(sizes) if np.less_equal(size, tiles[index]).all()), len(levels) - 1)
    result = []
    for index in range(last + 1):
        steps = _steps(sizes[0], spacings[0], sizes[index], spacings[index])
        shown = reduced(class_map, sizes[index], (steps[0] * spans[0], steps[1] * spans[1]))
        level = PyramidLevel(series_uid, pyramid_uid, index + 1)
        result.append(segmentation_object(levels[index], shown, manifest, conditions, level))
    return tuple(result)


def _named(spans: Spans) -> tuple[str, ...]:
    """Return what a grid of the model's own adds to the names of a result."""
    return () if spans == SAME else (f"{spans[0]} {spans[1]}",)


def _size(source: "Dataset") -> tuple[int, int]:
    return int(source.TotalPixelMatrixRows), int(source.TotalPixelMatrixColumns)


def _spacing(source: "Dataset") -> tuple[float, float]:
    """Return the Pixel Spacing of a level, mm from row to row and from column to column."""
    rows, columns = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return float(rows), float(columns)


def _steps(
    fine: tuple[int, int], fine_mm: tuple[float, float], coarse: tuple[int, int], coarse_mm: tuple[float, float]
) -> Spans:
    """Return how many pixels of the finest level one of a coarser level spans, along rows' and columns' numbers.

    It is the ratio of their sizes, unless the coarser level shows more than the finest or less by the ratio of their
    spacings, as one that a scanner filled up to whole tiles. Then it is that of the spacings, which may be rounded: the
    power of two that is nearest.
    """
    steps = []
    for of_fine, of_coarse, mm_fine, mm_coarse in zip(fine, coarse, fine_mm, coarse_mm, strict=True):
        stated = mm_coarse / mm_fine
        meant = Fraction(2) ** round(math.log2(stated))
        shows_the_same = any(abs(of_coarse * step - of_fine) <= step for step in (stated, meant))
        steps.append(Fraction(of_fine, of_coarse) if shows_the_same else meant)
    return steps[0], steps[1]


def reduced(class_map: ClassMap, shape: tuple[int, int], steps: Spans) -> ClassMap:
    """Return the class map at another level: the class at the centre of each of its pixels, the nearest neighbour.

    So every pixel has a class that was found there, and the classes keep their shares. A vote would take pixels from
    whatever is rare or thin, the more the coarser the level. Every level is made from the one map, so that nothing adds
    up from level to level.

    Args:
        class_map: (H, W) uint8.
        shape: Rows and columns of the level, which begins in the same corner.
        steps: How many of the class map's rows, and columns, one of the level spans.

    Returns:
        uint8, of that shape; `BEYOND` where the class map has no pixel.
    """
    if class_map.shape == shape and steps == SAME:
        return class_map
    rows, columns = (
        ((2 * np.arange(count) + 1) * step.numerator) // (2 * step.denominator)
        for count, step in zip(shape, steps, strict=True)
    )
    rows, columns = rows[rows < class_map.shape[0]], columns[columns < class_map.shape[1]]
    level = np.full(shape, BEYOND, np.uint8)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[first : first + _ROWS_AT_ONCE]
        level[first : first + len(some), : len(columns)] = class_map[np.ix_(some, columns)]
    return level
