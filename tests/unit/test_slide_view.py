"""How the model sees a whole slide: on its own grid, whatever levels the slide has, and without seams."""

import asyncio
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from app.errors import ImageTooLarge
from app.interop.dicom_pyramid import reduced
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.pathology.tiling import plan_windows
from app.segmentation.scale import step_to
from app.segmentation.slide import check_pixels, choose_carrier, choose_view, described, segment_slide, warn_of
from app.segmentation.workers import Workers
from app.slides.slide import Level, Slide
from app.slides.view import View
from app.telemetry.metrics import Metrics
from tests.fakes import ColourSegmenter, classes_of, manifest
from tests.pictures import noise, quarters

SIDE_PX = 100_000


class Pictures:
    """A slide whose levels are arrays; remembers what was read of it."""

    def __init__(self, *images: RgbImage, um_per_px: float = 0.5) -> None:
        self._images = images
        finest = images[0].shape[1]
        self.levels = tuple(
            Level(Size(image.shape[1], image.shape[0]), um_per_px * finest / image.shape[1], finest / image.shape[1])
            for image in images
        )
        self.reads: list[Region] = []

    def read(self, level: int, region: Region) -> RgbImage:
        self.reads.append(region)
        image = self._images[level][region.slices]
        assert image.shape[:2] == (region.size.height_px, region.size.width_px), "read beyond the level"
        return image


class Blank(Pictures):
    """A slide of any size that takes no memory."""

    def __init__(self, *levels: Level) -> None:
        self.levels = levels
        self.reads = []

    def read(self, level: int, region: Region) -> RgbImage:
        self.reads.append(region)
        return np.zeros((region.size.height_px, region.size.width_px, 3), np.uint8)


def pyramid(*spacings: float | None, side_px: int = SIDE_PX) -> Slide:
    """Return a slide of these um/px, the finest of `side_px` a side."""
    finest = spacings[0] or 1.0
    steps = [(spacing or 1.0) / finest for spacing in spacings]
    sides = [max(1, round(side_px / step)) for step in steps]
    return Blank(
        *(Level(Size(side, side), spacing, step) for side, spacing, step in zip(sides, spacings, steps, strict=True))
    )


def resampled_at_once(image: RgbImage, step: Fraction) -> RgbImage:
    """Return the whole image on the grid, across and then down; the border is repeated to a whole pixel."""
    height, width = (math.ceil(math.ceil(side / step) / step.denominator) for side in image.shape[:2])
    whole = (height * step.numerator, width * step.numerator)
    padded = np.pad(image, ((0, whole[0] - image.shape[0]), (0, whole[1] - image.shape[1]), (0, 0)), mode="edge")
    size = (width * step.denominator, height * step.denominator)
    across = Image.fromarray(padded).resize((size[0], whole[0]), Image.Resampling.BICUBIC)
    grid = np.asarray(across.resize(size, Image.Resampling.BICUBIC))
    return grid[: math.ceil(image.shape[0] / step), : math.ceil(image.shape[1] / step)]


STEPS = [Fraction(2), Fraction(4), Fraction(33, 8), Fraction(13, 3), Fraction(21, 20), Fraction(1, 2), Fraction(3, 5)]


@pytest.mark.parametrize("step", [*STEPS, Fraction(1, 8), Fraction(7, 64)])
@pytest.mark.parametrize(("width", "height"), [(301, 230), (64, 64), (5, 130), (1, 1)])
def test_windows_are_cut_from_the_level_as_if_it_had_been_resampled_at_once(step, width, height):
    image = noise(width, height)
    view = View(Pictures(image), 0, step)
    whole = resampled_at_once(image, step)
    assert whole.shape[:2] == (view.level.size.height_px, view.level.size.width_px)
    for window in plan_windows(view.level.size, 64 if step > 1 else 512, 8, 32):
        assert np.array_equal(view.read(window.read), whole[window.read.slices]), window


@pytest.mark.parametrize("step", STEPS)
def test_single_pixels_are_those_of_the_whole(step):
    image = noise(90, 70)
    view = View(Pictures(image), 0, step)
    whole = resampled_at_once(image, step)
    for x, y in [(0, 0), (view.level.size.width_px - 1, view.level.size.height_px - 1), (7, 11), (13, 0)]:
        assert np.array_equal(view.read(Region(x, y, Size(1, 1)))[0, 0], whole[y, x])


