"""What the page tells of places and sizes: the class under the mouse, outlines, the ruler, areas, the table of all."""

import csv
import io
import json
import re
from codecs import BOM_UTF8

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from app.pathology.arrays import RgbImage
from app.segmentation.files import columns
from tests.e2e.browser import eventually
from tests.e2e.viewer_page import (
    IMAGE,
    MASK,
    QUARTERS,
    SIDE,
    STAGE,
    arrived,
    assert_seen,
    behind_gateway,
    blended,
    equal,
    pick,
    picture_of,
    show,
    upload,
)
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import BLUE, GREEN, WHITE, encoded, plain, quarters

UM = {"µm": 1, "mm": 1000}
LONGEST_PX = 120


def box(page: Page, selector: str) -> dict[str, float]:
    found = page.locator(selector).bounding_box()
    assert found is not None
    return dict(found)


def point_at(page: Page, pane: str, right: float, down: float) -> None:
    """Move the mouse to a place in quarters of a side from the middle; the image fills the pane's shorter side."""
    pane_box = box(page, pane)
    side = min(pane_box["width"], pane_box["height"])
    x, y = pane_box["x"] + pane_box["width"] / 2, pane_box["y"] + pane_box["height"] / 2
    page.mouse.move(x + right * side / 4, y + down * side / 4)


def at_rest(pane: Locator) -> RgbImage:
    """Return the picture of a pane that has come to rest after a movement."""
    pictures = [picture_of(pane)]

    def rests() -> None:
        pictures.append(picture_of(pane))
        np.testing.assert_array_equal(pictures[-1], pictures[-2])

    eventually(rests)
    return pictures[-1]


@pytest.mark.parametrize("pane", ["#left", "#right"])
def test_the_class_under_the_mouse_is_named(page, pane):
    show(page)
    pick(page, "Side by side")
    for name, (right, down) in QUARTERS.items():
        point_at(page, pane, right, down)
        x, y = (round(SIDE / 2 + step * SIDE / 4) for step in (right, down))

        def is_named(name: str = name, x: int = x, y: int = y) -> None:
            at = re.fullmatch(rf"{name.capitalize()}, at (\d+), (\d+) px", page.locator("#pointed").inner_text())
            assert at is not None
            assert abs(int(at[1]) - x) <= 1
            assert abs(int(at[2]) - y) <= 1

        eventually(is_named)  # the view learns in the next frame that it is half as wide
    pick(page, "Confidence")
    expect(page.locator("#busy")).to_be_empty()
    point_at(page, pane, *QUARTERS["stroma"])
    expect(page.locator("#pointed")).to_contain_text("confidence 78%")


def test_what_comes_under_a_mouse_at_rest_is_named(page):
    show(page)
    page.get_by_role("button", name="Zoom in").click()
    point_at(page, "#left", -0.3, -0.3)
    said = page.locator("#pointed")
    expect(said).to_contain_text("Tumor, at")
    page.locator("#left").get_by_role("application").focus()
    for _ in range(10):  # how far a key moves the picture depends on how many frames are drawn meanwhile
        page.keyboard.press("ArrowRight", delay=300)
        if "Stroma" in said.inner_text():
            break
    expect(said).to_contain_text("Stroma, at")
    pick(page, "Confidence")
    point_at(page, "#left", 0.5, -0.3)
    page.get_by_role("radio", name="Confidence").focus()
    page.keyboard.press("ArrowLeft")
    expect(said).not_to_contain_text("confidence")
    page.keyboard.press("ArrowRight")
    expect(said).to_contain_text("confidence 78%")


def test_beside_the_image_nothing_is_named(page):
    show(page, upload("wide.png", encoded(plain(BLUE, 240, 60))))
    point_at(page, "#left", 0, 0)
    expect(page.locator("#pointed")).to_contain_text("Tumor, at 1")
    pane = box(page, "#left")
    page.mouse.move(pane["x"] + pane["width"] / 2, pane["y"] + 5)
    expect(page.locator("#pointed")).to_be_empty()
    point_at(page, "#left", 0, 0)
    expect(page.locator("#pointed")).not_to_be_empty()
    page.mouse.move(pane["x"] - 30, pane["y"])
    expect(page.locator("#pointed")).to_be_empty()


