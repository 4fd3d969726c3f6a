"""The page in a real browser, before a real server.

Most tests serve the colour segmenter, whose answer to every pixel is known beforehand; what a user sees is read off
screenshots.
"""

import asyncio
import json
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, expect

from app.inference.result import WindowResult
from app.pathology.arrays import RgbImage
from app.pathology.classes import TissueClass
from app.pathology.manifest import ModelManifest
from tests.conftest import ROOT, RunningService
from tests.dicom_sources import file_of, microscopic
from tests.e2e.browser import eventually, visiting
from tests.e2e.viewer_page import (
    IMAGE,
    MASK,
    NORMAL,
    QUARTERS,
    SIDE,
    STAGE,
    STROMA,
    SURE_200,
    TUMOR,
    UNSHOWN,
    assert_accessible,
    assert_seen,
    behind_gateway,
    blended,
    choose,
    downloaded,
    equal,
    grey,
    pick,
    picture_of,
    place_of,
    show,
    upload,
)
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import BLUE, GREEN, WHITE, encoded, opened, plain, quarters


def test_several_patches_are_answered_and_the_first_is_shown(page):
    files = [
        upload("one.png"),
        upload("two.jpg", encoded(plain(BLUE, 100, 80), "JPEG", quality=95), "image/jpeg"),
        upload("three.png", encoded(plain(WHITE, 64, 64))),
    ]
    show(page, *files)
    expect(page.get_by_role("status").filter(has_text="done")).to_have_text("3 of 3 done")
    options = page.get_by_role("option")
    expect(options).to_have_text(
        [r"one.pngtumor, stroma, normal; 1 warning", "two.jpgtumor; 1 warning", "three.pngno label; 1 warning"]
    )
    expect(page.get_by_role("option", selected=True)).to_contain_text("one.png")
    expect(page.get_by_role("heading", name="one.png")).to_be_visible()
    rows = page.get_by_role("row")
    expect(rows.nth(1)).to_have_text("Tumor25.0%33.3% of tissue100.0%")
    expect(rows.nth(4)).to_have_text("Background25.0%is never a label")
    options.nth(1).click()
    expect(page.get_by_role("heading", name="two.jpg")).to_be_visible()
    expect(rows.nth(1)).to_have_text("Tumor100.0%100.0% of tissue100.0%")
    options.nth(2).click()
    expect(page.locator(".labels")).to_have_text("No tissue class reaches its threshold")
    page.get_by_role("button", name="Clear list").click()
    expect(options).to_have_count(0)
    expect(page.get_by_text("The model tells apart")).to_be_visible()


def test_the_model_and_its_use_are_named(page):
    expect(page.locator("#model")).to_have_text("colours 1.0")
    expect(page.get_by_text("Research use only").first).to_be_visible()
    show(page)
    page.get_by_text("Where this comes from").click()
    facts = page.locator("#provenance-list")
    expect(facts).to_contain_text("colours 1.0")
    expect(facts).to_contain_text("256 \u00d7 256 px")
    expect(facts).to_contain_text("0" * 64)
    expect(facts.locator("dt", has_text="Stain").locator("+ dd")).to_have_text("H&E")
    expect(page.locator("#purpose")).to_be_empty()  # the card has no description
    expect(page.locator("#result")).not_to_contain_text("The model:")


def test_what_the_model_is_for_is_said_before_and_beside_the_result(browser):
    card = {"description": "Glands in patches of colon.", "intended_use": "teaching only", "stain": "PAS"}
    with behind_gateway(browser, ColourSegmenter(manifest().model_copy(update=card))) as (visit, _, _):
        page = visit.page
        said = "The model: Glands in patches of colon."
        expect(page.locator("#welcome")).to_contain_text(said)
        expect(page.locator("#welcome")).to_contain_text("Choose, drop or paste PAS patches")
        show(page)
        expect(page.locator("#numbers > .hint:first-child")).to_have_text(said)
        page.get_by_text("Where this comes from").click()
        expect(page.locator("#provenance-list")).to_contain_text("Glands in patches of colon.")
        expect(page.locator("#provenance-list")).to_contain_text("Teaching only")
        expect(page.locator("#provenance-list dt", has_text="Stain").locator("+ dd")).to_have_text("PAS")


def test_files_can_be_dropped(page):
    content = list(encoded(quarters(SIDE, SIDE)))
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop to segment")).to_be_visible()
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.get_by_text("Drop to segment")).to_be_hidden()
    expect(page.get_by_role("option")).to_have_text(["dropped.pngtumor, stroma, normal; 1 warning"])


def test_the_overlay_has_the_blended_colours_at_every_opacity(page):
    show(page)
    left = page.locator("#left")
    assert_seen(left, {name: blended(name, 0.4) for name in QUARTERS})
    slider = page.get_by_label("Opacity")
    for value in (75, 0, 100):
        slider.fill(str(value))
        assert_seen(left, {name: blended(name, value / 100) for name in QUARTERS})
    expect(page.locator("#opacity-value")).to_have_text("100%")


