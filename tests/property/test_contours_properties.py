"""Polygons, whatever the class map: each rule that viewers put on them, and that nothing of the map is lost."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio import features

from app.imaging import contours
from app.imaging.contours import MAX_AREA_CHANGE, MAX_AREA_CHANGE_PX, least_regions, polygonise
from app.interop import asap, dsa, geojson
from app.interop.annotations import Annotations
from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import Placement
from tests.asap import paint_asap
from tests.conftest import ROOT
from tests.dicom_results import AS_IT_IS
from tests.fakes import manifest

EVERY = range(len(WSSS4LUAD))

small_maps = arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3))
blocky_maps = st.tuples(small_maps, st.integers(1, 9)).map(
    lambda drawn: drawn[0].repeat(drawn[1], 0).repeat(drawn[1], 1)
)
tolerances = st.sampled_from([0.0, 0.5, 1.5, 4.0, 10.0])
places = st.builds(
    Placement,
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.sampled_from([0.25, 1.0, 2.0, 4.0001, 16.0]),
)


def polygons_of(class_map, tolerance=0.0, min_area=0, keep=EVERY):
    return polygonise(class_map, np.full_like(class_map, 204), keep, tolerance, min_area)


@given(blocky_maps, tolerances)
def test_polygons_are_valid_and_closed_and_cover_the_map_without_gaps_or_overlaps(class_map, tolerance):
    polygons = polygons_of(class_map, tolerance)
    outlines = [polygon.outline for polygon in polygons]
    assert all(outline.geom_type == "Polygon" and outline.is_valid and not outline.is_empty for outline in outlines)
    height, width = class_map.shape
    assert shapely.union_all(outlines).equals(shapely.box(0, 0, width, height))
    assert sum(outline.area for outline in outlines) == height * width
    assert shapely.coverage_is_valid(outlines)


@given(blocky_maps, st.sampled_from([1, 30, 10_000]))
def test_no_map_has_fewer_regions_than_are_counted_beforehand(class_map, counted_px):
    """Their holes are what may be missing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contours, "_COUNTED_PX", counted_px)
        least = least_regions(class_map)
    polygons = polygons_of(class_map)
    holes = sum(len(polygon.outline.interiors) for polygon in polygons)
    assert len(polygons) - holes <= least <= len(polygons)


@given(blocky_maps, tolerances)
def test_each_class_keeps_its_area(class_map, tolerance):
    polygons = polygons_of(class_map, tolerance)
    for index in EVERY:
        pixels = int((class_map == index).sum())
        area = sum(polygon.outline.area for polygon in polygons if polygon.class_index == index)
        assert abs(area - pixels) <= max(MAX_AREA_CHANGE * pixels, MAX_AREA_CHANGE_PX)


@given(small_maps)
def test_without_tolerance_the_polygons_are_the_map(class_map):
    shapes = [(polygon.outline, polygon.class_index) for polygon in polygons_of(class_map)]
    assert np.array_equal(features.rasterize(shapes, out_shape=class_map.shape, fill=9, dtype="uint8"), class_map)


@given(small_maps, st.integers(1, 5), st.sampled_from([1, 30, 10_000]), st.integers(0, 2**32 - 1))
def test_each_region_has_the_mean_of_its_pixels(class_map, side, counted_px, seed):
    class_map = class_map.repeat(side, 0).repeat(side, 1)
    confidence = np.random.default_rng(seed).integers(0, 256, class_map.shape, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contours, "_COUNTED_PX", counted_px)
        polygons = polygonise(class_map, confidence, EVERY, 0.0, 0)
    for polygon in polygons:
        inside = features.rasterize([(polygon.outline, 1)], out_shape=class_map.shape, dtype="uint8") == 1
        assert polygon.mean_confidence == pytest.approx(confidence[inside].mean() / 255)


@given(small_maps, st.integers(2, 30))
def test_small_regions_are_merged_and_leave_no_gaps(class_map, min_area):
    polygons = polygons_of(class_map, min_area=min_area)
    assert sum(polygon.outline.area for polygon in polygons) == class_map.size
    assert len(polygons) <= len(polygons_of(class_map))


@given(blocky_maps, tolerances, places)
def test_features_hold_every_rule_of_the_viewers(class_map, tolerance, place):
    polygons = polygons_of(class_map, tolerance, keep=(0, 1, 2))
    document = json.loads(geojson.document(Annotations(polygons, place, manifest(), "0" * 64, AS_IT_IS)))
    assert document["type"] == "FeatureCollection"
    ids = [feature["id"] for feature in document["features"]]
    assert len(set(ids)) == len(ids) == len(polygons)
    for feature, polygon in zip(document["features"], polygons, strict=True):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings)
        assert [shapely.is_ccw(shapely.LinearRing(ring)) for ring in rings] == [True] + [False] * (len(rings) - 1)
        placed = shapely.Polygon(rings[0], rings[1:])
        assert placed.is_valid
        assert np.isclose(placed.area, polygon.outline.area * place.downsample**2, rtol=1e-3)
        properties = feature["properties"]
        tissue = WSSS4LUAD[polygon.class_index]
        assert properties["name"] == tissue.name
        assert properties["color"] == properties["classification"]["color"] == list(tissue.color)
        assert properties["classification"]["name"] == tissue.name.capitalize()
        assert all(isinstance(value, float) for value in properties["measurements"].values())
        assert properties["measurements"]["mean_probability"] == 0.8
        assert all(isinstance(value, str) for value in properties["metadata"].values())


@given(blocky_maps, places)
def test_neighbours_share_their_borders_also_where_they_are_placed(class_map, place):
    polygons = polygons_of(class_map, 1.5)
    document = json.loads(geojson.document(Annotations(polygons, place, manifest(), "0" * 64, AS_IT_IS)))
    rings = [feature["geometry"]["coordinates"] for feature in document["features"]]
    assert shapely.coverage_is_valid([shapely.Polygon(each[0], each[1:]) for each in rings])


@given(blocky_maps)
def test_rings_of_asap_painted_in_order_are_the_map(class_map):
    annotations = Annotations(polygons_of(class_map), Placement(), manifest(), "0" * 64, AS_IT_IS)
    assert np.array_equal(paint_asap(asap.document(annotations), class_map.shape), class_map)


@given(blocky_maps, places)
def test_the_same_patch_has_the_same_ids_and_another_place_others(class_map, place):
    def ids(where):
        annotations = Annotations(polygons_of(class_map), where, manifest(), "0" * 64, AS_IT_IS)
        return [element["id"] for element in json.loads(dsa.document(annotations))["elements"]]

    assert ids(place) == ids(place)
    elsewhere = Placement(place.x_px + 1, place.y_px, place.downsample)
    assert set(ids(place)).isdisjoint(ids(elsewhere))


def test_threads_polygonise_without_disturbing_one_another():
    class_map = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1) % 4
    with ThreadPoolExecutor(4) as threads:
        counts = set(threads.map(lambda _: len(polygons_of(class_map, 1.5, 4)), range(400)))
    assert len(counts) == 1


def test_no_thread_lets_rasterios_warnings_out():
    """In a process of its own, whose filters are the service's: rasterio's and shapely's threads swap them."""
    code = """
import numpy as np
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from app.imaging.contours import polygonise
class_map = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(8, 0).repeat(8, 1) % 4
with ThreadPoolExecutor(4) as threads:
    list(threads.map(lambda _: polygonise(class_map, class_map, (0, 1, 2), 1.5, 4), range(400)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
