"""A slide's tissue as regions on the slide: where they lie, and how coarse they become where they are too many."""

import numpy as np
import pytest
import shapely

from app.imaging import contours
from app.pathology.geometry import Size
from app.segmentation import outlines
from app.segmentation.outlines import slide_outlines

KEEP = (0, 1, 2)


def blocks(*placed: tuple[int, int, int, int, int], width: int = 300, height: int = 200) -> np.ndarray:
    """Return background with rectangles: class, left, top, right and bottom of each."""
    class_map = np.full((height, width), 3, np.uint8)
    for index, left, top, right, bottom in placed:
        class_map[top:bottom, left:right] = index
    return class_map


def found(class_map, downsample=2.0, slide=None):
    slide = slide or Size(*(round(downsample * side) for side in class_map.shape[::-1]))
    return slide_outlines(class_map, np.full_like(class_map, 204), KEEP, downsample, slide)


def test_regions_are_in_pixels_of_the_finest_level():
    regions, step = found(blocks((0, 10, 20, 60, 80), (2, 100, 0, 300, 50)), downsample=2.5)
    assert step == 1
    assert {region.class_index: region.outline.bounds for region in regions} == {
        0: (25, 50, 150, 200),
        2: (250, 0, 750, 125),
    }
    assert [region.mean_confidence for region in regions] == pytest.approx([0.8, 0.8])


def test_no_region_reaches_past_the_slide():
    regions, _ = found(blocks((1, 200, 100, 300, 200)), slide=Size(599, 398))
    assert [region.outline.bounds for region in regions] == [(400, 200, 599, 398)]


def test_small_regions_join_their_neighbours():
    regions, _ = found(blocks((0, 0, 0, 100, 100), (1, 50, 50, 57, 59), (2, 200, 100, 208, 108)))
    assert [(region.class_index, region.outline.area) for region in regions] == [(0, 40_000), (2, 256)]


@pytest.mark.parametrize(
    ("name", "bound"), [("MAX_BORDER_PX", 1200), ("MAX_REGIONS", 8), ("_MOST_TRACED_PIXELS", 200 * 150)]
)
def test_a_map_that_is_too_much_to_trace_is_traced_coarser_and_covers_the_same_place(monkeypatch, name, bound):
    monkeypatch.setattr(outlines if name.startswith("_") else contours, name, bound)
    lines = [(0, left, 0, left + 1, 80) for left in range(100, 300, 18)] * (name == "MAX_REGIONS")
    teeth = [(1, left, 150, left + 3, 175) for left in range(0, 300, 12)] * (name == "MAX_BORDER_PX")
    regions, step = found(blocks((0, 16, 32, 96, 128), *lines, *teeth))
    assert step == 2
    [large] = [region.outline for region in regions if region.class_index == 0 and region.outline.area > 10_000]
    assert large.equals(shapely.box(32, 64, 192, 256))


@pytest.mark.parametrize(("name", "bound"), [("MAX_BORDER_PX", 1200), ("MAX_REGIONS", 8)])
def test_what_is_small_decides_no_step(monkeypatch, name, bound):
    monkeypatch.setattr(contours, name, bound)
    specks = [(2, left, top, left + 2, top + 2) for left in range(100, 300, 8) for top in range(0, 200, 8)]
    regions, step = found(blocks((0, 16, 32, 96, 128), *specks))
    assert step == 1
    [large] = regions
    assert large.outline.equals(shapely.box(32, 64, 192, 256))


def test_what_a_coarser_grid_cuts_off_joins_its_neighbour(monkeypatch):
    """A neck of one px is not on every second px, and leaves a head of 8 px by 6."""
    monkeypatch.setattr(outlines, "_MOST_TRACED_PIXELS", 200 * 150)
    regions, step = found(blocks((0, 16, 32, 96, 128), (0, 96, 60, 110, 61), (0, 110, 58, 118, 64)))
    assert step == 2
    assert [region.outline.bounds for region in regions] == [(32, 64, 192, 256)]


def test_noise_ends_in_regions_too():
    noise = np.random.default_rng(0).integers(0, 4, (600, 600), dtype=np.uint8)
    regions, step = found(noise)
    assert step > 1
    assert all(region.outline.is_valid for region in regions)
