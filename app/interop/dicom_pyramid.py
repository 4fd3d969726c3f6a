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
from app.interop.dicom_identity import derived_uid, maker, repeating_the_source
from app.interop.dicom_seg import PyramidLevel, segmentation_object
from app.pathology.arrays import ClassMap
from app.pathology.manifest import ModelManifest

if TYPE_CHECKING:
    from pydicom import Dataset

BEYOND = 255
"""No class has this index (`ModelManifest.classes`), so it is in no segment."""


def pyramid_series_uid(sources: Sequence["Dataset"], manifest: ModelManifest) -> str:
    """Return the Series Instance UID of a model's pyramid for a segmented level; known before it is segmented.

    Each segmented level of a slide has a series of its own: viewers take all instances of a series for one pyramid.
    """
    return derived_uid("pyramid series", str(sources[0].SOPInstanceUID), maker(manifest))


def segmentation_pyramid(
    levels: Sequence[Sequence["Dataset"]], class_map: ClassMap, manifest: ModelManifest
) -> "tuple[Dataset, ...]":
    """Return a Segmentation for each level, finest first: one series, one pyramid, the same segments and tracking UIDs.

    Levels beyond the first of a single tile are left out: they would save nothing. UIDs and bytes follow from the
    arguments, as those of `segmentation_object` do.

    Args:
        levels: Of one slide, finest first: the one that was segmented and the coarser ones, each as the headers that
            `segmentation_object` takes.
        class_map: (H, W) uint8, of the first level.
        manifest: The model that made the map.

    Raises:
        UnsupportedImage: A source lacks what the objects must repeat.
        ValueError: The class map is not of the first level's size.
        ExtraMissing: The packages that write DICOM are not installed.
    """
    require_dicom()
    with repeating_the_source():
        sizes = [(int(sources[0].TotalPixelMatrixRows), int(sources[0].TotalPixelMatrixColumns)) for sources in levels]
        tiles = [(int(sources[0].Rows), int(sources[0].Columns)) for sources in levels]
        origins = [str(source.SOPInstanceUID) for sources in levels for source in sources]
        series_uid = pyramid_series_uid(levels[0], manifest)
        spacings = [_spacing(sources[0]) for sources in levels]
    if class_map.shape != sizes[0]:
        raise ValueError(f"the class map has {class_map.shape} rows and columns, its source {sizes[0]}")
    content = hashlib.sha256(np.ascontiguousarray(class_map).data).hexdigest()
    pyramid_uid = derived_uid("pyramid", *origins, maker(manifest), content)
    last = next((index for index, size in enumerate(sizes) if np.less_equal(size, tiles[index]).all()), len(levels) - 1)
    return tuple(
        segmentation_object(
            levels[index],
            reduced(class_map, sizes[index], _steps(sizes[0], spacings[0], sizes[index], spacings[index])),
            manifest,
            PyramidLevel(series_uid, pyramid_uid, index + 1),
        )
        for index in range(last + 1)
    )


def _spacing(source: "Dataset") -> tuple[float, float]:
    """Return the Pixel Spacing of a level, mm from row to row and from column to column."""
    rows, columns = source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return float(rows), float(columns)


def _steps(
    fine: tuple[int, int], fine_mm: tuple[float, float], coarse: tuple[int, int], coarse_mm: tuple[float, float]
) -> tuple[Fraction, Fraction]:
    """Return how many pixels of the finest level one of a coarser level spans, along rows' and columns' numbers.

    It is the ratio of their sizes, unless the coarser level shows more than the finest or less, as one that a scanner
    filled up to whole tiles: then that of their spacings, a power of two, since they may be rounded.
    """
    steps = []
    for of_fine, of_coarse, mm_fine, mm_coarse in zip(fine, coarse, fine_mm, coarse_mm, strict=True):
        stated = Fraction(2) ** round(math.log2(mm_coarse / mm_fine))
        shows_the_same = abs(of_coarse * stated - of_fine) <= stated
        steps.append(Fraction(of_fine, of_coarse) if shows_the_same else stated)
    return steps[0], steps[1]


def reduced(class_map: ClassMap, shape: tuple[int, int], steps: tuple[Fraction, Fraction] | None = None) -> ClassMap:
    """Return the class map at a coarser level: the class at the centre of each of its pixels, the nearest neighbour.

    So every pixel has a class that was found there, and the classes keep their shares. A vote would take pixels from
    whatever is rare or thin, the more the coarser the level. Every level is made from the finest, so that nothing adds
    up from level to level.

    Args:
        class_map: (H, W) uint8.
        shape: Rows and columns of the coarser level, which begins in the same corner.
        steps: How many of the class map's rows, and columns, one of the coarser level spans; by default as many as
            make both show the same.

    Returns:
        uint8, of that shape; `BEYOND` where the class map has no pixel.
    """
    steps = steps or (Fraction(class_map.shape[0], shape[0]), Fraction(class_map.shape[1], shape[1]))
    rows, columns = (
        ((2 * np.arange(count) + 1) * step.numerator) // (2 * step.denominator)
        for count, step in zip(shape, steps, strict=True)
    )
    coarse = np.full(shape, BEYOND, np.uint8)
    inside = (rows < class_map.shape[0]).sum(), (columns < class_map.shape[1]).sum()
    coarse[: inside[0], : inside[1]] = class_map[np.ix_(rows[: inside[0]], columns[: inside[1]])]
    return coarse