def test_a_class_goes_and_comes_with_its_box(page):
    show(page)
    left = page.locator("#left")
    page.get_by_role("checkbox", name="Stroma").uncheck()
    assert_seen(left, {name: blended(name, 0.4) for name in ("tumor", "normal")} | {"stroma": GREEN})
    expect(page.get_by_text("Not shown: stroma.")).to_be_visible()
    page.get_by_role("checkbox", name="Background").check()
    page.get_by_role("checkbox", name="Stroma").check()
    expect(page.get_by_text("Not shown: ")).to_have_count(0)
    page.get_by_label("Opacity").fill("100")
    assert_seen(left, {**MASK, "background": WHITE})


def test_the_overlay_goes_and_comes_by_its_button_and_by_a_key(page):
    show(page)
    left = page.locator("#left")
    overlaid = {name: blended(name, 0.4) for name in QUARTERS}
    button = page.get_by_role("button", name="Hide overlay")
    assert_seen(left, overlaid)
    button.click()
    assert_seen(left, IMAGE)
    expect(button).to_have_attribute("aria-pressed", "true")
    page.get_by_role("option").press("h")
    assert_seen(left, overlaid)
    left.get_by_role("application").press("h")
    assert_seen(left, IMAGE)
    page.get_by_label("Pixel size", exact=True).press("h")
    expect(button).to_have_attribute("aria-pressed", "true")
    pick(page, "Side by side")
    expect(button).to_be_disabled()


def test_hidden_classes_stay_hidden_in_the_next_patch(page):
    show(page, upload("one.png"), upload("two.png"))
    page.get_by_role("checkbox", name="Stroma").uncheck()
    page.get_by_role("option").nth(1).click()
    expect(page.get_by_role("checkbox", name="Stroma")).not_to_be_checked()
    assert_seen(page.locator("#left"), {"tumor": blended("tumor", 0.4), "stroma": GREEN})


def test_image_and_mask_stand_side_by_side_and_show_the_same_place(page):
    show(page)
    left, right = page.locator("#left"), page.locator("#right")
    expect(right).to_be_hidden()
    pick(page, "Side by side")
    assert_seen(left, IMAGE)
    assert_seen(right, {**MASK, "background": STAGE})
    expect(page.get_by_label("Opacity")).to_be_disabled()
    for _ in range(2):
        page.get_by_role("button", name="Zoom in").click()
    right.get_by_role("application").press("ArrowRight")  # by 40 px, however busy the machine is

    def same_place() -> None:
        image, mask = picture_of(left), picture_of(right)
        tumor, stroma = (np.abs(image - colour).max(axis=2) == 0 for colour in (BLUE, GREEN))
        assert stroma.mean() > 1.5 * tumor.mean() > 0  # it was moved to the right
        assert np.mean(tumor == (np.abs(mask - TUMOR).max(axis=2) == 0)) > 0.98
        assert np.mean(stroma == (np.abs(mask - STROMA).max(axis=2) == 0)) > 0.98

    eventually(same_place)
    page.get_by_role("button", name="Fit").click()
    assert_seen(left, IMAGE)
    assert_seen(right, MASK)
    pick(page, "Overlay")
    assert_seen(left, {name: blended(name, 0.4) for name in QUARTERS})


def test_the_mask_is_enlarged_without_smoothing(page):
    show(page)
    pick(page, "Side by side")
    for _ in range(6):
        page.get_by_role("button", name="Zoom in").click()

    def only_the_palette() -> None:
        colours = {
            tuple(pixel) for pixel in picture_of(page.locator("#right"))[30:-30, 30:-30].reshape(-1, 3).astype(int)
        }
        assert colours == {TUMOR, STROMA, NORMAL, STAGE}

    eventually(only_the_palette)


def test_confidence_is_shown_as_heat_with_its_scale(page):
    show(page)
    pick(page, "Confidence")
    over_grey = {name: tuple(0.8 * heat + 0.2 * grey(IMAGE[name]) for heat in SURE_200) for name in MASK}
    left = page.locator("#left")
    assert_seen(left, {**over_grey, "background": WHITE}, within=2)  # a browser rounds twice
    page.get_by_role("checkbox", name="Tumor").uncheck()
    assert_seen(left, {"tumor": (grey(BLUE),) * 3}, within=2)
    page.get_by_role("checkbox", name="Tumor").check()
    page.get_by_label("Opacity").fill("100")
    assert_seen(left, dict.fromkeys(MASK, SURE_200))
    pick(page, "Tissue")
    assert_seen(left, {name: blended(name, 0.4) for name in QUARTERS})
    pick(page, "Confidence")
    expect(page.locator("#opacity-value")).to_have_text("100%")
    pick(page, "Side by side")
    right = page.locator("#right")
    assert_seen(right, {**dict.fromkeys(MASK, SURE_200), "background": UNSHOWN})
    expect(page.get_by_text("Unsure, 25%")).to_be_visible()
    expect(page.get_by_text("Grey: not shown")).to_be_visible()
    page.get_by_role("checkbox", name="Tumor").uncheck()
    assert_seen(right, {"tumor": UNSHOWN, "stroma": SURE_200})
    pick(page, "Tissue")
    assert_seen(right, {"tumor": STAGE, "stroma": STROMA})
    expect(page.get_by_text("Unsure, 25%")).to_be_hidden()
    pick(page, "Confidence")
    expect(page.get_by_text("Unsure, 25%")).to_be_visible()
    page.get_by_role("button", name="Clear list").click()
    for text in ("Unsure, 25%", "Not shown: tumor."):
        expect(page.get_by_text(text)).to_be_hidden()


