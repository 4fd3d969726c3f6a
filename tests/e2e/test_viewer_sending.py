"""What the page does by itself with what it sends: checks it, sends it once more, and asks before it is lost."""

import asyncio
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.e2e.browser import eventually
from tests.e2e.viewer_page import SIDE, arrived, behind_gateway, choose, downloaded, equal, pick, show, upload
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import encoded, quarters

SCALED = manifest().model_copy(update={"um_per_px": 1.0})
TOO_LATE = {
    "type": "urn:problem-type:tessera:deadline-exceeded",
    "title": "Deadline exceeded",
    "status": 504,
    "detail": "no answer within 30 s",
}
OF_RATE = {
    "type": "urn:problem-type:tessera:rate-exceeded",
    "title": "Rate exceeded",
    "status": 429,
    "detail": "3 images a minute are this caller's limit",
}
WRONG = "Pixel size: a number from 0.05 to 10, as in 0.5"


def refuse(route: Route, problem: dict[str, Any], **headers: str) -> None:
    route.fulfill(
        status=problem["status"], json=problem, content_type="application/problem+json", headers=headers or None
    )


def size_of(route: Route) -> int:
    return len(route.request.post_data_buffer or b"")


def test_what_came_too_late_is_sent_once_more_alone(browser):
    gate = asyncio.Event()
    large = encoded(quarters(2 * SIDE, SIDE), compress_level=0)
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, gateway, running):
        page = visit.page
        beside: list[int] = []  # the uploads that were being answered when a large one came
        held: list[Route] = []

        def hurry(route: Route) -> None:
            if size_of(route) < len(large):
                return route.continue_()
            beside.append(gateway.inside)
            if len(beside) == 3:
                return held.append(route)
            return refuse(route, TOO_LATE) if len(beside) < 3 else route.continue_()

        page.route("**/segment*", hurry)
        choose(page, upload("one.png", large), upload("two.png", large), upload("3.png"), upload("4.png"))
        options = page.get_by_role("option")
        expect(options.filter(has_text="took too long; waits to be sent alone")).to_have_count(2)
        expect(options.filter(has_text="being segmented")).to_have_count(2)
        running.loop.call_soon_threadsafe(gate.set)
        expect(options.filter(has_text="tumor")).to_have_count(2)
        arrived(page, held, 1)
        choose(page, upload("5.png"))
        expect(options.last).to_contain_text("waiting")  # as what is alone is under way
        held.pop().continue_()
        expect(options.filter(has_text="tumor")).to_have_count(5)
        assert beside[2:] == [0, 0]
        expect(page.locator("#alert")).to_be_hidden()
        assert visit.failed == ["504"] * 2


def test_what_comes_too_late_twice_is_told_and_is_sent_alone_again_when_asked(visit):
    page = visit.page
    sent: list[int] = []

    def hurry(route: Route) -> None:
        sent.append(size_of(route))
        refuse(route, TOO_LATE)

    page.route("**/segment*", hurry)
    show(page, upload("one.png"))
    expect(page.get_by_role("alert")).to_have_text("one.png: Deadline exceeded: no answer within 30 s")
    expect(page.get_by_role("option")).to_contain_text("no answer within 30 s")
    assert len(sent) == 2
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("no answer within 30 s")
    eventually(lambda: equal(len(sent), 3))
    assert visit.failed == ["504"] * 3


def test_what_waits_to_be_sent_alone_can_be_cancelled(browser):
    gate = asyncio.Event()
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, _, running):
        page = visit.page
        late = encoded(quarters(2 * SIDE, SIDE), compress_level=0)
        page.route(
            "**/segment*",
            lambda route: refuse(route, TOO_LATE) if size_of(route) > len(late) else route.continue_(),
        )
        choose(page, upload("late.png", late), upload("other.png"))
        options = page.get_by_role("option")
        expect(options.first).to_contain_text("took too long")
        page.get_by_role("button", name="Cancel").click()
        expect(options.filter(has_text="cancelled")).to_have_count(2)
        running.loop.call_soon_threadsafe(gate.set)
        assert visit.failed == ["504"]


def test_the_callers_own_limit_is_not_called_a_busy_service(page):
    refusals = [OF_RATE]

    def limit(route: Route) -> None:
        if refusals:
            refuse(route, refusals.pop(), **{"Retry-After": "3"})
        else:
            route.continue_()

    page.route("**/segment*", limit)
    choose(page)
    said = "the limit of images a minute is reached; trying again in 3 s"
    expect(page.get_by_role("option")).to_contain_text(said)
    expect(page.get_by_role("option")).to_contain_text("tumor")
    refusals.append(OF_RATE)
    pick(page, "Confidence")
    expect(page.locator("#busy")).to_have_text(f"T{said[1:]}.")
    expect(page.get_by_text("Unsure, 25%")).to_be_visible()
    refusals.append(OF_RATE)
    with page.expect_download():
        page.get_by_role("button", name="Polygons").click()
        expect(page.locator("#downloads").get_by_text(said)).to_be_visible()


