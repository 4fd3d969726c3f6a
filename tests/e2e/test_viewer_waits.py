"""The page while something is on its way, fails, or comes too late."""

import asyncio
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from app.pathology.arrays import RgbImage
from tests.e2e.browser import eventually
from tests.e2e.viewer_page import (
    MASK,
    QUARTERS,
    SURE_200,
    arrived,
    assert_seen,
    behind_gateway,
    blended,
    choose,
    downloaded,
    pick,
    picture_of,
    show,
    upload,
)
from tests.fakes import ColourSegmenter
from tests.pictures import GREEN, encoded, noise, quarters

CONFIDENCE, PICTURE = "**/segment*view=confidence*", "**/segment*view=overlay*"


@contextmanager
def held(page: Page, pattern: str) -> Iterator[list[Route]]:
    """Collect the requests for `pattern`; they and later ones are sent when the block ends."""
    routes: list[Route] = []
    released = False

    def hold(route: Route) -> None:
        if released:
            route.continue_()
        else:
            routes.append(route)

    page.route(pattern, hold)
    yield routes
    released = True
    for route in routes:
        route.continue_()


def at_rest(pane: Locator) -> RgbImage:
    """Return the picture of a pane whose movement is over."""
    pictures = [picture_of(pane)]

    def check() -> None:
        pictures.append(picture_of(pane))
        assert np.array_equal(pictures[-1], pictures[-2])

    eventually(check)
    return pictures[-1]


def paste(page: Page, content: bytes, text: str = "", onto: str = "body") -> None:
    page.evaluate(
        """([bytes, text, onto]) => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            if (text) clipboardData.setData("text/plain", text);
            document.querySelector(onto).dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
        }""",
        [list(content), text, onto],
    )


def drop(page: Page, path: Path) -> None:
    """Drop what lies at `path` on the page, as a file manager does."""
    devtools = page.context.new_cdp_session(page)
    where = {"x": 400, "y": 400, "data": {"items": [], "files": [str(path)], "dragOperationsMask": 1}}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, **where})


def test_what_is_left_while_it_is_prepared_leaves_no_word_behind(visit):
    page = visit.page
    busy = page.locator("#busy")
    show(page, upload("one.png"), upload("bad.png", b"nothing"))
    with held(page, CONFIDENCE):
        pick(page, "Confidence")
        expect(busy).to_have_text("Preparing the view…")
        page.get_by_role("option").nth(1).click()
        expect(busy).to_be_empty()
        page.get_by_role("option").nth(0).click()
        expect(busy).to_have_text("Preparing the view…")
        page.get_by_role("button", name="Clear list").click()
        expect(busy).to_be_empty()
    assert visit.failed == ["415"]


def test_a_patch_is_said_to_be_prepared_until_it_is_there(page):
    with held(page, PICTURE) as requests:
        choose(page, upload("patch.tiff", encoded(quarters(64, 64), "TIFF"), "image/tiff"))
        arrived(page, requests, 1)
        page.get_by_role("checkbox", name="Stroma").uncheck()
        expect(page.locator("#busy")).to_have_text("Preparing the view…")
    expect(page.locator("#busy")).to_be_empty()
    assert_seen(page.locator("#left"), {"tumor": blended("tumor", 0.4), "stroma": GREEN})


def test_confidence_is_asked_for_once_and_kept(page):
    show(page, upload("one.png"), upload("two.png"))
    pick(page, "Side by side")
    asked: list[str] = []
    page.on("request", lambda request: "confidence" in request.url and asked.append(request.url))
    with held(page, CONFIDENCE):
        pick(page, "Confidence")
        page.get_by_role("checkbox", name="Stroma").uncheck()
        page.get_by_role("checkbox", name="Stroma").check()
        pick(page, "Tissue")
        expect(page.locator("#busy")).to_be_empty()
        pick(page, "Confidence")
        expect(page.locator("#busy")).to_have_text("Preparing the view…")
    for option in (0, 1, 0):
        page.get_by_role("option").nth(option).click()
        assert_seen(page.locator("#right"), dict.fromkeys(MASK, SURE_200))
        expect(page.locator("#busy")).to_be_empty()
    assert len(asked) == 2


def test_a_wait_for_a_busy_service_is_said_wherever_it_is_asked(browser):
    with behind_gateway(browser, retry_after_seconds=5) as (visit, gateway, _):
        page = visit.page
        show(page)
        gateway.busy = 1
        pick(page, "Confidence")
        expect(page.locator("#busy")).to_have_text("The service is busy; trying again in 5 s.")
        expect(page.get_by_text("Unsure, 25%")).to_be_visible()
        expect(page.locator("#busy")).to_be_empty()
        gateway.busy = 1
        with page.expect_download():
            page.get_by_role("button", name="Polygons").click()
            said = page.locator("#downloads").get_by_role("status").filter(has_text="busy")
            expect(said).to_have_text("Polygons: the service is busy; trying again in 5 s.")
        expect(said).to_have_count(0)
        assert visit.failed == ["429"] * 2