def test_patterns_tell_the_classes_apart_without_colour(page):
    show(page)
    pick(page, "Side by side")
    page.get_by_label("Patterns").check()
    right = page.locator("#right")

    def patterned() -> None:
        picture = picture_of(right)
        inked = {name: np.abs(place_of(picture, name) - MASK[name]).max(axis=2) > 60 for name in MASK}
        for name, ink in inked.items():
            assert 0.05 < ink.mean() < 0.6, name
        for one, other in (("tumor", "stroma"), ("tumor", "normal"), ("stroma", "normal")):
            assert np.mean(inked[one] != inked[other]) > 0.1
        assert np.abs(place_of(picture, "background") - STAGE).max() == 0

    eventually(patterned)
    page.get_by_role("checkbox", name="Tumor").uncheck()
    assert_seen(right, {"tumor": STAGE})
    page.get_by_label("Patterns").uncheck()
    assert_seen(right, {"stroma": STROMA, "normal": NORMAL})


@pytest.mark.parametrize("kind", ["tiff", "dicom"])
def test_a_file_that_a_browser_cannot_show_is_shown_as_the_service_decoded_it(page, kind):
    image = quarters(SIDE, SIDE)
    content = encoded(image, "TIFF") if kind == "tiff" else file_of(microscopic(image))
    show(page, upload(f"patch.{kind}", content, ""))
    expect(page.get_by_text("as the service decoded it")).to_be_visible()
    assert_seen(page.locator("#left"), {name: blended(name, 0.4) for name in QUARTERS})


def test_transparent_and_turned_images_are_shown_as_the_model_saw_them(page):
    clear = Image.fromarray(quarters(SIDE, SIDE)).convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.all(quarters(SIDE, SIDE) == BLUE, axis=2), 0, 255).astype(np.uint8)))
    turned = Image.fromarray(quarters(SIDE, SIDE)).rotate(-90)
    exif = Image.Exif()
    exif[0x0112] = 8  # the top of what is stored is the right of what is meant: turn it back by 90 degrees
    show(page, upload("clear.png", encoded(clear)), upload("turned.png", encoded(turned, exif=exif)))
    left = page.locator("#left")
    assert_seen(left, {"tumor": WHITE, "stroma": blended("stroma", 0.4)})
    page.get_by_role("option").nth(1).click()
    expect(page.locator("#note")).to_be_empty()
    assert_seen(left, {name: blended(name, 0.4) for name in QUARTERS})


def late_orientation(image: Image.Image, exif: Image.Exif) -> bytes:
    """Return a PNG whose orientation follows its pixels, where it may stand and browsers do not look."""
    data, body = encoded(image), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:-12] + chunk + data[-12:]


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_a_square_that_browsers_do_not_turn_is_shown_as_the_model_saw_it(page, kind):
    turned = Image.fromarray(quarters(SIDE, SIDE)).rotate(-90)
    exif = Image.Exif()
    exif[0x0112] = 8
    content = late_orientation(turned, exif) if kind == "png" else encoded(turned, "WEBP", lossless=True, exif=exif)
    show(page, upload(f"turned.{kind}", content))
    expect(page.get_by_text("as the service decoded it")).to_be_visible()
    assert_seen(page.locator("#left"), {name: blended(name, 0.4) for name in QUARTERS})


def test_where_the_confidence_cannot_be_had_the_tissue_is_shown(visit):
    page = visit.page
    show(page, upload("one.png"), upload("two.png"))
    pick(page, "Side by side")
    page.route("**/segment*view=confidence*", lambda route: route.fulfill(status=500))
    for name, option in (("one.png", 0), ("two.png", 1)):
        page.get_by_role("option").nth(option).click()
        pick(page, "Confidence")
        expect(page.get_by_role("alert")).to_contain_text(name)
        expect(page.get_by_role("radio", name="Tissue")).to_be_checked()
        expect(page.locator("#right-caption")).to_have_text("Mask")
        assert_seen(page.locator("#right"), MASK)
    page.unroute("**/segment*view=confidence*")
    pick(page, "Confidence")
    assert_seen(page.locator("#right"), dict.fromkeys(MASK, SURE_200))
    page.route("**/segment*view=confidence*", lambda route: route.fulfill(status=500))
    page.get_by_role("option").nth(0).click()
    expect(page.get_by_role("radio", name="Tissue")).to_be_checked()
    assert_seen(page.locator("#right"), MASK)
    assert visit.failed == ["500"] * 3


