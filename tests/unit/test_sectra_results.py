"""Sectra's orders and results, without a server."""

from importlib.metadata import version

import numpy as np
import pytest
import shapely
from sectra_client.mock_server import MockSectraServer
from sectra_client.schemas import AdaptedResult, Result

from app.errors import AreaOutside, ImageTooLarge
from app.imaging.contours import TissuePolygon
from app.interop.sectra import AreaTissue, message_result, order_key, replacing, tissue_result
from app.interop.sectra_areas import area, ordered_polygons, whole
from app.pathology.geometry import Size
from tests import sectra_pacs
from tests.fakes import manifest
from tests.sectra_pacs import rectangle, whole_slide

PACS = MockSectraServer()
SLIDE = Size(1000, 400)


def drawn(points: list[tuple[float, float]]) -> shapely.MultiPolygon:
    [polygon] = ordered_polygons(sectra_pacs.area(PACS, "id", points))
    return area(polygon, SLIDE)


def test_coordinates_are_divided_by_the_width_in_both_directions():
    assert drawn(rectangle(0.1, 0.1, 0.5, 0.3)).bounds == (100, 100, 500, 300)


def test_a_whole_slide_is_an_area_of_all_of_it():
    assert ordered_polygons(whole_slide(PACS, "id")) is None
    assert whole(SLIDE).bounds == (0, 0, 1000, 400)


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
        ordered_polygons(sectra_pacs.areas(PACS, "id", []))


def outline(points: int, turns: float = 1.02) -> list[tuple[float, float]]:
    """A wavy line around the middle that runs over its own beginning."""
    angles = np.linspace(0, 2 * np.pi * turns, points)
    radii = 0.15 + 0.01 * np.sin(9.3 * angles)
    return [(0.5 + r * float(np.cos(a)), 0.2 + r * float(np.sin(a))) for r, a in zip(radii, angles, strict=True)]


def test_a_long_line_that_ends_across_its_beginning_is_an_area():
    found = drawn(outline(5000))
    assert found.is_valid
    assert found.contains(shapely.Point(500, 200))
    assert np.isclose(found.area, np.pi * 150**2, rtol=0.02)


def test_a_line_of_more_points_than_a_hand_draws_is_refused():
    with pytest.raises(ImageTooLarge, match="has 5001 points; draw it with at most 5000"):
        drawn(outline(5001))


@pytest.mark.parametrize("points", [100, 5000])
def test_a_tangle_is_refused_before_it_is_unravelled(points, monkeypatch):
    monkeypatch.setattr(shapely, "make_valid", None)
    tangle = np.random.default_rng(3).random((points, 2)).tolist()
    with pytest.raises(ImageTooLarge, match="crosses itself more than 1000 times"):
        drawn(tangle)


def test_a_line_drawn_again_and_again_is_refused_as_a_tangle():
    with pytest.raises(ImageTooLarge, match="crosses itself"):
        drawn([(0.1, 0.1), (0.9, 0.3)] * 200)


def test_a_pen_that_rests_makes_no_tangle():
    line = outline(200)
    assert drawn(line[:100] + [line[100]] * 500 + line[100:]).equals(drawn(line))


def test_one_point_again_and_again_encloses_nothing():
    with pytest.raises(AreaOutside, match="encloses nothing"):
        drawn([(0.5, 0.2)] * 4)


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
    result = tissue_result(whole_slide(PACS, "id"), [found], SLIDE, manifest(), ())
    assert Result.model_validate(result).applicationVersion == version("tessera")
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
    assert result["displayResult"] == (
        "tumor 37.5 %, stroma 12.5 %, normal 0.0 %, background 50.0 %;"
        " of the tissue tumor 75.0 %, stroma 25.0 %, normal 0.0 % (research use only)"
    )
    assert result["displayProperties"]["tumor"] == "37.5 % (75.0 % of the tissue)"
    assert result["displayProperties"]["background"] == "50.0 %"
    assert result["displayProperties"]["um/px"] == "unknown"
    assert "warnings" not in result["displayProperties"]


def test_an_area_of_glass_still_shows_its_outline_and_composition():
    found = AreaTissue(shapely.MultiPolygon([shapely.box(10, 20, 30, 40)]), [], (0, 0, 0, 400), 1.0)
    [outline] = tissue_result(whole_slide(PACS, "id"), [found], SLIDE, manifest(), ())["data"]["result"]["content"]
    assert len(outline["polygons"]) == 1
    assert outline["labels"][0]["location"] == {"x": 0.01, "y": 0.02}
    assert "background 100.0 %; no tissue (research use only)" in outline["labels"][0]["label"]


def test_a_replacement_names_the_version_it_replaces():
    result = message_result(whole_slide(PACS, "id"), "on its way", SLIDE)
    replacement = replacing(result, "version")
    assert AdaptedResult.model_validate(replacement).versionId == "version"
    assert {**result, "versionId": "version"} == replacement