def ruled(page: Page) -> float:
    """Return the size of a screen's pixel in the tissue, in um, as the ruler has it."""
    length, unit = page.locator("#ruler").inner_text().split()
    assert re.fullmatch("0\\.0*[125]|[125]0*", length)
    width = box(page, "#ruler")["width"]
    assert width <= LONGEST_PX + 0.1
    return float(length) * UM[unit] / width


def test_the_ruler_is_as_long_as_it_says_at_every_enlargement(page):
    page.get_by_label("Pixel size", exact=True).fill("0.5")
    show(page)

    def fits(enlargement: float) -> None:
        pane = box(page, "#left")
        expected = 0.5 * SIDE / (min(pane["width"], pane["height"]) * enlargement)
        assert ruled(page) == pytest.approx(expected, rel=0.03)

    eventually(lambda: fits(1))
    for steps in (1, 2, 3):
        page.get_by_role("button", name="Zoom in").click()
        eventually(lambda steps=steps: fits(1.5**steps))
    page.set_viewport_size({"width": 900, "height": 700})
    page.get_by_role("button", name="Fit").click()
    eventually(lambda: fits(1))


def test_without_a_pixel_size_there_is_no_ruler_and_no_area(page):
    page.get_by_label("Pixel size", exact=True).fill("0.5")
    show(page)
    expect(page.locator("#ruler")).to_be_visible()
    expect(page.get_by_role("row").nth(1)).to_contain_text("25.0%33.3% of tissue0.0041 mm²")
    page.get_by_label("Pixel size", exact=True).fill("")
    show(page, upload("unknown.png"))
    page.get_by_role("option").nth(1).click()
    expect(page.get_by_role("heading", name="unknown.png")).to_be_visible()
    expect(page.locator("#ruler")).to_be_hidden()
    expect(page.get_by_role("row").nth(1)).to_have_text("Tumor25.0%33.3% of tissue100.0%")


def test_a_large_field_is_ruled_in_millimetres(page):
    page.get_by_label("Pixel size", exact=True).fill("10")
    show(page, upload("large.png", encoded(plain(BLUE, 1024, 1024))))
    expect(page.locator("#ruler")).to_contain_text(" mm")
    pane = box(page, "#left")
    assert ruled(page) == pytest.approx(10 * 1024 / min(pane["width"], pane["height"]), rel=0.03)