def test_a_bad_file_is_told_in_words_and_spares_the_others(visit):
    page = visit.page
    broken = upload("broken.png", encoded(quarters(SIDE, SIDE))[:300])
    show(page, broken, upload("text.png", b"no image at all"), upload("good.png"))
    expect(page.get_by_role("status").filter(has_text="done")).to_have_text("1 of 3 done, 2 with a problem")
    options = page.get_by_role("option")
    expect(options.nth(0)).to_contain_text("Unreadable image: the image is truncated or damaged")
    expect(options.nth(1)).to_contain_text("Unsupported image")
    expect(options.nth(2)).to_contain_text("tumor, stroma, normal")
    expect(page.get_by_role("alert")).to_contain_text(".png: Un")
    expect(page.locator("#result")).to_contain_text("Unreadable image")
    options.nth(2).click()
    expect(page.get_by_role("heading", name="good.png")).to_be_visible()
    expect(page.locator("#left")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#alert")).to_be_hidden()
    assert sorted(visit.failed) == ["415", "422"]


def test_a_service_that_cannot_be_reached_is_told_in_words_and_tried_again(visit):
    page = visit.page
    expect(page.locator("#model")).not_to_be_empty()
    page.route("**/segment*", lambda route: route.abort("connectionrefused"))
    show(page)
    expect(page.get_by_role("alert")).to_contain_text("the service cannot be reached")
    expect(page.get_by_role("option")).to_contain_text("No answer")
    page.unroute("**/segment*")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("option")).to_contain_text("tumor, stroma, normal")
    expect(page.locator("#alert")).to_be_hidden()
    assert visit.failed == ["ERR_CONNECTION_REFUSED"]


def test_a_busy_service_is_asked_again_when_it_says(browser):
    with behind_gateway(browser, busy=1, retry_after_seconds=5) as (visit, gateway, _):
        choose(visit.page)
        expect(visit.page.get_by_role("option")).to_contain_text("the service is busy; trying again in 5 s")
        expect(visit.page.get_by_role("option")).to_contain_text("tumor, stroma, normal")
        first, second = (seen.at for seen in gateway.uploads[:2])
        assert second - first >= 5
        assert visit.failed == ["429"]


def test_few_patches_are_sent_at_once_and_all_can_be_cancelled(browser):
    gate = asyncio.Event()
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, gateway, running):
        page = visit.page
        choose(page, *(upload(f"{number}.png") for number in range(6)))
        expect(page.get_by_role("option").filter(has_text="being segmented")).to_have_count(3)
        expect(page.get_by_role("option").filter(has_text="waiting")).to_have_count(3)
        expect(page.get_by_role("progressbar")).to_have_js_property("value", 0)
        eventually(lambda: equal(gateway.inside, 3))
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("option").filter(has_text="cancelled")).to_have_count(6)
        expect(page.get_by_role("status").filter(has_text="done")).to_have_text("0 of 6 done, 6 cancelled")
        eventually(lambda: equal(gateway.inside, 0))
        running.loop.call_soon_threadsafe(gate.set)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("option").filter(has_text="tumor")).to_have_count(6)
        assert gateway.most_inside == 3


def test_a_key_is_asked_for_and_sent_and_never_seen(browser):
    key = "k3y-of-the-hospital"
    with behind_gateway(browser, key=key) as (visit, gateway, _):
        page = visit.page
        field = page.get_by_role("textbox", name="API key")
        expect(page.get_by_role("alert")).to_have_text("The service asks for an API key")
        expect(field).to_be_focused()
        assert field.get_attribute("type") == "password"
        choose(page)
        expect(page.get_by_role("option")).to_contain_text("waits for an API key")
        field.fill("not the key")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("no spaces")
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The service does not accept this API key")
        expect(page.get_by_role("option")).to_contain_text("waits for an API key")
        field.fill(key)
        page.get_by_role("button", name="Use key").click()
        expect(page.get_by_role("option")).to_contain_text("tumor, stroma, normal")
        expect(page.locator("#model")).to_have_text("colours 1.0")
        expect(page.locator("#alert")).to_be_hidden()
        expect(page.get_by_text("API key will be sent")).to_be_visible()
        expect(field).to_be_hidden()
        expect(page.locator("#access summary")).to_be_focused()
        assert downloaded(page, "Polygons")[0].endswith(".geojson")
        assert not [address for address in visit.requests if key in address]
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        assert set(visit.failed) == {"401"}
        assert gateway.uploads


def test_a_files_name_is_sent_nowhere(browser):
    with behind_gateway(browser) as (visit, gateway, _):
        page = visit.page
        show(page)
        pick(page, "Confidence")
        expect(page.get_by_text("Unsure, 25%")).to_be_visible()
        downloaded(page, "Overlay")
        downloaded(page, "Polygons")
        assert len(gateway.uploads) == 4
        for seen in gateway.uploads:
            assert b'filename="patch"' in seen.body
            assert b"doe" not in seen.body + seen.query.encode()
        assert not [address for address in visit.requests if "doe" in address]


def test_downloads_are_what_the_service_gives(page):
    show(page)
    page.get_by_label("Opacity").fill("70")
    name, mask = downloaded(page, "Mask")
    assert name == "doe-john-1970-01-01_mask.png"
    classes = np.asarray(opened(mask))
    assert opened(mask).mode == "P"
    half = SIDE // 2
    assert [classes[0, 0], classes[0, half], classes[half, 0], classes[half, half]] == [0, 1, 2, 3]
    name, overlay = downloaded(page, "Overlay")
    assert name == "doe-john-1970-01-01_overlay.png"
    assert np.abs(np.asarray(opened(overlay))[0, 0] - np.array(blended("tumor", 0.7))).max() <= 1
    name, polygons = downloaded(page, "Polygons")
    assert name == "doe-john-1970-01-01_polygons.geojson"
    features = json.loads(polygons)["features"]
    assert sorted(feature["properties"]["name"] for feature in features) == ["normal", "stroma", "tumor"]
    name, answer = downloaded(page, "Answer")
    assert name == "doe-john-1970-01-01_answer.json"
    assert json.loads(answer)["labels"] == ["tumor", "stroma", "normal"]


