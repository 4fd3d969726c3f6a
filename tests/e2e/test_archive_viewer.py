"""A slide and its segmentation from a real archive, over each other in a real browser, behind the profile's nginx."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import httpx2 as httpx
import numpy as np
import pydicom
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pydicom.uid import generate_uid

from app.interop.dicom_file import to_bytes
from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.classes import NORMAL, STROMA, TUMOR, WSSS4LUAD, TissueClass
from tests.dicom_results import segmentation_object, segmentation_pyramid
from tests.e2e.browser import Visit, eventually, visiting
from tests.fakes import manifest
from tests.orthanc import Orthanc, running_orthanc
from tests.pacs import PASSWORDS, READER, WATCHER, Nginx, install_libraries, orthanc_options, running_nginx
from tests.slides import cmu1, write_slide

ANSWERED, LAYERED, WAITING, STRANGE, VERSIONED = "answered", "layered", "waiting", "strange", "versioned"
"""Accession numbers of the slides, each of three levels: with a segmentation of its finest, of every one, of none; with
one that is shown below newer ones that the viewer cannot show; and with those of two versions of a model."""

PLACES = {TUMOR.name: (100, 100, 600, 500), STROMA.name: (800, 100, 1300, 500), NORMAL.name: (100, 600, 600, 1000)}
"""Where the slide holds which class: left, top, right and bottom in px of its finest level; the rest is background."""

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"


TOLERANCE = 2
"""How far a blended pixel may be from slide + opacity x (colour - slide), in levels of 255.

The slide as it was shown alone, the blend and the canvas are each rounded to whole levels, by half a level at most;
0.8 was seen with Chromium 156. A colour that is off by 6 levels is found at an opacity of 0.5.
"""


def class_map() -> ClassMap:
    found = np.full(cmu1().shape[:2], 3, np.uint8)
    for index, tissue in enumerate(WSSS4LUAD):
        if tissue.name in PLACES:
            left, top, right, bottom = PLACES[tissue.name]
            found[top:bottom, left:right] = index
    return found


def strange_segmentations(source: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    """Give segmentations of a slide, newest last: the first is one that can be shown."""

    def segmentation(name: str, **attributes: str) -> pydicom.Dataset:
        found = segmentation_object(source, class_map(), manifest())
        found.SeriesDescription = name
        found.SeriesInstanceUID, found.SOPInstanceUID = (
            generate_uid(entropy_srcs=[name]),
            generate_uid(None, [name, "1"]),
        )
        found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
        for keyword, value in attributes.items():
            setattr(found, keyword, value)
        return found

    yield segmentation("plain", ContentDate="20200102")
    label_map = segmentation("label map", ContentDate="20200103", SOPClassUID=LABEL_MAP)
    label_map.file_meta.MediaStorageSOPClassUID = LABEL_MAP
    yield label_map
    yield segmentation(
        "elsewhere", ContentDate="20200104", FrameOfReferenceUID=generate_uid(entropy_srcs=["elsewhere"])
    )
    no_matrix = segmentation("no matrix", ContentDate="20200105")
    del no_matrix.TotalPixelMatrixRows
    del no_matrix.TotalPixelMatrixColumns
    yield no_matrix
    unnamed = segmentation("its second segment has no type", ContentDate="20200106")
    del unnamed.SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    yield unnamed


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """The profile's archive, with the slides and their segmentations."""
    folder = tmp_path_factory.mktemp("pacs")
    slide = write_slide(folder / "slide", cmu1(), name=ANSWERED)
    source = pydicom.dcmread(slide[0], stop_before_pixels=True)
    segmentation = folder / "segmentation.dcm"
    segmentation.write_bytes(to_bytes(segmentation_object(source, class_map(), manifest())))
    layered = write_slide(folder / "layered", cmu1(), name=LAYERED)
    levels = [pydicom.dcmread(path, stop_before_pixels=True) for path in layered]
    pyramid = []
    for level in segmentation_pyramid(levels, class_map(), manifest()):
        pyramid.append(folder / f"pyramid-{level.InstanceNumber}.dcm")
        pyramid[-1].write_bytes(to_bytes(level))
    other = write_slide(folder / "other", cmu1(512, 512), name=WAITING)
    strange = write_slide(folder / "strange", cmu1(), name=STRANGE)
    versioned = write_slide(folder / "versioned", cmu1(512, 512), name=VERSIONED)
    finest = pydicom.dcmread(versioned[0], stop_before_pixels=True)
    for version in ("0.9.1", "0.10.0"):
        model = manifest().model_copy(update={"version": version})
        versioned.append(folder / f"{version}.dcm")
        versioned[-1].write_bytes(to_bytes(segmentation_object(finest, class_map()[:512, :512], model)))
    with pytest.MonkeyPatch.context() as patch:
        for name, password in PASSWORDS.items():
            patch.setenv(name, password)
        with running_orthanc(folder / "archive", **orthanc_options()) as running:
            running.send([*slide, segmentation, *layered, *pyramid, *other, *strange, *versioned])
            # Not by storescu, which knows no Label Map Segmentations.
            for each in strange_segmentations(pydicom.dcmread(strange[0], stop_before_pixels=True)):
                httpx.post(f"{running.url}/instances", auth=WATCHER, content=to_bytes(each)).raise_for_status()
            yield running