def test_outlines_leave_the_tissue_inside_as_it_is(page):
    show(page)
    page.get_by_label("Patterns").check()
    pick(page, "Outlines")
    left = page.locator("#left")
    assert_seen(left, IMAGE)  # no pattern either
    expect(page.get_by_label("Patterns")).to_be_disabled()
    expect(page.locator("#opacity-value")).to_have_text("100%")

    def rims() -> None:
        picture = picture_of(left)
        height, width = picture.shape[:2]
        side = min(height, width)
        # Across the border of tumor (left) and stroma, half of the way down the upper quarters.
        row = picture[height // 2 - side // 4, width // 2 - side // 8 : width // 2 + side // 8]
        tumor, stroma = (np.flatnonzero(np.abs(row - MASK[name]).max(axis=1) <= 1) for name in ("tumor", "stroma"))
        assert 1 <= len(tumor) <= side / 50
        assert 1 <= len(stroma) <= side / 50
        assert tumor[-1] + 1 == stroma[0]

    eventually(rims)
    page.get_by_role("checkbox", name="Tumor").uncheck()
    pick(page, "Side by side")
    assert_seen(page.locator("#right"), dict.fromkeys(QUARTERS, STAGE))
    expect(page.locator("#right-caption")).to_have_text("Outlines")


def test_what_is_smaller_than_a_rim_is_all_rim(page):
    image = np.full((SIDE * 4, SIDE * 4, 3), BLUE, np.uint8)
    middle = SIDE * 2
    image[middle - 1 : middle + 2, middle - 1 : middle + 2] = GREEN
    show(page, upload("island.png", encoded(image)))
    pick(page, "Outlines")
    for _ in range(8):
        page.get_by_role("button", name="Zoom in").click()

    def ringed() -> None:
        picture = picture_of(page.locator("#left"))
        height, width = picture.shape[:2]
        row = picture[height // 2, width // 2 - 150 : width // 2 + 150]
        order = [name for name in map(name_of, row) if name is not None]
        assert [name for name, before in zip(order, [None, *order], strict=False) if name != before] == [
            *("image", "tumor", "stroma", "tumor", "image")
        ]

    def name_of(seen: np.ndarray) -> str | None:
        known = {"tumor": MASK["tumor"], "stroma": MASK["stroma"], "image": BLUE}
        return next((name for name, colour in known.items() if np.abs(seen - colour).max() <= 1), None)

    eventually(ringed)


def test_a_patch_that_was_moved_without_enlarging_keeps_its_place(page):
    show(page, upload("one.png"), upload("two.png"))
    left = page.locator("#left")
    before = at_rest(left)
    left.get_by_role("application").press("ArrowRight", delay=300)
    moved = at_rest(left)
    assert np.abs(moved - before).max() > 100
    for option in (1, 0):
        page.get_by_role("option").nth(option).click()
        expect(page.locator("#busy")).to_be_empty()
    inner = np.s_[30:-30, 30:-30]
    eventually(lambda: np.testing.assert_allclose(picture_of(left)[inner], moved[inner], atol=1))


def test_a_late_failure_of_the_confidence_leaves_the_outlines(visit):
    page = visit.page
    show(page)
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/segment*view=confidence*", hold)
    pick(page, "Confidence")
    arrived(page, held, 1)
    pick(page, "Outlines")
    held[0].fulfill(status=500)
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_role("radio", name="Outlines")).to_be_checked()
    assert visit.failed == ["500"]


def test_a_button_that_goes_hands_the_focus_to_the_list(page):
    show(page)
    page.get_by_role("button", name="Table").focus()
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        list(encoded(quarters(SIDE, SIDE))),
    )
    expect(page.get_by_role("option")).to_have_count(2)
    assert page.evaluate("document.activeElement !== document.body")


def test_each_patch_keeps_its_place(page):
    show(page, upload("one.png"), upload("two.png"))
    left = page.locator("#left")
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()

    def moved() -> None:
        left.get_by_role("application").press("ArrowRight", delay=300)  # how far that is depends on how busy it is
        picture = at_rest(left)
        assert share_of(picture, "stroma") > 1.3 * share_of(picture, "tumor") > 0

    def share_of(picture: np.ndarray, name: str) -> float:
        return float(np.mean(np.abs(picture - blended(name, 0.4)).max(axis=2) <= 1))

    eventually(moved)
    before = at_rest(left)
    page.get_by_role("option").nth(1).click()
    assert_seen(left, {name: blended(name, 0.4) for name in QUARTERS})  # all of it
    page.get_by_role("option").nth(0).click()
    expect(page.locator("#busy")).to_be_empty()
    inner = np.s_[30:-30, 30:-30]  # without the ring of what has the focus
    eventually(lambda: np.testing.assert_allclose(picture_of(left)[inner], before[inner], atol=1))


def test_a_new_answer_to_a_patch_does_not_move_it(browser):
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    with behind_gateway(browser, segmenter) as (visit, _, _):
        page = visit.page
        page.get_by_role("button", name="20\u00d7").click()
        show(page)
        for _ in range(3):
            page.get_by_role("button", name="Zoom in").click()
        pane = box(page, "#left")
        fitted = 0.5 * SIDE / min(pane["width"], pane["height"])
        eventually(lambda: equal(round(fitted / ruled(page), 1), round(1.5**3, 1)))
        page.get_by_role("button", name="40\u00d7").click()
        page.get_by_role("button", name="Segment again").click()
        expect(page.get_by_text("\u00d7 0.25")).to_have_count(2)
        expect(page.locator("#busy")).to_be_empty()
        eventually(lambda: equal(round(fitted / 2 / ruled(page), 1), round(1.5**3, 1)))


