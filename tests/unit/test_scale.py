"""At which scale the model sees an image, and that what is answered is of the image's own pixels all the same."""

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.errors import ImageTooLarge, OutOfMemory
from app.imaging import resampling
from app.imaging.resampling import resample_image, resample_map
from app.pathology.geometry import Size
from app.segmentation.budget import PixelBudget
from app.segmentation.patch import PatchLimits, PatchSegmentation, SegmentedPatch
from app.segmentation.reading import Upload
from app.segmentation.scale import Scale, check_seen, plan_scale
from app.segmentation.workers import Workers
from app.slides import dicom
from app.slides.dicom_matrix import um_per_px
from app.telemetry.metrics import Metrics
from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import file_of, header_of, microscopic, secondary_capture, whole_slide
from tests.fakes import ColourSegmenter, classes_of, manifest
from tests.pictures import BLUE, WHITE, encoded, noise, plain, quarters

MODEL = 1.0
SIDE_PX = 400


def segmenter(um_per_px: float | None = MODEL) -> ColourSegmenter:
    return ColourSegmenter(manifest().model_copy(update={"um_per_px": um_per_px}))


def segment(data: bytes, mpp: float | None, model: ColourSegmenter | None = None) -> SegmentedPatch:
    async def scenario() -> SegmentedPatch:
        metrics = Metrics(CollectorRegistry())
        workers = Workers(1, metrics)
        used = model or segmenter()
        await used.start(metrics)
        try:
            patches = PatchSegmentation(used, workers, metrics, PatchLimits(SIDE_PX, 4 * SIDE_PX**2))
            async with patches.segmented(Upload(data, mpp)) as patch:
                return patch
        finally:
            await workers.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("stated", "in_header", "model", "expected"),
    [
        (0.5, None, 1.0, Scale(0.5, "request", 1.0, factor=0.5)),
        (2.0, 0.5, 1.0, Scale(2.0, "request", 1.0, factor=2.0)),
        (None, 0.25, 0.5, Scale(0.25, "dicom", 0.5, factor=0.5)),
        (None, None, 1.0, Scale(None, None, 1.0, unchanged="mpp_unknown")),
        (None, None, None, Scale(None, None, None, unchanged="mpp_unknown")),
        (0.5, None, None, Scale(0.5, "request", None, unchanged="model_um_per_px_unknown")),
        (None, 0.5, None, Scale(0.5, "dicom", None, unchanged="model_um_per_px_unknown")),
        (0.99, None, 1.0, Scale(0.99, "request", 1.0, unchanged="within_tolerance")),
        (1.02, None, 1.0, Scale(1.02, "request", 1.0, unchanged="within_tolerance")),
        (1.03, None, 1.0, Scale(1.03, "request", 1.0, factor=1.03)),
        (None, 254.0, 1.0, Scale(None, None, 1.0, unchanged="mpp_unknown")),  # a screen's spacing, not a microscope's
        (None, 0.001, 1.0, Scale(None, None, 1.0, unchanged="mpp_unknown")),
    ],
)
def test_a_stated_spacing_wins_and_what_is_not_known_changes_nothing(stated, in_header, model, expected):
    assert plan_scale(stated, in_header, model, Size(300, 200), "dicom") == expected


@pytest.mark.parametrize(("in_file", "own"), [(0.25, 0.25), (10.0, 10.0), (10.1, None), (0.049, None)])
def test_what_a_file_that_is_no_dicom_says_is_told_apart(in_file, own):
    scale = plan_scale(None, in_file, 1.0, Size(300, 200), "file")
    assert (scale.um_per_px, scale.source) == (own, None if own is None else "file")
    assert plan_scale(2.0, in_file, 1.0, Size(300, 200), "file").source == "request"


def test_what_kind_of_file_it_is_has_to_be_said():
    with pytest.raises(TypeError, match="kind"):
        plan_scale(None, 0.5, 1.0, Size(300, 200))


def test_a_size_never_falls_below_a_pixel():
    assert plan_scale(0.1, None, 1.0, Size(300, 3), "file").seen(Size(300, 3)) == Size(30, 1)


@pytest.mark.parametrize(("size", "factor"), [(Size(10, 8), 1.0), (Size(10, 20), 1.04), (Size(1, 1), 1.0)])
def test_what_would_keep_its_size_counts_as_unchanged(size, factor):
    scale = plan_scale(1.04, None, 1.0, size, "file")
    assert scale == Scale(1.04, "request", 1.0, factor, "within_tolerance" if factor == 1 else None)
    assert (scale.seen(size) == size) == (factor == 1)