@pytest.fixture(scope="module")
def nginx(archive: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    install_libraries()
    with running_nginx(tmp_path_factory.mktemp("nginx") / "run", f"127.0.0.1:{archive.http_port}") as running:
        yield running


@contextmanager
def reading(browser: Browser, nginx: Nginx, width_px: int = 960, height_px: int = 600) -> Iterator[Visit]:
    """Open the list of slides with the reader's password."""
    credentials = {"username": READER[0], "password": READER[1]}
    window = {"width": width_px, "height": height_px}
    with visiting(browser, nginx.url, "/", http_credentials=credentials, viewport=window) as visit:
        yield visit
    assert visit.failed == []


@pytest.fixture
def visit(browser: Browser, nginx: Nginx) -> Iterator[Visit]:
    with reading(browser, nginx) as visit:
        yield visit


def open_slide(page: Page, accession: str) -> None:
    page.get_by_role("row", name=accession).get_by_role("link").click()
    expect(page.get_by_role("application", name="Slide")).to_have_attribute("aria-busy", "false", timeout=30_000)


def series_of_frames(visit: Visit) -> set[str]:
    """Return the series of which frames were fetched."""
    return {url.split("/series/")[1].split("/")[0] for url in visit.requests if "/frames/" in url}


def instances_of_frames(visit: Visit) -> set[str]:
    """Return the instances of which frames were fetched."""
    return {url.split("/instances/")[1].split("/")[0] for url in visit.requests if "/frames/" in url}


def shown(page: Page) -> RgbImage:
    """Return the viewport as it is on the screen, (H, W, 3) uint8."""
    return np.asarray(Image.open(BytesIO(page.locator("#viewport").screenshot())).convert("RGB"))


def place_of(tissue: TissueClass, picture: RgbImage) -> RgbImage:
    """Return what `picture` shows where the slide holds `tissue`, some px from the border.

    The slide fills the viewport's width or height, in its middle. Its rows run along -y and its columns along -x of
    the glass (Image Orientation (Slide) 0, -1, 0, -1, 0, 0), which the viewer shows upright: the image is turned by 180
    degrees.
    """
    height, width = picture.shape[:2]
    slide_height, slide_width = cmu1().shape[:2]
    scale = min(width / slide_width, height / slide_height)
    left, top, right, bottom = PLACES[tissue.name]
    xs = sorted(round(width / 2 - (x - slide_width / 2) * scale) for x in (left, right))
    ys = sorted(round(height / 2 - (y - slide_height / 2) * scale) for y in (top, bottom))
    margin = 5
    return picture[ys[0] + margin : ys[1] - margin, xs[0] + margin : xs[1] - margin].astype(float)


def assert_blended(slide: RgbImage, picture: RgbImage, tissue: TissueClass, opacity: float) -> None:
    """Check every pixel of a class's place, and that the class is really drawn there."""
    alone = place_of(tissue, slide)
    expected = alone + opacity * (np.array(tissue.color) - alone)
    assert np.abs(place_of(tissue, picture) - expected).max() <= TOLERANCE, tissue.name


def alone_of(page: Page) -> RgbImage:
    """Hide every segment and return the slide as it is then shown."""
    for box in page.get_by_role("checkbox").all():
        box.uncheck()
    source = cmu1()[::-1, ::-1]
    picture = shown(page)

    def is_the_slide_at_rest() -> None:  # whose last tiles may come later
        nonlocal picture
        before, picture = picture, shown(page)
        np.testing.assert_array_equal(picture, before)
        for tissue in (TUMOR, STROMA, NORMAL):
            left, top, right, bottom = PLACES[tissue.name]
            there = source[-bottom : -top or None, -right : -left or None]
            assert np.abs(place_of(tissue, picture).mean((0, 1)) - there.mean((0, 1))).max() < 6

    eventually(is_the_slide_at_rest)
    return picture


def test_the_segments_lie_over_the_slide_in_their_colours(visit: Visit) -> None:
    page = visit.page
    open_slide(page, ANSWERED)
    slide = alone_of(page)
    for box in page.get_by_role("checkbox").all():
        box.check()

    def blended() -> None:
        picture = shown(page)
        for tissue in (TUMOR, STROMA, NORMAL):
            assert_blended(slide, picture, tissue, 0.5)

    eventually(blended)


def test_a_segment_goes_and_comes_by_the_keyboard_and_the_others_stay(visit: Visit) -> None:
    page = visit.page
    open_slide(page, ANSWERED)
    slide = alone_of(page)
    for name in ("tumor", "stroma", "normal"):
        page.get_by_role("checkbox", name=name).press("Space")

    def only(*visible: TissueClass) -> None:
        picture = shown(page)
        for tissue in (TUMOR, STROMA, NORMAL):
            assert_blended(slide, picture, tissue, 0.5 if tissue in visible else 0.0)

    eventually(lambda: only(TUMOR, STROMA, NORMAL))
    page.get_by_role("checkbox", name="tumor").press("Space")
    eventually(lambda: only(STROMA, NORMAL))
    page.get_by_role("checkbox", name="normal").press("Space")
    eventually(lambda: only(STROMA))
    page.get_by_role("checkbox", name="tumor").press("Space")
    eventually(lambda: only(TUMOR, STROMA))


def test_the_slider_sets_the_opacity(visit: Visit) -> None:
    page = visit.page
    open_slide(page, ANSWERED)
    slide = alone_of(page)
    for box in page.get_by_role("checkbox").all():
        box.check()
    slider = page.get_by_role("slider", name="Opacity of the overlay")
    for _ in range(6):
        slider.press("ArrowRight")

    def blended() -> None:
        picture = shown(page)
        for tissue in (TUMOR, STROMA, NORMAL):
            assert_blended(slide, picture, tissue, 0.8)

    eventually(blended)


def test_the_slide_is_moved_and_zoomed_by_keys_and_buttons(visit: Visit) -> None:
    page = visit.page
    open_slide(page, ANSWERED)
    whole = alone_of(page)
    viewport = page.get_by_role("application", name="Slide")

    def change_from(picture: RgbImage) -> float:
        within = np.s_[10:-10, 10:-10]  # the ring of the keyboard's focus lies on the border
        return float(np.abs(shown(page)[within].astype(int) - picture[within]).mean())

    def differs(picture: RgbImage = whole) -> None:
        assert change_from(picture) > 10

    def is_whole() -> None:
        assert change_from(whole) < 1

    viewport.press("+")
    eventually(differs)
    page.get_by_role("button", name="Zoom out").click()
    eventually(is_whole)
    page.get_by_role("button", name="Zoom in").click()
    eventually(differs)
    viewport.press("-")
    eventually(is_whole)
    viewport.press("+")
    eventually(differs)
    zoomed = shown(page)
    viewport.press("ArrowLeft")
    eventually(lambda: differs(zoomed))
    page.get_by_role("button", name="Whole slide").click()
    eventually(is_whole)
    viewport.press("ArrowDown")
    viewport.press("0")
    eventually(is_whole)


def test_the_tiles_of_segments_are_not_fetched_for_a_slide_that_is_far_away(browser: Browser, nginx: Nginx) -> None:
    """In a window this small the slide appears nine times smaller than the segmentation's only level."""
    with reading(browser, nginx, 480, 300) as visit:
        page = visit.page
        open_slide(page, ANSWERED)
        hint = page.get_by_text("Zoom in to see the segments.")
        expect(hint).to_be_visible()
        assert len(series_of_frames(visit)) == 1
        page.get_by_role("button", name="Zoom in").click()
        page.get_by_role("button", name="Zoom in").click()
        expect(hint).to_be_hidden()

        def segments_are_fetched() -> None:
            shown(page)
            assert len(series_of_frames(visit)) == 2

        eventually(segments_are_fetched)


def test_a_pyramids_segments_lie_over_the_whole_slide_from_far_away(browser: Browser, nginx: Nginx) -> None:
    """Where a segmentation of the finest level alone would not be drawn; only tiles of the coarsest are fetched."""
    with reading(browser, nginx, 640, 480) as visit:
        page = visit.page
        open_slide(page, LAYERED)
        expect(page.get_by_text("Zoom in to see the segments.")).to_be_hidden()

        def both_are_fetched() -> None:
            shown(page)
            assert len(instances_of_frames(visit)) == 2

        eventually(both_are_fetched)
        slide = alone_of(page)
        for box in page.get_by_role("checkbox").all():
            box.check()

        def blended() -> None:
            picture = shown(page)
            for tissue in (TUMOR, STROMA, NORMAL):
                assert_blended(slide, picture, tissue, 0.5)

        eventually(blended)
        assert len(instances_of_frames(visit)) == 2


def test_the_list_names_each_slide_and_a_slide_without_result_says_so(visit: Visit) -> None:
    page = visit.page
    rows = page.get_by_role("table", name="Open a slide").get_by_role("row")
    expect(rows).to_have_count(6)
    expect(page.get_by_role("row", name=ANSWERED)).to_contain_text("2020-01-02")
    open_slide(page, WAITING)
    expect(page.get_by_role("status")).to_have_text("No segmentation of this slide is in the archive yet.")
    expect(page.get_by_role("checkbox")).to_have_count(0)


def test_segmentations_that_cannot_be_shown_are_counted_and_the_slide_and_the_others_are_shown(visit: Visit) -> None:
    page = visit.page
    open_slide(page, STRANGE)
    expect(page.get_by_text("4 segmentations of this slide cannot be shown.")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_role("group")).to_have_count(1)
    expect(page.get_by_role("group", name="plain")).to_be_visible()
    for name in ("tumor", "stroma", "normal"):
        expect(page.get_by_role("checkbox", name=name)).to_be_checked()
    slide = alone_of(page)
    page.get_by_role("checkbox", name="tumor").check()
    eventually(lambda: assert_blended(slide, shown(page), TUMOR, 0.5))


def test_every_page_says_what_it_is_for_and_is_accessible(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_role("row", name=ANSWERED)).to_be_visible()
    for address in (page.url, None):
        if address is None:
            open_slide(page, ANSWERED)
        expect(page.get_by_role("banner").get_by_text("Research use only")).to_be_visible()
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_the_address_names_no_slide_and_going_back_and_reloading_work(visit: Visit, nginx: Nginx) -> None:
    page = visit.page
    slide, table = page.get_by_role("application", name="Slide"), page.get_by_role("table", name="Open a slide")
    link = page.get_by_role("row", name=WAITING).get_by_role("link").get_attribute("href")
    open_slide(page, WAITING)
    page.reload()
    expect(slide).to_be_visible()
    assert page.url == f"{nginx.url}/?slide"
    page.go_back()
    expect(table).to_be_visible()
    expect(slide).to_be_hidden()
    page.go_forward()
    expect(slide).to_be_visible()
    page.get_by_role("link", name="All slides").click()
    expect(table).to_be_visible()
    page.goto(f"{nginx.url}/{link}")
    expect(slide).to_be_visible()
    assert page.url == f"{nginx.url}/?slide"


def test_newer_versions_of_a_model_come_first_where_their_moments_are_one(visit: Visit) -> None:
    page = visit.page
    open_slide(page, VERSIONED)
    legends = page.get_by_role("group").all_inner_texts()
    found = [next(name for name in ("0.10.0", "0.9.1") if name in legend) for legend in legends]
    assert found == ["0.10.0", "0.9.1"]


def test_a_reader_with_a_wrong_password_is_told_so(browser: Browser, nginx: Nginx) -> None:
    guess = {"username": READER[0], "password": "guess"}
    with visiting(browser, nginx.url, "/", http_credentials=guess) as visit:
        expect(visit.page.get_by_role("alert")).to_have_text("The archive asks for a name and a password.")
        expect(visit.page.get_by_role("table")).to_have_count(0)
    assert set(visit.failed) == {"401"}


def test_no_uid_is_in_the_log_of_a_visit(visit: Visit, nginx: Nginx, archive: Orthanc) -> None:
    open_slide(visit.page, ANSWERED)
    series = httpx.get(f"{archive.url}/series?expand", auth=READER).raise_for_status().json()
    uids = [one["MainDicomTags"]["SeriesInstanceUID"] for one in series]
    assert len(uids) == 14
    assert not any(uid in nginx.log for uid in uids)