def test_a_pixel_size_goes_with_each_request_about_the_patch_and_the_result_says_what_it_did(browser):
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    with behind_gateway(browser, segmenter) as (visit, gateway, _):
        page = visit.page
        field = page.get_by_label("Pixel size", exact=True)
        field.fill("40")
        show(page)
        expect(page.get_by_role("alert")).to_contain_text("Pixel size: a number from 0.05 to 10, as in 0.5")
        field.fill(" 0,5 ")
        page.get_by_role("button", name="Try again").click()
        said = "Scale: seen at the model's 1 µm/px (\u00d7 0.5); 0.5 µm/px as stated."
        expect(page.get_by_text(said)).to_be_visible()
        field.fill("0.25")  # of patches yet to come
        pick(page, "Confidence")
        expect(page.get_by_text("Unsure, 25%")).to_be_visible()
        downloaded(page, "Overlay")
        downloaded(page, "Polygons")
        assert [seen.query.split("&")[0] for seen in gateway.uploads] == ["mpp=0.5"] * 4
        page.get_by_role("button", name="Clear list").click()
        field.fill("")
        show(page)
        expect(page.locator(".notice")).to_contain_text("The pixel size of this patch is not known")
        page.get_by_text("Where this comes from").click()
        expect(page.locator("#provenance-list")).to_contain_text("as sent; pixel size not known")
        assert not [seen.query for seen in gateway.uploads[4:] if "mpp" in seen.query]
        assert visit.failed == []


def test_a_pixel_size_is_corrected_after_the_result(browser):
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    with behind_gateway(browser, segmenter) as (visit, gateway, _):
        page = visit.page
        field = page.get_by_label("Pixel size", exact=True)
        notice = page.locator(".notice + .labels")
        again = page.get_by_role("button", name="Segment again at this pixel size")
        show(page, upload("one.png"), upload("two.dcm", file_of(microscopic(quarters(SIDE, SIDE)))))
        expect(notice).to_be_visible()
        assert_accessible(page)
        again.click()
        expect(field).to_be_focused()
        assert len(gateway.uploads) == 2
        page.get_by_role("button", name="20\u00d7").click()
        expect(field).to_have_value("0.5")
        again.click()
        expect(page.get_by_role("option").first).to_be_focused()
        expect(
            page.get_by_text("Scale: seen at the model's 1 µm/px (\u00d7 0.5); 0.5 µm/px as stated.")
        ).to_be_visible()
        expect(notice).to_have_count(0)
        field.fill("abc")
        again.click()
        expect(page.locator("#mpp-wrong")).to_have_text("Pixel size: a number from 0.05 to 10, as in 0.5")
        expect(field).to_be_focused()
        expect(page.get_by_text("0.5 µm/px as stated.")).to_be_visible()  # what there was is not lost for it
        page.get_by_role("option").nth(1).click()
        expect(notice).to_be_visible()
        field.fill("2")
        again.click()  # the file states none that this would outvote
        expect(page.get_by_text("2 µm/px as stated.")).to_be_visible()
        downloaded(page, "Polygons")
        queries = [seen.query for seen in gateway.uploads if "view=overlay" not in seen.query]
        assert queries == ["", "", "mpp=0.5", "mpp=2", "mpp=2"]


def test_what_is_unlike_tissue_is_said_above_the_result_of_that_patch_alone(page):
    blank = upload("blank.png", encoded(plain(WHITE, 64, 48)))
    show(page, blank, upload("tissue.png", (ROOT / "examples" / "patches" / "cmu1-skin-2.png").read_bytes()))
    result = page.locator("#result")
    warning = result.get_by_role("list").get_by_text("Only 0.0% of the patch is stained")
    expect(warning).to_be_visible()
    expect(result.get_by_role("heading", name="Warning", exact=True)).to_be_visible()
    expect(result.locator("ul")).to_have_attribute("role", "list")
    first, second = page.get_by_role("option").all()
    expect(first).to_contain_text("; 1 warning")
    expect(second).not_to_contain_text("warning")
    assert_accessible(page)
    second.click()
    expect(warning).to_have_count(0)
    expect(result.get_by_role("heading")).to_have_count(0)


def test_several_warnings_are_counted(page):
    page.route("**/segment*", lambda route: route.fulfill(json=_warned_twice(route.fetch().json())))
    show(page)
    expect(page.get_by_role("option")).to_contain_text("tumor, stroma, normal; 2 warnings")
    expect(page.locator("#result").get_by_role("heading", name="Warnings", exact=True)).to_be_visible()