def test_a_refusal_that_comes_late_is_not_blamed_on_the_key_given_meanwhile(browser):
    with behind_gateway(browser, key="right") as (visit, _, _):
        page = visit.page
        expect(page.get_by_role("alert")).to_have_text("The service asks for an API key")
        with held(page, "**/segment*") as late:
            choose(page, *(upload(f"{number}.png") for number in range(4)))
            arrived(page, late, 3)
            late.pop(0).continue_()  # of any of the three: a busy browser tells of them in another order
            expect(page.get_by_role("option").filter(has_text="waits for an API key")).to_have_count(1)
            page.get_by_role("textbox", name="API key").fill("right")
            page.get_by_role("button", name="Use key").click()
            expect(page.get_by_text("API key will be sent")).to_be_visible()
        expect(page.get_by_role("option").filter(has_text="tumor")).to_have_count(4)
        expect(page.locator("#alert")).to_be_hidden()
        assert set(visit.failed) == {"401"}


def test_a_wait_that_is_over_leaves_nobody_waiting_for_a_cancel(browser):
    with behind_gateway(browser, busy=2, retry_after_seconds=0) as (visit, gateway, _):
        page = visit.page
        page.evaluate("""() => {
            const {addEventListener, removeEventListener} = EventTarget.prototype;
            window.listening = new Map();
            AbortSignal.prototype.addEventListener = function (type, listener, ...more) {
                window.listening.set(listener, window.listening.size + 1);
                addEventListener.call(this, type, listener, ...more);
            };
            AbortSignal.prototype.removeEventListener = function (type, listener, ...more) {
                window.listening.set(listener, 0);
                removeEventListener.call(this, type, listener, ...more);
            };
        }""")
        show(page)
        assert len(gateway.uploads) > 2
        assert page.evaluate("[...window.listening.values()]") == [0, 0]
        assert visit.failed == ["429"] * 2


def test_escape_closes_the_field_of_the_key(page):
    page.locator("#access summary").click()
    field = page.get_by_role("textbox", name="API key")
    field.press("Escape")
    expect(field).to_be_hidden()
    expect(page.locator("#access summary")).to_be_focused()


def test_a_file_that_has_gone_is_told_of_in_plain_words(visit, tmp_path):
    page = visit.page
    gone = tmp_path / "gone.png"
    gone.write_bytes(encoded(quarters(64, 64)))
    page.route("**/segment*", lambda route: route.abort("connectionrefused"))
    choose(page, gone)
    expect(page.get_by_role("option")).to_contain_text("No answer")
    gone.unlink()
    page.unroute("**/segment*")
    page.get_by_role("button", name="Try again").click()
    said = "The file cannot be read: it was moved, changed or deleted since it was chosen; choose it again"
    expect(page.get_by_role("option")).to_contain_text(said)
    expect(page.get_by_role("alert")).to_have_text(f"gone.png: {said}")
    page.get_by_role("button", name="Close").click()
    gone.write_bytes(encoded(quarters(64, 64)))
    show(page, upload("other.png"))
    show(page, gone)
    gone.unlink()
    page.get_by_role("option").nth(2).click()
    expect(page.get_by_role("alert")).to_have_text(f"gone.png: {said}")
    expect(page.locator("#busy")).to_be_empty()