@pytest.mark.parametrize("step", STEPS)
def test_a_narrow_region_has_the_pixels_of_a_wide_one(step):
    """Pillow would resample down first what is more than twice as high as wide."""
    view = View(Pictures(noise(400, 300)), 0, step)
    size = view.level.size
    wide = view.read(Region(0, 0, size))
    narrow = view.read(Region(10, 0, Size(2, size.height_px)))
    assert np.array_equal(narrow, wide[:, 10:12])
    assert np.array_equal(wide, resampled_at_once(noise(400, 300), step))


def test_a_level_at_the_models_spacing_is_handed_on_untouched():
    slide = Pictures(noise(50, 40))
    view = View(slide, 0, Fraction(1))
    assert view.level == slide.levels[0]
    region = Region(3, 4, Size(20, 10))
    assert np.array_equal(view.read(region), slide.read(0, region))
    assert slide.reads == [region, region]


def test_however_fine_a_level_is_no_more_of_it_is_read_at_once_than_fits():
    slide = Blank(Level(Size(SIDE_PX, SIDE_PX), 0.05, 1.0))
    view = View(slide, 0, Fraction(20))
    assert view.read(Region(7, 0, Size(300, 250))).shape == (250, 300, 3)
    assert len(slide.reads) == 4
    assert max(max(read.size.width_px, read.size.height_px) for read in slide.reads) < 4096 + 8 * 20


def test_the_grid_says_what_it_would_be_as_a_level():
    view = View(pyramid(0.25, 1.0, 4.0, side_px=1001), 0, Fraction(4))
    assert view.level == Level(Size(251, 251), 1.0, 4.0)


@pytest.mark.parametrize(
    ("own", "wanted", "step"),
    [
        (0.25, 1.0, Fraction(4)),
        (0.2527, 1.0, Fraction(4)),
        (0.499, 1.0, Fraction(2)),
        (0.998, 1.0, Fraction(1)),
        (1.02, 1.0, Fraction(1)),
        (2.0, 1.0, Fraction(1, 2)),
        (0.2204, 1.0, Fraction(9, 2)),
        (0.2425, 1.0, Fraction(21, 5)),
    ],
)
def test_the_step_is_the_simplest_that_gives_the_models_spacing(own, wanted, step):
    assert step_to(own, wanted) == step


@pytest.mark.parametrize("own", np.geomspace(0.05, 10, 200))
def test_any_spacing_becomes_the_models_within_the_tolerance(own):
    step = step_to(own, 1.0)
    assert 1 / 1.02 <= own * float(step) <= 1.02
    assert step.denominator <= 64


@pytest.mark.parametrize(
    ("spacings", "wanted", "index", "seen"),
    [
        ((0.5, 2.0, 8.0), 1.0, 0, 1.0),  # 4x steps with no level near: the nearest would be half or twice as fine
        ((0.25, 1.0, 4.0), 1.0, 1, 1.0),
        ((0.26, 1.04, 4.16), 1.0, 0, 1.0),
        ((0.499, 0.998, 1.996), 1.0, 1, 0.998),
        ((0.25,), 1.0, 0, 1.0),
        ((2.0, 4.0), 1.0, 0, 1.0),
        ((0.25, 0.5, None), 1.0, 1, 1.0),  # a coarse level whose pixels are not square
        ((0.02, 0.5), 1.0, 1, 1.0),
        ((0.5, 1.0), None, 0, 0.5),
        ((None, None), 1.0, 0, None),
        ((50.0, 100.0), 1.0, 0, 50.0),
    ],
)
def test_the_model_sees_its_own_spacing_whatever_levels_there_are(spacings, wanted, index, seen):
    view = choose_view(pyramid(*spacings), wanted, lambda level: True)
    assert view.index == index
    assert view.level.um_per_px == (None if seen is None else pytest.approx(seen, rel=0.02))


def test_without_a_spacing_the_finest_level_that_fits_is_seen():
    slide = pyramid(None, None, None)
    assert choose_view(slide, 1.0, lambda level: level.size.pixels < 100).index == 2
    assert choose_view(pyramid(0.5, 1.0), None, lambda level: level.size.width_px < SIDE_PX).index == 1


