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
"""Regions in one class map. A section of 4096 px has about 5,000; noise of that size, 400,000 that take minutes."""
MAX_AREA_CHANGE = 0.005
"""Share of a class's pixels by which simplification may change its area."""
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
    only small neighbours stay (GDAL's sieve). The tolerance is lowered, to 0 if need be, until every polygon is valid
    and each class keeps its area but for `MAX_AREA_CHANGE`.

    Args:
        class_map: (H, W) uint8.
        confidence: (H, W) uint8, probability times 255.
        keep: Indices of the classes wanted.
        tolerance_px: How far outlines may be simplified: the square root of the largest triangle dropped; 0 is exact.
        min_area_px: Regions of fewer px are merged; 0 and 1 keep all.

    Raises:
        TooManyRegions: There are more than `MAX_REGIONS`.
    """
    threshold_px = min(min_area_px, class_map.size - 1)  # GDAL takes no more
    if threshold_px > 1:
        with GDAL:
            class_map = features.sieve(class_map, threshold_px, connectivity=_EDGES_ONLY)
    with GDAL:
        traced = list(islice(features.shapes(class_map, connectivity=_EDGES_ONLY), MAX_REGIONS + 1))
    if len(traced) > MAX_REGIONS:
        raise TooManyRegions(
            f"the class map has more than {MAX_REGIONS} regions; merge the small ones, as with min_area=64"
        )
    exact = _noded(np.array([shapely.geometry.shape(geometry) for geometry, _ in traced]), class_map.shape)
    indices = np.array([int(value) for _, value in traced])
    outlines = _simplified(exact, indices, tolerance_px)
    confidences = _mean_confidences(exact, confidence)
    return [
        TissuePolygon(int(index), outline, float(mean))
        for index, outline, mean in zip(indices, outlines, confidences, strict=True)
        if index in keep
    ]


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


def _simplified(exact: NDArray[np.object_], indices: NDArray[np.int_], tolerance_px: float) -> NDArray[np.object_]:
    areas = np.bincount(indices, shapely.area(exact))
    while tolerance_px >= 0.5:  # half a pixel's corner is the smallest triangle on a grid: 0.5 px2, tolerance 0.71
        outlines: NDArray[np.object_] = shapely.coverage_simplify(exact, tolerance_px, simplify_boundary=False)
        change = np.abs(np.bincount(indices, shapely.area(outlines)) - areas)
        if shapely.is_valid(outlines).all() and (change <= MAX_AREA_CHANGE * areas).all():
            return outlines
        tolerance_px /= 2
    return exact


def _mean_confidences(outlines: NDArray[np.object_], confidence: ConfidenceMap) -> NDArray[np.float64]:
    """Return the mean of (H, W) `confidence`, as 0 to 1, under each of the outlines, which cover it."""
    numbered = ((outline, number) for number, outline in enumerate(outlines))
    with GDAL:
        regions = features.rasterize(numbered, out_shape=confidence.shape, dtype=np.int32).ravel()
    counts = np.bincount(regions, minlength=len(outlines))
    return np.bincount(regions, confidence.ravel(), len(outlines)) / counts / 255