def _warned_twice(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {
        "warnings": [{"code": "pen_marks", "message": "Ink."}, {"code": "out_of_focus", "message": "Blur."}]
    }


class Torn(ColourSegmenter):
    """Finds the labels that it is told to, whatever the mask shows."""

    def __init__(self, *probabilities: float, known: ModelManifest | None = None) -> None:
        super().__init__(known)
        self.probabilities = np.array(probabilities, np.float32)

    async def segment(self, window: RgbImage) -> WindowResult:
        return replace(await super().segment(window), label_probabilities=self.probabilities)


def spotted(spot: tuple[int, int, int], spot_side: int, ground: tuple[int, int, int] = GREEN) -> bytes:
    """Return a patch of one colour with a square of another in its corner."""
    image = plain(ground, SIDE, SIDE)
    image[:spot_side, :spot_side] = spot
    return encoded(image)


TORN = "Labels and mask are two answers of the model, and here they disagree: "


@pytest.mark.parametrize(
    ("probabilities", "patch", "said"),
    [
        ((0, 1, 0), spotted(BLUE, 64), "tumor is in the mask but not among the labels."),
        (
            (0, 0, 0),
            encoded(quarters(SIDE, SIDE)),
            "tumor, stroma, and normal are in the mask but not among the labels.",
        ),
        ((1, 1, 0), spotted(GREEN, 64), "tumor is among the labels but hardly, if at all, in the mask."),
        ((1, 1, 0), spotted(BLUE, 15), "tumor is among the labels but hardly, if at all, in the mask."),
        (
            (1, 0, 1),
            encoded(plain(WHITE, 64, 64)),
            "tumor and normal are among the labels but hardly, if at all, in the mask.",
        ),
        (
            (0, 1, 0),
            encoded(plain(BLUE, 64, 64)),
            "tumor is in the mask but not among the labels; "
            "stroma is among the labels but hardly, if at all, in the mask.",
        ),
    ],
)
def test_where_labels_and_mask_contradict_each_other_that_is_said(browser, probabilities, patch, said):
    with behind_gateway(browser, Torn(*probabilities)) as (visit, _, _):
        page = visit.page
        note = page.locator(".result").get_by_role("status")
        expect(note).to_have_count(1)  # before there is anything to say, or it would not be heard
        show(page, upload(content=patch), upload("bad.png", b"nothing"))
        expect(note).to_have_text(TORN + said)
        labels, numbers = (page.locator(part).bounding_box() for part in (".labels", ".strip.tall"))
        assert labels["y"] + labels["height"] <= note.bounding_box()["y"] < numbers["y"]
        assert_accessible(page)
        page.get_by_role("option").last.click()
        expect(note).to_be_empty()


@pytest.mark.parametrize(
    ("probabilities", "patch"),
    [
        ((0, 1, 0), spotted(BLUE, 57)),  # 4.96 % of the tissue
        ((0, 0, 0), spotted(BLUE, 25, WHITE)),  # all of the tissue, and 0.95 % of the patch: specks on glass
        ((1, 1, 0), spotted(BLUE, 17)),  # 0.44 % of the tissue, but worth a label
        ((1, 0, 0), spotted(BLUE, 15, WHITE)),  # few pixels, but all of the tissue
        ((0, 0, 0), encoded(plain(WHITE, 64, 64))),
        ((1, 1, 1), encoded(quarters(SIDE, SIDE))),
    ],
)
def test_where_labels_and_mask_agree_nothing_is_said_of_it(browser, probabilities, patch):
    with behind_gateway(browser, Torn(*probabilities)) as (visit, _, _):
        show(visit.page, upload(content=patch))
        expect(visit.page.locator(".labels")).not_to_be_empty()
        expect(visit.page.locator(".result").get_by_role("status")).to_be_empty()


def test_a_foreign_models_labels_and_mask_are_compared_by_its_own_classes(browser):
    classes = tuple(
        tissue.model_copy(update={"name": name, "label": name != "glass"})
        for tissue, name in zip(manifest().classes, ("glass", "lumen", "mucin", "gland"), strict=True)
    )
    segmenter = Torn(1, 0, 0, known=manifest().model_copy(update={"classes": classes}))
    with behind_gateway(browser, segmenter) as (visit, _, _):
        show(visit.page)
        expect(visit.page.locator("#disagreement")).to_have_text(
            f"{TORN}mucin and gland are in the mask but not among the labels."
        )


def test_few_pixels_are_counted_as_the_model_saw_them(browser):
    segmenter = Torn(1, 1, 0, known=manifest().model_copy(update={"um_per_px": 1.0}))
    with behind_gateway(browser, segmenter) as (visit, _, _):
        page = visit.page
        note = page.locator(".result").get_by_role("status")
        page.get_by_label("Pixel size", exact=True).fill("2")
        show(page, upload(content=spotted(BLUE, 14)))  # 28 a side, to the model
        expect(page.get_by_text("\u00d7 2)")).to_have_count(2)
        expect(note).to_be_empty()
        page.get_by_label("Pixel size", exact=True).fill("1")
        page.get_by_role("button", name="Segment again").click()
        expect(note).to_have_text(f"{TORN}tumor is among the labels but hardly, if at all, in the mask.")


def test_a_model_without_a_pixel_size_says_nothing_of_scale_above_the_fold(page):
    show(page)
    expect(page.locator("#result")).to_contain_text("Probability")
    expect(page.get_by_text("Scale: ")).to_have_count(0)


def test_a_stated_pixel_size_does_not_outvote_a_dicom_files_own(browser):
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    slide = file_of(microscopic(quarters(SIDE, SIDE), on_slide=True))  # at 0.5 um/px
    with behind_gateway(browser, segmenter) as (visit, gateway, _):
        page = visit.page
        page.get_by_label("Pixel size", exact=True).fill("2")
        show(page, upload("slide.dcm", slide, "application/dicom"))
        expect(page.get_by_text("0.5 µm/px in the DICOM file.")).to_be_visible()
        expect(page.get_by_role("button", name="Segment again at this pixel size")).to_be_hidden()
        downloaded(page, "Polygons")
        assert not [seen.query for seen in gateway.uploads if "mpp" in seen.query]


def test_a_tiffs_own_pixel_size_is_told_and_can_be_corrected(browser):
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    patch = encoded(quarters(SIDE, SIDE), "TIFF", resolution=20_000, resolution_unit="cm")  # 0.5 um/px
    with behind_gateway(browser, segmenter) as (visit, _, _):
        page = visit.page
        show(page, upload("patch.tif", patch, "image/tiff"))
        expect(page.get_by_text("0.5 µm/px in the file.")).to_be_visible()
        page.get_by_label("Pixel size", exact=True).fill("2")
        page.get_by_role("button", name="Segment again at this pixel size").click()
        expect(page.get_by_text("2 µm/px as stated.")).to_be_visible()


def test_what_was_stated_of_a_cancelled_patch_still_holds_and_a_failed_one_is_restated(browser):
    gate = asyncio.Event()
    with behind_gateway(browser, ColourSegmenter(gate=gate)) as (visit, gateway, running):
        page = visit.page
        field = page.get_by_label("Pixel size", exact=True)
        field.fill("0.5")
        choose(page)
        expect(page.get_by_role("option")).to_contain_text("being segmented")
        eventually(lambda: equal(gateway.inside, 1))
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("option")).to_contain_text("cancelled")
        field.fill("40")
        choose(page)
        expect(page.get_by_role("alert")).to_contain_text("Pixel size")
        field.fill("0.25")
        running.loop.call_soon_threadsafe(gate.set)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("option").filter(has_text="tumor")).to_have_count(2)
        sent = [seen.query.split("&")[0] for seen in gateway.uploads]
        assert sent[0] == "mpp=0.5"
        assert {"mpp=0.5", "mpp=0.25"} == set(sent[1:3])
        assert "mpp=40" not in sent
        assert visit.failed == []


