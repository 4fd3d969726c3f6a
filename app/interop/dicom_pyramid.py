"""A class map as a pyramid of DICOM Segmentations, so that a viewer draws a whole slide from a few tiles.

highdicom's own `create_segmentation_pyramid` takes only slides that carry a Pyramid UID, which many scanners leave out.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from app.imaging.dicom_packages import require_dicom
from app.interop.dicom_identity import derived_uid, maker, repeating_the_source
from app.interop.dicom_seg import PyramidLevel, segmentation_object
from app.pathology.arrays import ClassMap
from app.pathology.manifest import ModelManifest

if TYPE_CHECKING:
    from pydicom import Dataset


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
    if class_map.shape != sizes[0]:
        raise ValueError(f"the class map has {class_map.shape} rows and columns, its source {sizes[0]}")
    content = hashlib.sha256(np.ascontiguousarray(class_map).data).hexdigest()
    pyramid_uid = derived_uid("pyramid", *origins, maker(manifest), content)
    last = next((index for index, size in enumerate(sizes) if np.less_equal(size, tiles[index]).all()), len(levels) - 1)
    return tuple(
        segmentation_object(
            levels[index], reduced(class_map, sizes[index]), manifest, PyramidLevel(series_uid, pyramid_uid, index + 1)
        )
        for index in range(last + 1)
    )


def reduced(class_map: ClassMap, shape: tuple[int, int]) -> ClassMap:
    """Return the class map at a coarser level: the class at the centre of each of its pixels, the nearest neighbour.

    So every pixel has a class that was found there, and the classes keep their shares. A vote would take pixels from
    whatever is rare or thin, the more the coarser the level. Every level is made from the finest, so that nothing adds
    up from level to level.

    Args:
        class_map: (H, W) uint8.
        shape: Rows and columns of the coarser level, which shows the same area; at most H and W.
    """
    rows, columns = (
        ((2 * np.arange(coarse) + 1) * fine) // (2 * coarse)
        for fine, coarse in zip(class_map.shape, shape, strict=True)
    )
    return class_map[np.ix_(rows, columns)]