@pytest.mark.parametrize(("mpp", "seen"), [(0.5, {(64, 64, 3)}), (1.0, {(64, 64, 3)}), (0.25, {(32, 32, 3)})])
def test_the_model_sees_its_own_spacing_and_the_maps_are_of_the_upload(mpp, seen):
    image = quarters(128, 128)
    model = segmenter()
    patch = segment(encoded(image), mpp, model)
    assert set(model.windows) == seen
    assert len(model.windows) == (9 if mpp == 1 else 1)
    assert patch.class_map.shape == patch.confidence.shape == (128, 128)
    inside = np.r_[:56, 72:128]  # where two colours meet, resampled ones are neither
    assert np.array_equal(patch.class_map[np.ix_(inside, inside)], classes_of(image)[np.ix_(inside, inside)])
    assert np.array_equal(patch.image, image)
    assert (patch.confidence == 200).all()


def test_fractions_are_those_of_the_map_that_is_answered():
    patch = segment(encoded(noise(130, 70)), 1.7)
    counts = np.bincount(patch.class_map.ravel(), minlength=4) / patch.class_map.size
    assert patch.fractions == tuple(counts)


def test_pixels_of_nearly_the_models_spacing_are_left_alone():
    image = noise(90, 60)
    patch = segment(encoded(image), 1.019)
    assert np.array_equal(patch.class_map, classes_of(image))
    assert (patch.scale.factor, patch.scale.unchanged) == (1.0, "within_tolerance")


def test_a_model_without_a_spacing_changes_nothing_and_says_so():
    image = noise(90, 60)
    patch = segment(encoded(image), 0.25, segmenter(None))
    assert np.array_equal(patch.class_map, classes_of(image))
    assert patch.scale == Scale(0.25, "request", None, unchanged="model_um_per_px_unknown")


@pytest.mark.parametrize("mpp", [8.0, None])
def test_what_would_be_too_large_for_the_model_is_refused_before_it_is_decoded(mpp):
    broken = encoded(plain(WHITE, 100, 60))[:-30]
    slide = file_of(microscopic(plain(WHITE, 100, 60), on_slide=True, PixelSpacing=["0.008", "0.008"]))
    said = (
        f"100x60 px at 8 um/px .{'mpp' if mpp else 'its DICOM header'}. and would be 800x480 px at the model's 1 um/px"
    )
    advice = "send at most 400 um a side" + ("" if mpp else ", or state mpp")
    with pytest.raises(ImageTooLarge, match=f"{said}; each side may have at most 400 px: {advice}$"):
        segment(broken if mpp else slide, mpp)


def in_cm(image: np.ndarray, um_per_px: float) -> bytes:
    return encoded(image, "TIFF", resolution=10_000 / um_per_px, resolution_unit="cm")


def test_what_a_tiff_says_of_itself_is_taken_unless_a_spacing_is_stated():
    image = quarters(128, 128)
    model = segmenter()
    patch = segment(in_cm(image, 0.5), None, model)
    assert patch.scale == Scale(0.5, "file", 1.0, factor=0.5)
    assert model.windows == [(64, 64, 3)]
    assert np.array_equal(patch.image, image)
    assert segment(in_cm(image, 0.5), 2.0).scale == Scale(2.0, "request", 1.0, factor=2.0)
    assert segment(encoded(image, "TIFF", dpi=(300, 300)), None).scale.unchanged == "mpp_unknown"


def test_a_tiff_that_is_too_large_for_the_model_by_its_own_words_is_refused_before_it_is_decoded():
    whole = in_cm(noise(300, 60), 2.0)
    with pytest.raises(ImageTooLarge, match=r"300x60 px at 2 um/px .its TIFF tags. .* a side, or state mpp$"):
        segment(whole[:-30], None)
    assert segment(whole, 1.0).scale.source == "request"


