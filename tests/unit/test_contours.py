"""Polygons of a map whose answer is known: what simplification does, and what is refused."""

import numpy as np
import pytest
import shapely

from app.errors import TooManyRegions
from app.imaging import contours
from app.imaging.contours import MAX_AREA_CHANGE, MAX_REGIONS, polygonise

SIDE = 300


def jagged() -> np.ndarray:
    """Three bands whose borders jump by a pixel from row to row, as a network's do."""
    jumps = np.random.default_rng(3).integers(-1, 2, (2, SIDE)).cumsum(axis=1)
    columns = np.arange(SIDE)
    class_map = np.zeros((SIDE, SIDE), np.uint8)
    class_map[columns[None] > (100 + jumps[0])[:, None]] = 1
    class_map[columns[None] > (200 + jumps[1])[:, None]] = 2
    return class_map


def polygons_of(class_map, tolerance, min_area=0, confidence=None):
    confidence = np.full_like(class_map, 204) if confidence is None else confidence
    return polygonise(class_map, confidence, (0, 1, 2), tolerance, min_area)


def vertices(polygons) -> int:
    return sum(int(shapely.get_num_coordinates(polygon.outline)) for polygon in polygons)


def test_more_tolerance_leaves_fewer_vertices():
    counts = [vertices(polygons_of(jagged(), tolerance)) for tolerance in (0, 0.75, 1.5, 3)]
    assert counts == sorted(counts, reverse=True)
    assert counts[2] < counts[0] / 3


def test_a_few_pixels_of_a_class_do_not_keep_the_rest_from_being_simplified():
    class_map = jagged()
    class_map[150:155, 50:54] = 2
    class_map[151, 54] = 2
    assert vertices(polygons_of(class_map, 1.5)) < vertices(polygons_of(class_map, 0)) / 3


def test_an_area_that_would_change_too_much_is_simplified_less():
    """A comb of thin teeth, which much tolerance would cut off."""
    class_map = np.zeros((SIDE, SIDE), np.uint8)
    class_map[:, 100:200] = 1
    class_map[::6, 200:206] = 1
    polygons = polygons_of(class_map, 10)
    for index in (0, 1):
        pixels = int((class_map == index).sum())
        area = sum(polygon.outline.area for polygon in polygons if polygon.class_index == index)
        assert abs(area - pixels) <= MAX_AREA_CHANGE * pixels


def test_the_patchs_own_border_is_not_touched():
    bounds = shapely.union_all([polygon.outline for polygon in polygons_of(jagged(), 3)])
    assert bounds.equals(shapely.box(0, 0, SIDE, SIDE))


def test_confidence_is_the_mean_of_each_regions_own_pixels():
    class_map = jagged()
    confidence = np.choose(class_map, [51, 102, 255]).astype(np.uint8)
    found = {polygon.class_index: polygon.mean_confidence for polygon in polygons_of(class_map, 1.5, 0, confidence)}
    assert found == pytest.approx({0: 0.2, 1: 0.4, 2: 1.0})


@pytest.mark.parametrize(("min_area", "regions"), [(12, 2), (13, 1)])
def test_a_region_of_just_the_least_area_stays(min_area, regions):
    class_map = np.zeros((60, 60), np.uint8)
    class_map[10:13, 10:14] = 1
    assert len(polygons_of(class_map, 0, min_area)) == regions


@pytest.mark.parametrize("min_area", [60, 61, 100, 2**31 - 1])
def test_where_all_regions_are_small_the_largest_takes_the_others(min_area):
    class_map = np.zeros((10, 10), np.uint8)
    class_map[:, 6:] = 1
    class_map[4:6, 8:9] = 2
    assert [(each.class_index, each.outline.area) for each in polygons_of(class_map, 0, min_area)] == [(0, 100)]


@pytest.mark.parametrize("counted_px", [1, 7 * SIDE, SIDE**2 - 1])
def test_confidence_is_the_same_however_many_pixels_are_counted_at_once(monkeypatch, counted_px):
    confidence = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    at_once = polygons_of(jagged(), 1.5, 0, confidence)
    monkeypatch.setattr(contours, "_COUNTED_PX", counted_px)
    assert polygons_of(jagged(), 1.5, 0, confidence) == at_once


def test_long_borders_are_refused_before_they_are_traced():
    staircase = (np.add.outer(np.arange(1500), np.arange(1500)) // 2 % 2).astype(np.uint8)
    with pytest.raises(TooManyRegions, match="px of borders"):
        polygons_of(staircase, 1.5)


def test_many_dots_are_refused_before_they_are_traced(monkeypatch):
    """Else GDAL traces all of them, and no other thread runs meanwhile."""
    monkeypatch.setattr(contours.features, "shapes", lambda *_, **__: pytest.fail("they are traced"))
    class_map = np.zeros((400, 400), np.uint8)
    class_map[1::2, 1::2] = 1  # holes of the rest
    with pytest.raises(TooManyRegions, match=f"more than {MAX_REGIONS} regions"):
        polygons_of(class_map, 0)


def test_there_may_be_as_many_regions_as_are_allowed_and_not_one_more():
    class_map = np.zeros((400, 400), np.uint8)
    dots = class_map[::2, ::2].reshape(-1).copy()
    dots[: MAX_REGIONS - 1] = 1  # the rest of the map is a region too
    class_map[::2, ::2] = dots.reshape(200, 200)
    assert len(polygons_of(class_map, 0)) == MAX_REGIONS
    class_map[-2, -2] = 1
    with pytest.raises(TooManyRegions, match=f"more than {MAX_REGIONS} regions"):
        polygons_of(class_map, 0)