def test_a_folder_can_be_dropped(page, tmp_path):
    folder = tmp_path / "patches"
    (folder / "more").mkdir(parents=True)
    (folder / "1.2.840").mkdir()
    for name in ("2.png", "10.png", ".hidden.png", "more/2.png", "1.2.840/IM1"):
        (folder / name).write_bytes(encoded(quarters(64, 64)))
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    drop(page, folder)
    paths = ["patches/1.2.840/IM1", "patches/2.png", "patches/10.png", "patches/more/2.png"]
    expect(page.locator(".name")).to_have_text(paths)
    expect(page.get_by_role("option").filter(has_text="tumor")).to_have_count(4)
    page.get_by_role("option").nth(0).click()
    assert downloaded(page, "Answer")[0] == "patches_1.2.840_IM1_answer.json"
    page.get_by_role("option").nth(3).click()
    expect(page.get_by_role("heading", name="patches/more/2.png")).to_be_visible()
    assert downloaded(page, "Answer")[0] == "patches_more_2_answer.json"
    with page.expect_download() as table:
        page.get_by_role("button", name="Table").click()
    with table.value.path().open(encoding="utf-8-sig", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == paths


def test_an_image_can_be_pasted_and_the_picture_of_a_text_is_none(page):
    paste(page, encoded(noise(8, 8)), text="0.25")
    paste(page, encoded(noise(8, 8)), onto="#mpp")
    paste(page, encoded(quarters(64, 64)))
    expect(page.get_by_role("option")).to_contain_text("image.pngtumor, stroma, normal")


def test_choosing_what_is_shown_leaves_zoom_and_place_alone(page):
    show(page)
    left = page.locator("#left")
    assert_seen(left, {name: blended(name, 0.4) for name in QUARTERS})
    fitted = picture_of(left)
    for _ in range(3):
        page.get_by_role("button", name="Zoom in").click()
    before = at_rest(left)
    assert np.abs(before - fitted).max() > 10
    page.get_by_role("option").click()
    expect(page.locator("#busy")).to_be_empty()
    assert np.array_equal(picture_of(left), before)


def test_results_of_two_models_are_not_mixed(page):
    """As after a reload: what is kept of a patch is of the model before."""

    def answer_as_another(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers={**answer.headers, "tessera-model-sha256": "1" * 64})

    show(page)
    page.route("**/segment*", answer_as_another)
    pick(page, "Confidence")
    expect(page.get_by_role("alert")).to_contain_text("Another model answers by now: add the patch again")
    expect(page.get_by_text("Unsure, 25%")).to_be_hidden()
    for button in ("Overlay", "Polygons"):
        page.get_by_role("button", name="Close").click()
        page.locator("#downloads").get_by_role("button", name=button).click()
        expect(page.get_by_role("alert")).to_contain_text("Another model answers by now")
    page.unroute("**/segment*")
    assert downloaded(page, "Polygons")[0].endswith("_polygons.geojson")


def test_a_button_that_goes_hands_the_focus_on(browser):
    gate = asyncio.Event()
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, _, running):
        page = visit.page
        choose(page)
        page.get_by_role("button", name="Cancel").press("Enter")
        expect(page.get_by_role("button", name="Try again")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Cancel")).to_be_focused()
        running.loop.call_soon_threadsafe(gate.set)
        expect(page.get_by_role("option")).to_be_focused()


MANY = 2000


def test_cancelling_many_patches_takes_little_work_for_each(browser):
    """Counted: items of arrays that are searched, and how often the order of Tab and the progress are set."""
    gate = asyncio.Event()
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, _, running):
        page = visit.page
        page.evaluate(
            """([bytes, count]) => {
                const transfer = new DataTransfer();
                for (let number = 0; number < count; number++) {
                    transfer.items.add(new File([new Uint8Array(bytes)], `${number}.png`, {type: "image/png"}));
                }
                document.querySelector("#files").files = transfer.files;
                document.querySelector("#files").dispatchEvent(new Event("change"));
            }""",
            [list(encoded(quarters(8, 8))), MANY],
        )
        options = page.get_by_role("option")
        expect(options.filter(has_text="being segmented")).to_have_count(3)
        page.evaluate("""() => {
            window.work = {searched: 0, tabStops: 0, progress: 0};
            const includes = Array.prototype.includes;
            Array.prototype.includes = function (...sought) {
                window.work.searched += this.length;
                return includes.apply(this, sought);
            };
            const counted = (kind, name, as) => {
                const {get, set} = Object.getOwnPropertyDescriptor(kind.prototype, name);
                Object.defineProperty(kind.prototype, name, {get, set(value) {
                    window.work[as] += 1;
                    set.call(this, value);
                }});
            };
            counted(HTMLElement, "tabIndex", "tabStops");
            counted(HTMLProgressElement, "value", "progress");
        }""")
        page.get_by_role("button", name="Cancel").press("Enter")
        expect(page.get_by_role("status").filter(has_text="done")).to_have_text(f"0 of {MANY} done, {MANY} cancelled")
        expect(page.locator("li[data-state=cancelled]")).to_have_count(MANY)
        expect(page.get_by_role("button", name="Try again")).to_be_focused()
        work = page.evaluate("window.work")
        assert work["searched"] < 100 * MANY
        assert work["tabStops"] < 10
        assert work["progress"] < 10
        running.loop.call_soon_threadsafe(gate.set)


def test_tab_leads_to_one_patch_whichever_is_chosen_added_or_gone(page):
    def stops() -> list[str]:
        return page.locator("#list [tabindex='0'] .name").all_inner_texts()

    show(page, *(upload(f"{number}.png") for number in range(3)))
    assert stops() == ["0.png"]
    page.get_by_role("option").nth(2).click()
    assert stops() == ["2.png"]
    show(page, upload("3.png"))
    assert stops() == ["2.png"]
    assert page.locator("#list [tabindex='-1']").count() == 3
    page.get_by_role("button", name="Clear list").click()
    assert stops() == []
    show(page, upload("4.png"))
    assert stops() == ["4.png"]


@pytest.mark.parametrize("later", [True, False])
def test_a_card_that_could_not_be_had_is_asked_for_again(visit, later):
    page = visit.page
    page.route("**/model", lambda route: route.abort("connectionrefused"))
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("No answer")
    if later:
        page.unroute("**/model")
    show(page)
    expect(page.locator("#model")).to_have_text("colours 1.0" if later else "")
    expect(page.get_by_text("The tick is the threshold of a label.")).to_have_count(1 if later else 0)
    expect(page.locator("#alert")).to_be_hidden()


def test_what_is_saved_is_kept_until_the_browser_has_read_it(page):
    show(page)
    page.evaluate("() => { window.revoked = 0; URL.revokeObjectURL = () => { window.revoked += 1; }; }")
    assert downloaded(page, "Answer")[0].endswith("_answer.json")
    assert page.evaluate("window.revoked") == 0