def test_all_answers_can_be_had_as_one_table(page):
    name = 'a "first", odd.png'
    show(page, upload(name), upload("broken.png", b"no picture"), upload("glass.png", encoded(plain(WHITE, 64, 64))))
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Table").click()
    assert waiting.value.suggested_filename == "labels.csv"
    data = waiting.value.path().read_bytes()
    assert data.startswith(BOM_UTF8)  # or Excel garbles other letters than English ones
    text = data.decode("utf-8-sig")
    assert text.endswith("\r\n")
    first, broken, glass = csv.DictReader(io.StringIO(text, newline=""))
    assert [row["file"] for row in (first, broken, glass)] == [name, "broken.png", "glass.png"]
    assert (first["code"], first["tumor_fraction"], first["tumor_probability"]) == ("T+S+N", "0.250000", "1.000000")
    assert "background_probability" not in first
    assert (first["model"], first["model_version"], first["model_sha256"]) == ("colours", "1.0", "0" * 64)
    assert list(first) == ["file", *columns(manifest()), "problem"]
    assert first["background_fraction"] == "0.250000"
    assert (first["width_px"], first["um_per_px"], first["warnings"], first["problem"]) == (
        "256",
        "",
        "out_of_distribution",
        "",
    )
    assert (broken["code"], broken["width_px"]) == ("", "")
    assert broken["problem"].startswith("Unsupported image")
    assert glass["code"] == ""
    assert "low_tissue" in glass["warnings"]


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_no_file_name_and_no_problem_is_a_formula_to_excel(visit, begin):
    page = visit.page
    names = [f"{begin}HYPERLINK(1)", f"{begin}1+1"]
    show(page, upload(names[0]))
    problem = json.dumps({"title": f"{begin}2+2", "detail": "what"})
    refusal = {"status": 422, "content_type": "application/problem+json", "body": problem}
    page.route("**/segment*", lambda route: route.fulfill(**refusal))
    show(page, upload(names[1]), upload("a=b.png"))
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Table").click()
    text = waiting.value.path().read_bytes().decode("utf-8-sig")
    first, second, harmless = csv.DictReader(io.StringIO(text, newline=""))
    assert [row["file"] for row in (first, second, harmless)] == [f"'{name}" for name in names] + ["a=b.png"]
    assert [row["problem"] for row in (first, second)] == ["", f"'{begin}2+2: what"]
    assert (first["width_px"], first["tumor_fraction"]) == ("256", "0.250000")
    assert visit.failed == ["422"] * 2


def test_the_share_of_the_tissue_stands_beside_that_of_the_image(page):
    show(page)
    rows = page.get_by_role("row")
    expect(rows.nth(1).locator(".area")).to_have_text("25.0%33.3% of tissue")
    expect(rows.nth(4).locator(".area")).to_have_text("25.0%")


def test_what_each_class_is_and_how_well_it_is_found_can_be_read(browser):
    tumor, *others = manifest().classes
    classes = (tumor.model_copy(update={"definition": "Glands that invade."}), *others)
    card = manifest().model_copy(update={"classes": classes, "metrics": {"cv_iou_tumor": 0.7325, "cv_ece": 0.01}})
    with behind_gateway(browser, ColourSegmenter(card)) as (visit, _, _):
        page = visit.page
        expect(page.locator(".legend")).to_contain_text("TumorGlands that invade.")
        show(page)
        page.get_by_text("Where this comes from").click()
        facts = page.locator("#provenance-list")
        expect(facts).to_contain_text("tumor: Glands that invade.")
        score = facts.locator("dt", has_text="IoU, cross-validated").locator("+ dd")
        expect(score).to_have_text(
            "tumor 0.73, on images held out from training. A class that few images hold is scored on those few, and "
            "its number is the least certain: see the model card."
        )
