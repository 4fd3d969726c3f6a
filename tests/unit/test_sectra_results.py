"""Sectra's orders and results, without a server."""

import numpy as np
import pytest
import shapely
from sectra_client.mock_server import MockSectraServer
from sectra_client.schemas import AdaptedResult, Result

from app.errors import AreaOutside
from app.imaging.contours import TissuePolygon
from app.interop.sectra import AreaTissue, areas, message_result, order_key, replacing, tissue_result
from app.pathology.geometry import Size
from tests import sectra_pacs
from tests.fakes import manifest
from tests.sectra_pacs import rectangle, whole_slide

PACS = MockSectraServer()
SLIDE = Size(1000, 400)


def drawn(points: list[tuple[float, float]]) -> shapely.MultiPolygon:
    [area] = areas(sectra_pacs.area(PACS, "id", points), SLIDE)
    return area


def test_coordinates_are_divided_by_the_width_in_both_directions():
    assert drawn(rectangle(0.1, 0.1, 0.5, 0.3)).bounds == (100, 100, 500, 300)


def test_a_whole_slide_is_an_area_of_all_of_it():
    [area] = areas(whole_slide(PACS, "id"), SLIDE)
    assert area.bounds == (0, 0, 1000, 400)


def test_what_runs_off_the_slide_is_cut_off():
    assert drawn(rectangle(-5, -5, 5, 0.2)).bounds == (0, 0, 1000, 200)


def test_a_slide_that_an_area_leaves_and_enters_again_holds_parts_of_it():
    cut = drawn([(0.1, 0.2), (0.2, 0.6), (0.3, 0.2), (0.35, 0.6), (0.2, 2), (0.05, 0.6)])
    assert len(cut.geoms) == 2
    assert cut.is_valid


def test_a_star_drawn_in_one_line_encloses_its_middle():
    turns = np.deg2rad(90 + 144 * np.arange(5))
    star = drawn([(0.5 + 0.1 * x, 0.2 + 0.1 * y) for x, y in zip(np.cos(turns), np.sin(turns), strict=True)])
    assert star.contains(shapely.Point(500, 200))
    assert star.is_valid


def test_an_order_of_no_areas_is_refused():
    with pytest.raises(AreaOutside, match="no area"):
        areas(sectra_pacs.areas(PACS, "id", []), SLIDE)


@pytest.mark.parametrize("far", [1e300, -1e300, 1001.0, float("nan"), float("inf")])
def test_far_away_is_outside(far):
    with pytest.raises(AreaOutside):
        drawn([(far, far), (far / 2, far), (far, far / 2)])


def test_the_key_tells_what_was_ordered_and_nothing_of_when():
    first, second = (sectra_pacs.area(PACS, "id", rectangle(0.1, 0.1, 0.2, 0.2)) for _ in range(2))
    assert first.cancellationToken != second.cancellationToken
    assert order_key(first) == order_key(second)
    assert order_key(first) != order_key(sectra_pacs.area(PACS, "id", rectangle(0.1, 0.1, 0.2, 0.21)))
    assert order_key(first) != order_key(whole_slide(PACS, "id"))


def tissue(index: int, outline: shapely.Polygon) -> TissuePolygon:
    return TissuePolygon(index, outline, 0.9)


def test_holes_become_closed_lines_and_areas_keep_their_corners():
    ring = shapely.Polygon(shapely.box(100, 100, 300, 300).exterior, [shapely.box(150, 150, 200, 200).exterior])
    found = AreaTissue(shapely.MultiPolygon([shapely.box(0, 0, 1000, 400)]), [tissue(0, ring)], (3, 1, 0, 4), None)
    result = tissue_result(whole_slide(PACS, "id"), [found], SLIDE, manifest(), "9.9")
    assert Result.model_validate(result).applicationVersion == "9.9"
    _, tumor = result["data"]["result"]["content"]
    assert sorted((point["x"], point["y"]) for point in tumor["polygons"][0]["points"]) == [
        (0.1, 0.1),
        (0.1, 0.3),
        (0.3, 0.1),
        (0.3, 0.3),
    ]
    hole = tumor["polylines"][0]["points"]
    assert len(hole) == 5
    assert hole[0] == hole[-1]
    assert result["displayResult"].startswith("tumor 37.5 %, stroma 12.5 %, normal 0.0 %, background 50.0 %")
    assert result["displayProperties"]["um/px"] == "unknown"


def test_an_area_of_glass_still_shows_its_outline_and_composition():
    found = AreaTissue(shapely.MultiPolygon([shapely.box(10, 20, 30, 40)]), [], (0, 0, 0, 400), 1.0)
    [outline] = tissue_result(whole_slide(PACS, "id"), [found], SLIDE, manifest(), "9.9")["data"]["result"]["content"]
    assert len(outline["polygons"]) == 1
    assert outline["labels"][0]["location"] == {"x": 0.01, "y": 0.02}
    assert "background 100.0 %" in outline["labels"][0]["label"]


def test_a_replacement_names_the_version_it_replaces():
    result = message_result(whole_slide(PACS, "id"), "on its way", SLIDE, "9.9")
    replacement = replacing(result, "version")
    assert AdaptedResult.model_validate(replacement).versionId == "version"
    assert {**result, "versionId": "version"} == replacement