@pytest.mark.parametrize(
    ("spacings", "max_side_px", "carrier"),
    [
        ((0.5, 2.0, 8.0), SIDE_PX, 0),
        ((0.499, 1.996, 7.984), SIDE_PX, 0),  # of levels that are about as near, always the finer one
        ((0.501, 2.004, 8.016), SIDE_PX, 0),
        ((0.26, 1.04, 4.16), SIDE_PX, 1),
        ((0.25, 0.5, 1.0), SIDE_PX, 2),
        ((0.5, 2.0, 8.0), SIDE_PX // 2, 1),
        ((2.0, 4.0), SIDE_PX * 2, 0),
        ((None, None), SIDE_PX, 0),
    ],
)
def test_the_level_nearest_to_what_the_model_saw_carries_the_result(spacings, max_side_px, carrier):
    slide = pyramid(*spacings)
    view = choose_view(slide, 1.0, lambda level: True)
    assert choose_carrier(slide.levels, view, max_side_px**2, range(view.index, len(slide.levels))) == carrier


def test_a_slide_that_is_too_large_is_refused_with_its_size_in_px_and_mm():
    slide = pyramid(0.5)
    view = choose_view(slide, 1.0, lambda level: True)
    check_pixels(view.level, (SIDE_PX // 2) ** 2)
    with pytest.raises(ImageTooLarge, match=r"50000x50000 px \(50x50 mm at 1 um/px\), over the 1000 px allowed"):
        check_pixels(view.level, 1000)
    with pytest.raises(ImageTooLarge, match=r"100000x100000 px \(50x50 mm at 0.5 um/px\), over"):
        choose_carrier(slide.levels, view, (SIDE_PX // 2) ** 2, range(view.index, len(slide.levels)))
    assert described(Level(Size(3, 4), None, 1.0)) == "3x4 px at an unknown pixel spacing"


@pytest.mark.parametrize(
    ("spacings", "wanted", "words"),
    [
        ((0.25, 1.0), 1.0, None),
        ((1.25, 2.5), 1.0, None),
        ((1.4, 2.8), 1.0, "finest level has 1.4 um/px and is enlarged to the model's 1"),
        ((None, None), 1.0, "not square"),
        ((50.0, 100.0), 1.0, "not a microscope's"),
        ((0.25, 1.0), None, "at which um/px the model was trained is not known: it sees the slide's finest level"),
        ((None, None), None, "the model was trained is not known"),
    ],
)
def test_what_the_model_lacks_is_said(caplog, spacings, wanted, words):
    warn_of(choose_view(pyramid(*spacings), wanted, lambda level: True), wanted)
    assert len(caplog.messages) == (words is not None)
    assert (words or "") in caplog.text


def segmented(slide: Pictures, um_per_px: float) -> tuple[View, np.ndarray, int]:
    """Return what the model saw, its class map, and how often progress was told."""
    told: list[tuple[Region, np.ndarray]] = []

    async def scenario() -> tuple[View, np.ndarray]:
        metrics = Metrics(CollectorRegistry())
        workers, model = Workers(2, metrics), ColourSegmenter(manifest())
        await model.start(metrics)
        view = choose_view(slide, um_per_px, lambda level: True)
        try:
            area = await segment_slide(model, view, workers, metrics, lambda *seen: told.append(seen))
        finally:
            await workers.close()
        return view, area.class_map

    view, class_map = asyncio.run(scenario())
    assert all(np.array_equal(pixels, view.read(region)) for region, pixels in told)
    return view, class_map, len(told)


def test_a_class_map_has_no_seams_and_is_that_of_the_slide_resampled_at_once():
    image = noise(640, 500)
    slide = Pictures(image, image[::4, ::4])
    view, class_map, told = segmented(slide, 1.0)
    assert (view.index, view.step) == (0, 2)
    assert np.array_equal(class_map, classes_of(resampled_at_once(image, Fraction(2))))
    assert told == len(plan_windows(view.level.size, 64, 8, 32)) > 1


@pytest.mark.parametrize("um_per_px", [0.25, 1.0, 2.2])
def test_each_pixel_of_a_level_gets_the_class_of_what_lies_there(um_per_px):
    """Quarters of a slide come back as quarters, at each level and whatever grid the model saw."""
    image = quarters(400, 320)
    slide = Pictures(image, image[::2, ::2], image[::8, ::8])
    view, class_map, _ = segmented(slide, um_per_px)
    for level in slide.levels:
        downsample = Fraction(level.downsample / slide.levels[view.index].downsample)
        shape = (level.size.height_px, level.size.width_px)
        shown = reduced(class_map, shape, (downsample / view.step, downsample / view.step))
        wrong = shown != classes_of(quarters(level.size.width_px, level.size.height_px))
        along = math.ceil(3 * max(1, view.step) / downsample)
        rows, columns = shape[0] // 2, shape[1] // 2
        wrong[rows - along : rows + along] = False  # where two colours meet, pixels between them have others
        wrong[:, columns - along : columns + along] = False
        assert not wrong.any()