def test_what_a_proxy_answers_is_no_download_but_told_in_words(visit):
    page = visit.page
    show(page)
    page.route("**/segment*", lambda route: route.fulfill(status=502, body="<html>down</html>"))
    page.get_by_role("button", name="Polygons").click()
    expect(page.get_by_role("alert")).to_contain_text("The service answered 502")
    assert visit.failed == ["502"]
    sign_in = {"status": 200, "content_type": "text/html", "body": "<html>sign in</html>"}
    page.route("**/segment*", lambda route: route.fulfill(**sign_in))
    page.get_by_role("button", name="Overlay PNG").click()
    expect(page.get_by_role("alert")).to_contain_text("Not the service's answer")


def test_the_page_works_under_a_prefix(browser):
    with behind_gateway(browser, prefix="/pathology/lab") as (visit, _, _):
        show(visit.page)
        assert_seen(visit.page.locator("#left"), {"tumor": blended("tumor", 0.4)})


def test_a_foreign_models_classes_and_colours_are_used(browser):
    classes = (
        TissueClass(name="gland", letter="G", color=(200, 0, 0)),
        TissueClass(name="lumen", letter="L", color=(0, 0, 200)),
        TissueClass(name="mucin", letter="M", color=(0, 200, 200)),
        TissueClass(name="glass", letter="X", color=(99, 99, 99), label=False),
    )
    known = manifest().model_copy(update={"classes": classes, "label_thresholds": (0.2, 0.5, 0.8), "name": "glands"})
    with behind_gateway(browser, ColourSegmenter(known)) as (visit, _, _):
        page = visit.page
        expect(page.locator("#model")).to_have_text("glands 1.0")
        expect(page.locator(".legend li")).to_have_text(["Gland", "Lumen", "Mucin", "Glass"])
        show(page)
        page.get_by_label("Opacity").fill("100")
        assert_seen(page.locator("#left"), dict(zip(MASK, [(200, 0, 0), (0, 0, 200), (0, 200, 200)], strict=True)))
        assert_seen(page.locator("#left"), {"background": WHITE})
        page.get_by_role("checkbox", name="Glass").check()
        assert_seen(page.locator("#left"), {"background": (99, 99, 99)})


def test_the_largest_patch_is_shown(browser):
    side = 4096
    segmenter = ColourSegmenter(manifest(window_px=1024, margin_px=8))
    with behind_gateway(browser, segmenter) as (visit, _, _):
        page = visit.page
        show(page, upload("large.png", encoded(quarters(side, side), compress_level=1)))
        expect(page.locator("#alert")).to_be_hidden()
        assert_seen(page.locator("#left"), {name: blended(name, 0.4) for name in QUARTERS})