@pytest.mark.parametrize("typed", ["abc", "40", "0.049", "0", "-1", "1e0", "0x1", "0.5 0.5", "1,0,0", "NaN"])
def test_what_is_no_pixel_size_is_told_before_anything_is_sent(browser, typed):
    with behind_gateway(browser) as (visit, gateway, _):
        page = visit.page
        field = page.get_by_label("Pixel size", exact=True)
        field.fill(typed)
        below = page.locator("#mpp-note").bounding_box()
        field.blur()
        expect(field).to_have_attribute("aria-invalid", "true")
        assert page.locator("#mpp-note").bounding_box() == below  # what is clicked next has not moved away
        field.press("Enter")
        expect(page.locator("#mpp-wrong")).to_have_text(WRONG)
        show(page)
        expect(page.get_by_role("alert")).to_contain_text(WRONG)
        expect(page.get_by_role("option")).to_contain_text(WRONG)
        assert gateway.uploads == []
        field.fill("")
        expect(page.locator("#mpp-wrong")).to_be_empty()
        expect(field).to_have_attribute("aria-invalid", "false")


@pytest.mark.parametrize(("typed", "sent"), [("0,5", "0.5"), (".05", ".05"), ("10", "10"), (" 1. ", "1.")])
def test_pixel_sizes_are_taken_as_people_write_them(browser, typed, sent):
    with behind_gateway(browser, ColourSegmenter(SCALED)) as (visit, gateway, _):
        visit.page.get_by_label("Pixel size", exact=True).fill(typed)
        show(visit.page)
        expect(visit.page.get_by_role("option")).to_contain_text("tumor")
        assert [seen.query for seen in gateway.uploads] == [f"mpp={sent}"]


def test_enter_in_the_field_does_what_the_button_for_it_does(browser):
    with behind_gateway(browser, ColourSegmenter(SCALED)) as (visit, gateway, _):
        page = visit.page
        field = page.get_by_label("Pixel size", exact=True)
        field.press("Enter")  # nothing is there yet
        field.fill("50")
        field.press("Enter")
        expect(page.locator("#mpp-wrong")).to_have_text(WRONG)
        show(page)
        field.fill("0.5")
        field.press("Enter")  # tries again
        expect(page.get_by_text("0.5 µm/px as stated.")).to_be_visible()
        field.fill("20")
        field.press("Enter")
        expect(page.locator("#mpp-wrong")).to_have_text(WRONG)
        field.fill("2")
        field.press("Enter")  # segments again
        expect(page.get_by_text("2 µm/px as stated.")).to_be_visible()
        assert [seen.query for seen in gateway.uploads] == ["mpp=0.5", "mpp=2"]


def stays(page: Page) -> None:
    """Check that a reload is asked about, and that the list is still there."""
    count = page.get_by_role("option").count()
    with page.expect_event("dialog") as waiting:
        page.evaluate("() => { setTimeout(() => location.reload()); }")
    assert waiting.value.type == "beforeunload"
    expect(page.get_by_role("option")).to_have_count(count)


def goes(page: Page) -> None:
    """Check that a reload is not asked about."""
    with page.expect_event("load"):
        page.evaluate("() => { setTimeout(() => location.reload()); }")
    expect(page.get_by_role("option")).to_have_count(0)


@pytest.fixture
def touched(page: Page) -> Page:
    """A page that somebody has clicked on: browsers ask nobody else."""
    page.get_by_role("heading", name="Patches").click()
    page.on("dialog", lambda dialog: dialog.dismiss())
    return page


def test_an_empty_page_is_left_without_a_question(touched):
    goes(touched)


def test_answers_of_which_nothing_was_saved_are_not_lost_without_a_question(touched):
    show(touched)
    stays(touched)
    downloaded(touched, "Answer")
    goes(touched)


def test_the_table_saves_all_answers(touched):
    show(touched, upload("one.png"), upload("two.png"))
    downloaded(touched, "Answer")
    stays(touched)
    with touched.expect_download():
        touched.get_by_role("button", name="Table").click()
    goes(touched)


def test_what_has_no_answer_is_no_loss(touched):
    show(touched, upload("bad.png", b"nothing"))
    goes(touched)


def test_a_cleared_list_is_no_loss(touched):
    show(touched)
    touched.get_by_role("button", name="Clear list").click()
    goes(touched)


def test_work_under_way_is_not_lost_without_a_question(browser):
    gate = asyncio.Event()
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, _, running):
        page = visit.page
        page.get_by_role("heading", name="Patches").click()
        page.on("dialog", lambda dialog: dialog.dismiss())
        choose(page)
        expect(page.get_by_role("option")).to_contain_text("being segmented")
        stays(page)
        running.loop.call_soon_threadsafe(gate.set)
        expect(page.get_by_role("option")).to_contain_text("tumor")


@pytest.mark.parametrize(("width", "columns"), [(961, 1), (1100, 1), (1152, 1), (1153, 3), (1280, 3)])
def test_where_three_columns_would_be_narrow_they_stand_below_one_another(page, width, columns):
    show(page)
    pick(page, "Side by side")
    page.set_viewport_size({"width": width, "height": 800})

    def arranged() -> None:
        boxes = [page.locator(f"main > section >> nth={index}").bounding_box() or {} for index in range(3)]
        assert len({box["x"] for box in boxes}) == columns
        for pane in ("#left", "#right"):
            assert (page.locator(pane).bounding_box() or {})["width"] > 200

    eventually(arranged)
    # Where the page scrolls, a plain wheel is the page's; OpenSeadragon then says so over the pane.
    before = page.evaluate("scrollY")
    box = page.locator("#left").bounding_box() or {}
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, 200)
    if columns == 1:
        eventually(lambda: assert_more(page.evaluate("scrollY"), before))


def assert_more(one: float, other: float) -> None:
    assert one > other
