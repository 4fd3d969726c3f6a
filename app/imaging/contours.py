"""Class maps to polygons, without gaps or overlaps between neighbours.

Regions are traced along pixel edges by GDAL (`rasterio.features`), then simplified together as a coverage by GEOS
(`shapely.coverage_simplify`, Visvalingam and Whyatt 1993), so that a border that two regions share stays shared.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import features

from app.errors import TooManyRegions
from app.imaging.gdal import GDAL
from app.pathology.arrays import ClassMap, ConfidenceMap

MAX_REGIONS = 20_000
"""Regions in one class map. A section of 4096 px has up to 8,000."""
MAX_BORDER_PX = 2_000_000
"""Length of all borders in one class map, which is what tracing costs. A section of 4096 px has 700,000; noise of that
size takes 90 s and 4 GB."""
MAX_AREA_CHANGE, MAX_AREA_CHANGE_PX = 0.005, 16
"""Share of a class's pixels by which simplification may change its area, and the pixels that it may in any case: a
class of a few would otherwise keep a whole section from being simplified."""
_STEPS_PX = (3.0, 1.5, 0.75)
"""Tolerances that are tried below the one asked for. A corner of a pixel is a triangle of 0.5 px2, whose root is 0.71:
less than the last changes nothing."""
_COUNTED_PX = 2**22
"""How many pixels are counted at once."""
_CLASSES = 2**8
"""That a map of uint8 may have."""
_TOO_MANY = f"the class map has more than {MAX_REGIONS} regions; merge the small ones, as with min_area=64"
_EDGES_ONLY = 4
"""Pixels that touch at a corner alone are apart: polygons traced so never cross themselves."""


@dataclass(frozen=True, slots=True)
class TissuePolygon:
    """One connected region of one class.

    Attributes:
        class_index: Of the class map's classes.
        outline: In px of the class map, origin at its top left corner, y downward; holes are inner rings.
        mean_confidence: Of the region's pixels, 0 to 1.
    """

    class_index: int
    outline: shapely.Polygon
    mean_confidence: float


def polygonise(
    class_map: ClassMap, confidence: ConfidenceMap, keep: Collection[int], tolerance_px: float, min_area_px: int
) -> list[TissuePolygon]:
    """Return the regions of the classes in `keep`, in raster order of their first pixels.

    Regions smaller than `min_area_px` are merged into their largest neighbour, so that no gaps arise; those that have
    only small neighbours stay (GDAL's sieve), unless all are small: then they merge into the largest of all. The
    tolerance is then lowered, to 0 if need be, until every polygon is valid and each class in `keep` has its area, but
    for the change allowed.

    Args:
        class_map: (H, W) uint8.
        confidence: (H, W) uint8, probability times 255.
        keep: Indices of the classes wanted.
        tolerance_px: How far outlines may be simplified: the square root of the largest triangle dropped; 0 is exact.
        min_area_px: Regions of fewer px are merged; 0 and 1 keep all.

    Raises:
        TooManyRegions: There are more than `MAX_REGIONS`, or more borders than `MAX_BORDER_PX`.
    """
    check_borders(class_map)
    traced, indices = _traced(merge_small(class_map, min_area_px))
    largest_px = int(shapely.area(traced).max())
    if largest_px < min_area_px:  # all are small, and nothing was merged
        traced, indices = _traced(merge_small(class_map, largest_px))
    exact = _noded(traced, class_map.shape)
    outlines = _simplified(exact, indices, keep, tolerance_px)
    confidences = _mean_confidences(exact, confidence)
    return [
        TissuePolygon(int(index), outline, float(mean))
        for index, outline, mean in zip(indices, outlines, confidences, strict=True)
        if index in keep
    ]


def check_borders(class_map: ClassMap) -> None:
    """Refuse a class map of longer borders than are traced, for which GDAL would hold up all threads for seconds.

    Raises:
        TooManyRegions: It has them.
    """
    length_px = int((class_map[1:] != class_map[:-1]).sum() + (class_map[:, 1:] != class_map[:, :-1]).sum())
    if length_px > MAX_BORDER_PX:
        raise TooManyRegions(
            f"the class map has {length_px} px of borders, over {MAX_BORDER_PX}: it is noise, or too large for"
            " polygons; send a smaller patch"
        )


def merge_small(class_map: ClassMap, min_area_px: int) -> ClassMap:
    """Return (H, W) uint8 `class_map`, regions of fewer px merged into their largest neighbours; see `polygonise`.

    Those that have only small neighbours stay. Takes 1.3 bytes of memory for each pixel, the result's among them.
    """
    threshold_px = min(min_area_px, class_map.size - 1)  # GDAL takes no more
    if threshold_px <= 1:
        return class_map
    with GDAL:
        merged: ClassMap = features.sieve(class_map, threshold_px, connectivity=_EDGES_ONLY)
    return merged


def _traced(class_map: ClassMap) -> tuple[NDArray[np.object_], NDArray[np.int_]]:
    """Return the outlines of all regions, along pixel edges, and the class of each."""
    if least_regions(class_map) > MAX_REGIONS:  # GDAL would trace all of them before it gives the first
        raise TooManyRegions(_TOO_MANY)
    with GDAL:
        regions = islice(features.shapes(class_map, connectivity=_EDGES_ONLY), MAX_REGIONS + 1)
        # One at a time: what GDAL gives are lists of pairs of numbers, many times as much memory as an outline.
        traced = [(shapely.geometry.shape(geometry), int(value)) for geometry, value in regions]
    if len(traced) > MAX_REGIONS:
        raise TooManyRegions(_TOO_MANY)
    return np.array([outline for outline, _ in traced]), np.array([value for _, value in traced])


def least_regions(class_map: ClassMap) -> int:
    """Return a number of regions that (H, W) `class_map` has at least: exactly those, where none has a hole.

    Pixels, less pairs of neighbours, plus blocks of four are a class's regions less its holes: Euler's characteristic
    of a set of squares that touch at edges (Gray 1971). NumPy counts them in some 20 ns a pixel, almost always without
    Python's lock.
    """
    rows = max(1, _COUNTED_PX // class_map.shape[1])
    found = np.zeros(_CLASSES, np.int64)
    for top in range(0, len(class_map), rows):
        block = class_map[top : top + rows + 1]  # with the next one's first row, of which no pixel counts here
        for index in np.flatnonzero(np.bincount(block.ravel(), minlength=_CLASSES)):
            pixels = block == index
            pairs = pixels[:, 1:] & pixels[:, :-1]
            below, fours = pixels[1:] & pixels[:-1], pairs[1:] & pairs[:-1]
            found[index] += np.count_nonzero(pixels[:rows]) - np.count_nonzero(pairs[:rows])
            found[index] += np.count_nonzero(fours) - np.count_nonzero(below)
    return int(found.clip(0).sum())


def _noded(outlines: NDArray[np.object_], shape: tuple[int, ...]) -> NDArray[np.object_]:
    """Give each outline a vertex wherever a neighbour has one: GDAL leaves them out where a border runs straight on.

    Only so are shared borders the same lines on both sides, which is what a coverage is.
    """
    rings, polygon_of_ring = shapely.get_rings(outlines, return_index=True)
    is_vertex = np.zeros((shape[0] + 1, shape[1] + 1), bool)
    columns, rows = shapely.get_coordinates(rings).astype(np.intp).T
    is_vertex[rows, columns] = True
    points, ring_of_point = shapely.get_coordinates(shapely.segmentize(rings, 1.0), return_index=True)
    columns, rows = points.round().astype(np.intp).T
    kept = is_vertex[rows, columns]
    noded = shapely.linearrings(points[kept].round(), indices=ring_of_point[kept])
    polygons: NDArray[np.object_] = shapely.polygons(noded, indices=polygon_of_ring)
    return polygons


def _simplified(
    exact: NDArray[np.object_], indices: NDArray[np.int_], keep: Collection[int], tolerance_px: float
) -> NDArray[np.object_]:
    kept = np.isin(np.arange(indices.max() + 1), list(keep))
    areas = np.bincount(indices, shapely.area(exact))
    allowed = np.maximum(MAX_AREA_CHANGE * areas, MAX_AREA_CHANGE_PX)
    for step_px in (tolerance_px, *(step_px for step_px in _STEPS_PX if step_px < tolerance_px)):
        outlines: NDArray[np.object_] = shapely.coverage_simplify(exact, step_px, simplify_boundary=False)
        change = np.abs(np.bincount(indices, shapely.area(outlines)) - areas)
        if (change <= allowed)[kept].all() and shapely.is_valid(outlines).all():
            return outlines
    return exact


def _mean_confidences(outlines: NDArray[np.object_], confidence: ConfidenceMap) -> NDArray[np.float64]:
    """Return the mean of (H, W) `confidence`, as 0 to 1, inside each of the outlines, which run along pixel edges."""
    rings, outline_of_ring = shapely.get_rings(outlines, return_index=True)
    sums = np.abs(_sums_inside(rings, confidence))
    _, first = np.unique(outline_of_ring, return_index=True)  # each outline's own ring comes before its holes
    of_outline = 2 * sums[first] - np.bincount(outline_of_ring, sums)
    means: NDArray[np.float64] = of_outline / shapely.area(outlines) / 255
    return means


def _sums_inside(rings: NDArray[np.object_], values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the sum of (H, W) `values` inside each ring; its sign is that of the ring's direction.

    What lies above and to the left of each corner is a summed-area table (Crow 1984); its differences along a ring's
    horizontal edges make up what is inside.
    """
    points, ring_of_point = shapely.get_coordinates(rings, return_index=True)
    columns, rows = points.astype(np.intp).T
    starts = np.flatnonzero((rows[1:] == rows[:-1]) & (ring_of_point[1:] == ring_of_point[:-1]))
    starts = starts[np.argsort(rows[starts], kind="stable")]
    height, width = values.shape
    step = max(1, _COUNTED_PX // width)
    tops = np.arange(0, height, step)  # row 0 of the table is 0
    blocks = np.split(starts, np.searchsorted(rows[starts], tops, side="right"))[1:]
    sums = np.zeros(len(rings), np.int64)
    table = np.zeros((1, width + 1), np.int64)
    for top, block in zip(tops, blocks, strict=True):
        above = table[-1]
        table = np.zeros((len(values[top : top + step]), width + 1), np.int64)
        np.cumsum(values[top : top + step], axis=0, out=table[:, 1:])
        np.cumsum(table, axis=1, out=table)
        table += above
        row = rows[block] - top - 1
        np.add.at(sums, ring_of_point[block], table[row, columns[block + 1]] - table[row, columns[block]])
    return sums