def test_everything_is_reached_and_worked_by_the_keyboard(page):
    page.on("filechooser", lambda _: None)  # Playwright begins to catch choosers now, and not in the moment of the key
    keyboard = page.keyboard
    focused = page.locator(":focus")
    keyboard.press("Tab")
    expect(focused).to_have_text("Skip to the view")
    assert focused.bounding_box()["x"] >= 0
    keyboard.press("Tab")
    expect(focused).to_have_text("API key")
    keyboard.press("Tab")
    expect(focused).to_have_attribute("type", "file")
    with page.expect_file_chooser() as chooser:
        keyboard.press("Enter")
    chooser.value.set_files([upload("one.png"), upload("two.png"), upload("three.png", encoded(plain(BLUE, 64, 64)))])
    expect(page.get_by_role("status").filter(has_text="done")).to_have_text("3 of 3 done")
    keyboard.press("Tab")
    expect(focused).to_have_attribute("id", "mpp")
    for preset in ("10\u00d7", "20\u00d7", "40\u00d7"):
        keyboard.press("Tab")
        expect(focused).to_have_text(preset)
    keyboard.press("Tab")
    expect(focused).to_have_text("Table CSV")
    keyboard.press("Tab")
    expect(focused).to_have_text("Clear list")
    keyboard.press("Tab")
    expect(focused).to_contain_text("one.png")
    keyboard.press("End")
    expect(focused).to_contain_text("three.png")
    keyboard.press("ArrowUp")
    expect(focused).to_contain_text("two.png")
    expect(page.get_by_role("heading", name="two.png")).to_be_visible()
    expect(page.locator("#busy")).to_be_empty()
    reached = []
    while len(reached) < 20 and "Answer" not in str(reached[-1:]):
        keyboard.press("Tab")
        reached.append(
            focused.evaluate("element => element.ariaLabel ?? element.labels?.[0]?.innerText ?? element.innerText")
        )
    assert [text.split(".")[0].split("\n")[0] for text in reached] == [
        *("Overlay", "Tissue", "Opacity", "Patterns", "Hide overlay", "Patch", "Zoom out", "Zoom in", "Fit"),
        *("Tumor", "Stroma", "Normal", "Background", "Mask", "Overlay", "Polygons", "Answer"),
    ]
    for _ in range(len(reached) - 1):
        keyboard.press("Shift+Tab")
    keyboard.press("ArrowRight")  # from Overlay to Side by side
    expect(page.locator("#right")).to_be_visible()


def test_keys_move_the_view_and_never_turn_it(page):
    show(page)
    left = page.locator("#left")
    view = left.get_by_role("application")
    before = {name: blended(name, 0.4) for name in QUARTERS}
    assert_seen(left, before)
    view.press("r")
    view.press("f")
    assert_seen(left, before)
    view.press("ArrowLeft", delay=400)
    eventually(lambda: _differs(picture_of(left), before))
    view.press("0")
    assert_seen(left, before)


def _differs(picture: RgbImage, expected: dict[str, tuple[float, ...]]) -> None:
    height, width = picture.shape[:2]
    edge = round(width / 2 - min(height, width) / 2 + 3)
    assert np.abs(picture[height // 4, edge] - expected["tumor"]).max() > 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_accessibility_rule_is_broken(browser, url, scheme, width):
    size = {"width": width, "height": 800}
    with visiting(browser, url, "/viewer", color_scheme=scheme, viewport=size) as visit:
        page = visit.page
        expect(page.locator("#model")).not_to_be_empty()
        assert_accessible(page)
        show(page, upload(), upload("bad.png", b"nothing"))
        expect(page.get_by_role("alert")).to_be_visible()
        assert_accessible(page)
        pick(page, "Side by side")
        pick(page, "Confidence")
        page.get_by_label("Patterns").check()
        expect(page.get_by_text("Unsure, 25%")).to_be_visible()
        page.get_by_text("Where this comes from").click()
        assert_accessible(page)
        page.locator("summary").first.click()
        assert_accessible(page)
        page.get_by_role("option").last.click()
        assert_accessible(page)


def test_forced_colours_leave_what_a_colour_says(browser, url):
    def background(found: Locator) -> str:
        return str(found.evaluate("found => getComputedStyle(found).backgroundColor"))

    with visiting(browser, url, "/viewer", forced_colors="active") as visit:
        show(visit.page)
        button = visit.page.get_by_role("button", name="Hide overlay")
        shown = background(button)
        button.click()
        visit.page.mouse.move(0, 0)
        assert background(button) != shown
        button.click()
        pick(visit.page, "Side by side")
        pick(visit.page, "Confidence")
        for one in (".unshown .swatch", "#right"):  # once the confidence has come
            expect(visit.page.locator(one)).to_have_css("background-color", "rgb(158, 158, 158)")


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_nothing_sticks_out_of_a_screen(browser, url, width):
    with visiting(browser, url, "/viewer", viewport={"width": width, "height": 700}) as visit:
        show(visit.page, upload("a-rather-long-file-name-without-any-space-as-scanners-write-them-0123456789.png"))
        pick(visit.page, "Side by side")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_shipped_model_answers_the_example_patches(browser, service: RunningService):
    paths = sorted((ROOT / "examples" / "patches").glob("*.png"))
    with visiting(browser, service.url, "/viewer") as visit:
        show(visit.page, *(str(path) for path in paths))
        status = visit.page.get_by_role("status").filter(has_text="done")
        expect(status).to_have_text(f"{len(paths)} of {len(paths)} done")
        expect(visit.page.get_by_role("option").filter(has_text="drawn-tumor-stroma")).to_contain_text("tumor, stroma")
        for option in visit.page.get_by_role("option").all():
            option.click()
            expect(option).to_have_attribute("aria-selected", "true")
            expect(visit.page.locator("#disagreement")).to_be_empty()
        overlay = np.asarray(opened(downloaded(visit.page, "Overlay")[1]).convert("RGB"))
        assert overlay.std() > 10