def test_the_largest_area_that_the_refusal_names_passes():
    size = Size(SIDE_PX // 8, SIDE_PX // 8)  # 400 um at 8 um/px
    check_seen(plan_scale(8.0, None, MODEL, size, "file"), size, SIDE_PX)
    more = Size(size.width_px + 1, 1)
    with pytest.raises(ImageTooLarge):
        check_seen(plan_scale(8.0, None, MODEL, more, "file"), more, SIDE_PX)


def test_a_stated_spacing_gets_an_upload_past_its_header():
    slide = file_of(microscopic(plain(BLUE, 100, 60), on_slide=True, PixelSpacing=["0.008", "0.008"]))
    assert segment(slide, MODEL).scale.source == "request"


@pytest.mark.parametrize(("mpp", "held"), [(None, 30 * 30), (1.0, 30 * 30), (2.0, 30 * 30 + 60 * 60)])
def test_what_the_model_sees_is_accounted_for_beside_the_upload(monkeypatch, mpp, held):
    asked = []
    hold = PixelBudget.hold
    monkeypatch.setattr(PixelBudget, "hold", lambda budget, pixels: asked.append(pixels) or hold(budget, pixels))
    segment(encoded(noise(30, 30)), mpp)
    assert asked == [held]


def test_shrinking_averages_what_a_pixel_covers_and_maps_keep_their_values():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    shrunk = resample_image(stripes, Size(16, 16))
    assert (shrunk.shape, shrunk.dtype) == ((16, 16, 3), np.uint8)
    assert np.abs(shrunk[2:-2].astype(int) - 100).max() <= 3  # every other row taken alone would be 0 or 200
    classes = np.array([[0, 3], [3, 0]], np.uint8)
    assert np.array_equal(resample_map(classes, Size(6, 4)), np.kron(classes, np.ones((2, 3), np.uint8)))


def test_no_memory_is_said_as_such(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(resampling.Image.Image, "resize", full)
    with pytest.raises(OutOfMemory, match="rescale"):
        resample_image(noise(4, 4), Size(2, 2))


SPACINGS = [
    (["0.00025", "0.00025"], 0.25),
    (["0.000249", "0.000251"], 0.25),
    (["0.00025", "0.0005"], None),
    (["0", "0"], None),
    (["-0.001", "-0.001"], None),
    (["1e999", "1e999"], None),
    (["nan", "nan"], None),
    (["wide", "high"], None),
    (["0.001"], None),
    ([], None),
]


@pytest.mark.parametrize(("spacing", "expected"), SPACINGS)
def test_a_frames_spacing_is_read_and_a_broken_one_costs_nothing(spacing, expected):
    field = microscopic(noise(20, 10), on_slide=True)
    field.PixelSpacing = ["1", "1"]
    field["PixelSpacing"]._value = spacing
    data = file_of(field)
    instance = dicom.opened(data, SIDE_PX)
    assert instance.size == Size(20, 10)
    assert instance.um_per_px() == (None if expected is None else pytest.approx(expected))
    assert decode_dicom(data, SIDE_PX).shape == (10, 20, 3)


def test_a_slides_spacing_is_in_its_shared_groups_and_other_images_have_none():
    assert dicom.opened(file_of(whole_slide(noise(40, 30), tile=32)), SIDE_PX).um_per_px() == pytest.approx(0.5)
    assert (
        dicom.opened(file_of(whole_slide(noise(40, 30), SharedFunctionalGroupsSequence=[])), SIDE_PX).um_per_px()
        is None
    )
    assert dicom.opened(file_of(secondary_capture(noise(40, 30))), SIDE_PX).um_per_px() is None
    assert dicom.opened(file_of(microscopic(noise(40, 30))), SIDE_PX).um_per_px() is None


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        (["0.0005"] * 2, ["0.00025"] * 2, 0.5),
        (None, ["0.00025"] * 2, 0.25),
        ([], ["0.00025"] * 2, 0.25),
        (["0.0005"] * 2, [], 0.5),
        (["0.0005", "0.00025"], ["0.00025"] * 2, None),  # what is stated, and of no use, is not looked for elsewhere
    ],
)
def test_a_slide_is_asked_for_its_shared_spacing_first(shared, own, expected):
    slide = whole_slide(noise(40, 30))
    slide.PixelSpacing = own
    if shared is None:
        slide.SharedFunctionalGroupsSequence = []
    else:
        slide.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = shared
    found = um_per_px(header_of(slide))
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("own", "expected"), [(["0.00025"] * 2, 0.25), ([], 0.5)])
def test_a_frame_is_asked_for_its_own_spacing_first(own, expected):
    field = microscopic(noise(40, 30))
    field.SharedFunctionalGroupsSequence = whole_slide(noise(40, 30)).SharedFunctionalGroupsSequence
    field.PixelSpacing = own
    assert um_per_px(header_of(field)) == pytest.approx(expected)


def test_no_memory_for_a_spacing_is_not_taken_for_no_spacing(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    header = header_of(microscopic(noise(4, 4), on_slide=True))
    monkeypatch.setattr(type(header), "get", full)
    with pytest.raises(MemoryError):
        um_per_px(header)
