"""How the scanned areas of a slide are answered, one by one; the archive and its slide are made here.

A real archive is in tests/integration/test_dicomweb_segment.py.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pydicom import Dataset

from app.errors import (
    ArchiveRefused,
    ArchiveUnavailable,
    ImageRejected,
    ImageTooLarge,
    OutOfMemory,
    SlideUnreadable,
    UnsupportedImage,
)
from app.interop.dicom_file import to_bytes
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.segmentation.archive import MICROSCOPY, ArchiveSegmentation, AreaResult
from app.segmentation.slide import SlideOptions
from app.segmentation.workers import Workers
from app.slides.dicom_matrix import begins_with, not_shown_finer
from app.slides.dicomweb import ScannedArea
from app.slides.slide import Level
from app.telemetry.metrics import Metrics
from tests.dicom_sources import as_metadata, whole_slide
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import quarters
from tests.slides import stained_with_pas
from tests.unit.test_archive_watch import Watch

PICTURE = quarters(600, 400)
SOURCE = as_metadata(whole_slide(PICTURE, tile=256))


def header(
    side: tuple[int, int],
    um_per_px: float,
    *,
    name: str = "1",
    at_mm: tuple[float, float] = (20.0, 40.0),
    axes: tuple[float, ...] | None = None,
) -> Dataset:
    """Return the header of a level of `side` px, wide and high."""
    level = deepcopy(SOURCE)
    level.TotalPixelMatrixColumns, level.TotalPixelMatrixRows = side
    level.SOPInstanceUID = f"1.2.3.{name}"
    level.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [um_per_px / 1000] * 2
    place = level.TotalPixelMatrixOriginSequence[0]
    place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem = at_mm
    if axes is not None:
        level.ImageOrientationSlide = list(axes)
    return level


class Area:
    """A scanned area whose levels show one picture, beyond which there is glass; it fails after so many reads."""

    def __init__(self, *headers: Dataset, reads: float = np.inf, error: type[ImageRejected] = SlideUnreadable) -> None:
        self.of_levels = headers
        self.error = error
        self.allowed, self.reads = reads, 0
        self.levels = tuple(map(self._level, headers))

    def _level(self, header: Dataset) -> Level:
        spacing = 1000 * header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]
        first = 1000 * self.of_levels[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0]
        size = Size(header.TotalPixelMatrixColumns, header.TotalPixelMatrixRows)
        return Level(size, float(spacing), float(spacing / first))

    def begins_with(self, level: int, other: int) -> bool:
        return begins_with(self.of_levels[level], self.of_levels[other])

    def checked_header(self, level: int) -> Dataset:
        return self.of_levels[level]

    def read(self, level: int, region: Region) -> RgbImage:
        self.reads += 1
        if self.reads > self.allowed:
            raise self.error("a tile of the slide is damaged")
        step = round(self.levels[level].downsample)
        size = self.levels[level].size
        shown = np.full((size.height_px, size.width_px, 3), 255, np.uint8)
        part = PICTURE[step // 2 :: step, step // 2 :: step][: size.height_px, : size.width_px]
        shown[: part.shape[0], : part.shape[1]] = part
        return shown[region.slices]


def archive_of(monkeypatch: pytest.MonkeyPatch, *areas: Area) -> SimpleNamespace:
    """Return an archive whose only slide has such areas."""

    class Slide:
        def __init__(self, *_: Any) -> None:
            self.areas = areas

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr("app.segmentation.archive.DicomwebSlide", Slide)
    return SimpleNamespace(client=None, session=None, modality=lambda *_: MICROSCOPY, result_of=lambda *_: None)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[AreaResult]]:
    """Returns the results of a slide of such areas, in the order in which they were kept."""

    def run(
        *areas: Area, max_pixels: int = 2**20, um_per_px: float = 1.0, kept_at: Callable[[], None] = lambda: None
    ) -> list[AreaResult]:
        archive = archive_of(monkeypatch, *areas)
        kept: list[AreaResult] = []
        failed: list[Exception] = []

        async def keep(area: AreaResult) -> None:
            kept.append(area)
            kept_at()

        async def scenario() -> None:
            metrics = Metrics(CollectorRegistry())
            workers = Workers(1, metrics)
            model = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
            await model.start(metrics)
            options = SlideOptions(um_per_px, max_pixels, has_report=True)
            slides = ArchiveSegmentation(archive, model, workers, metrics, options)  # type: ignore[arg-type]
            try:
                await slides.segment("1.2", "1.2.3", keep, any_stain=True)
            except (ImageTooLarge, SlideUnreadable, UnsupportedImage) as error:
                failed.append(error)
            finally:
                await workers.close()

        asyncio.run(scenario())
        run.failed = failed  # type: ignore[attr-defined]
        return kept

    return run


def areas_of(result: AreaResult) -> list[float]:
    """Return each class's area in mm2, as the report states it."""
    return [
        float(item.MeasuredValueSequence[0].NumericValue)
        for group in result.report.ContentSequence[-1].ContentSequence  # type: ignore[union-attr]
        for item in group.ContentSequence
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeValue == "42798000"
    ]


def test_the_areas_of_a_report_are_of_what_the_model_saw_where_the_results_level_is_filled_up(answered):
    """As one of 1536x1536 px at 1.0512 um/px, 2.607 mm2, of a slide of 5200x5200 at 0.2628, 1.867 mm2; here smaller."""
    fine, filled = header((600, 400), 0.26, name="1"), header((256, 256), 1.04, name="2")
    [result] = answered(Area(fine, filled))
    assert result.carrier.size == Size(256, 256)
    mm2 = 600 * 400 * 0.00026**2
    expected = [round(fraction * mm2, 6) for fraction in result.fractions[:3]]
    assert sum(expected) > 0.005
    assert areas_of(result) == pytest.approx(expected, abs=2e-6)


def test_a_report_gives_no_areas_where_the_spacing_is_no_microscopes(answered):
    [result] = answered(Area(header((600, 400), 20.0)))
    assert areas_of(result) == []
    [algorithm] = result.pyramid[0].SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert "um_per_px=unknown" in algorithm.AlgorithmParameters


def test_each_area_is_kept_before_the_next_one_is_segmented(answered):
    areas = [Area(header((600, 400), 1.0, name=str(number), at_mm=(20.0 + 10 * number, 40.0))) for number in range(2)]
    read: list[int] = []
    answered(*areas, kept_at=lambda: read.append(areas[1].reads))
    assert read[0] == 1, "the look from afar alone"
    assert read[1] > 2


def test_a_level_that_begins_elsewhere_gets_no_result(answered):
    """9 px of its own are 0.018 mm; before, it got what lies in the finest level's corner."""
    fine, middle, shifted = (
        header((600, 400), 1.0, name="1"),
        header((300, 200), 2.0, name="2", at_mm=(20.0015, 40.0)),
        header((150, 100), 4.0, name="3", at_mm=(20.036, 40.0)),
    )
    [result] = answered(Area(fine, middle, shifted))
    assert [seg.TotalPixelMatrixColumns for seg in result.pyramid] == [600, 300]


def test_the_level_nearest_to_the_models_spacing_carries_no_result_if_it_begins_elsewhere(answered):
    fine, shifted = header((600, 400), 0.5, name="1"), header((150, 100), 2.0, name="2", at_mm=(20.018, 40.0))
    [result] = answered(Area(fine, shifted), um_per_px=1.9)
    assert [seg.TotalPixelMatrixColumns for seg in result.pyramid] == [600]


def test_an_area_that_is_too_large_is_warned_about_and_the_others_are_answered(answered, caplog):
    large = Area(header((6000, 4000), 1.0, name="1"))
    with caplog.at_level(logging.WARNING):
        kept = answered(large, Area(header((600, 400), 1.0, name="2", at_mm=(50.0, 40.0))))
    assert [(result.number, result.read.size) for result in kept] == [(2, Size(600, 400))]
    assert answered.failed == []
    assert "a scanned area of the slide gets no result: the slide is 6000x4000 px" in caplog.text


def test_a_slide_that_is_too_large_altogether_is_refused(answered):
    assert answered(Area(header((6000, 4000), 1.0))) == []
    assert [type(error) for error in answered.failed] == [ImageTooLarge]


@pytest.mark.parametrize("error", [SlideUnreadable, UnsupportedImage])
@pytest.mark.parametrize("too_large", [0, 1])
def test_a_slide_without_an_area_to_answer_is_refused_for_what_another_try_may_mend(answered, too_large, error):
    """Before, the first area's reason counted: where that was too large, a watcher passed over the slide for good."""
    places = [(20.0, 40.0), (50.0, 40.0)]
    large = Area(header((6000, 4000), 1.0, name="1", at_mm=places[too_large]))
    broken = Area(header((600, 400), 1.0, name="2", at_mm=places[1 - too_large]), reads=0, error=error)
    assert answered(*((large, broken) if too_large == 0 else (broken, large))) == []
    assert [type(failed) for failed in answered.failed] == [error]


@pytest.mark.parametrize("error", [SlideUnreadable, UnsupportedImage])
@pytest.mark.parametrize("reads", [0, 1, 5])  # none, the look from afar, and some windows
@pytest.mark.parametrize("broken", [0, 1])
def test_an_area_that_cannot_be_read_is_refused_when_the_others_are_done(answered, broken, reads, error):
    areas = [
        Area(
            header((600, 400), 1.0, name=str(number), at_mm=(20.0 + 10 * number, 40.0)),
            reads=reads if number == broken else np.inf,
            error=error,
        )
        for number in range(3)
    ]
    assert [result.number for result in answered(*areas)] == [number for number in (1, 2, 3) if number != broken + 1]
    assert [(type(failed), str(failed)) for failed in answered.failed] == [(error, "a tile of the slide is damaged")]


def test_that_there_is_no_memory_to_read_a_part_of_a_slide_is_not_the_slides_fault():
    def read_region(*_: object, **_options: object) -> RgbImage:
        raise MemoryError

    level = SimpleNamespace(
        level=0,
        size=SimpleNamespace(width=64, height=64),
        mpp=SimpleNamespace(width=1.0, height=1.0),
        default_instance=SimpleNamespace(dataset=SimpleNamespace(samples_per_pixel=3)),
    )
    slide: Any = SimpleNamespace(pyramids=[SimpleNamespace(levels=[level])], read_region=read_region)
    with pytest.raises(OutOfMemory, match="there is no memory to decode this image now"):
        ScannedArea(slide, 0).read(0, Region(0, 0, Size(64, 64)))


PLACE = {"side": (1000, 800), "um_per_px": 1.0}


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ([header((100, 80), 10.0, at_mm=(20.15, 40.0))], [0]),  # the coarsest level, a little aside
        ([header((1000, 800), 1.0, at_mm=(21.1, 40.0))], [0, 1]),
        ([header((100, 80), 10.0, at_mm=(20.6, 40.0))], [0, 1]),  # over less than half of it
        ([header((1000, 800), 1.0, at_mm=(21.1, 40.0)), header((300, 80), 8.0, at_mm=(19.9, 40.0))], [0, 1]),  # both
        ([header((200, 160), 0.5, at_mm=(20.2, 40.2))], [0, 1]),  # a closer look at a part: the rest has none
        ([header((800, 1000), 2.0, at_mm=(20.0, 42.0), axes=(0, -1, 0, 1, 0, 0))], [0, 1]),  # turned, mostly beyond
        ([header((800, 1000), 1.01, at_mm=(20.0, 40.8), axes=(0, -1, 0, 1, 0, 0))], [0]),  # turned, over it
    ],
)
def test_levels_over_tissue_that_finer_ones_show_are_no_area_of_their_own(others, kept):
    first = header(**PLACE, axes=(1, 0, 0, 0, 1, 0))
    for other in others:
        if tuple(map(float, other.ImageOrientationSlide)) == tuple(map(float, SOURCE.ImageOrientationSlide)):
            other.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]
    assert not_shown_finer([first, *others]) == kept


def test_the_finest_of_several_is_kept_wherever_it_stands():
    assert not_shown_finer([header((100, 80), 10.0), header((1000, 800), 1.0), header((500, 400), 2.0)]) == [1]


def test_what_does_not_say_where_it_lies_is_an_area_of_its_own():
    nowhere, elsewhere = header(**PLACE), header(**PLACE)
    del nowhere.TotalPixelMatrixOriginSequence
    elsewhere.FrameOfReferenceUID = "1.2.3.4"
    assert not_shown_finer([header(**PLACE), nowhere, elsewhere]) == [0, 1, 2]
    assert begins_with(nowhere, header(**PLACE))


@pytest.mark.parametrize(("shift_um", "begins"), [(0, True), (3.9, True), (4.1, False), (90, False)])
def test_a_level_begins_with_another_within_one_of_its_own_pixels(shift_um, begins):
    fine, coarse = header((600, 400), 1.0), header((150, 100), 4.0, at_mm=(20.0, 40.0 + shift_um / 1000))
    assert begins_with(coarse, fine) is begins


@pytest.mark.parametrize("failures", [1, 4, 5])
def test_a_result_that_cannot_be_stored_for_a_moment_is_stored_without_segmenting_anew(monkeypatch, failures):
    monkeypatch.setattr("app.segmentation.backoff._FIRST_WAIT_SECONDS", 0.0)
    archive = archive_of(monkeypatch, Area(header((600, 400), 1.0)))
    model = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    seen_before: list[int] = []
    asked: list[list[bytes]] = []

    def store(instances: Sequence[Dataset]) -> None:
        asked.append([to_bytes(instance) for instance in instances])
        if len(asked) <= failures:
            raise ArchiveUnavailable("the archive does not answer now (503)")

    archive.store = store

    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers = Workers(1, metrics)
        await model.start(metrics)
        slides = ArchiveSegmentation(archive, model, workers, metrics, SlideOptions(None, 2**20))

        async def keep(result: AreaResult) -> None:
            seen_before.append(len(model.windows))
            await slides.store(result)

        try:
            await slides.segment("1.2", "1.2.3", keep, any_stain=True)
        finally:
            await workers.close()

    with pytest.raises(ArchiveUnavailable, match="503") if failures == 5 else nullcontext():
        asyncio.run(scenario())
    assert seen_before == [len(model.windows)], "the model saw the slide once"
    assert len(asked) == min(failures + 1, 5)
    assert all(one == asked[0] for one in asked)


@pytest.mark.anyio
async def test_a_result_whose_answer_was_lost_is_not_stored_again(monkeypatch):
    """An archive may refuse what it has already."""
    monkeypatch.setattr("app.segmentation.backoff._FIRST_WAIT_SECONDS", 0.0)
    held: list[Dataset] = []

    def store(instances: Sequence[Dataset]) -> None:
        if held:
            raise ArchiveRefused("the archive does not store the result (failure reason 0111H, PS3.18 I.2.2)")
        held.extend(instances)
        raise ArchiveUnavailable("the archive cannot be reached, or does not answer within --timeout")

    archive = archive_of(monkeypatch)
    archive.store = store
    archive.result_of = lambda study, series: next(
        (str(one.SOPInstanceUID) for one in held if (one.StudyInstanceUID, one.SeriesInstanceUID) == (study, series)),
        None,
    )
    finest = Dataset()
    finest.StudyInstanceUID, finest.SeriesInstanceUID, finest.SOPInstanceUID = "1.2", "1.2.3", "1.2.3.4"
    metrics = Metrics(CollectorRegistry())
    workers = Workers(1, metrics)
    slides = ArchiveSegmentation(archive, ColourSegmenter(), workers, metrics, SlideOptions(None, 2**20))
    await slides.store(AreaResult(1, (), (finest,), None, *[Level(Size(1, 1), None, 1.0)] * 3))
    await workers.close()
    assert held == [finest]


@pytest.mark.anyio
async def test_a_wait_before_storing_again_ends_when_it_is_cancelled(monkeypatch):
    monkeypatch.setattr("app.segmentation.backoff._FIRST_WAIT_SECONDS", 600.0)
    asked: list[None] = []

    def store(_: Sequence[Dataset]) -> None:
        asked.append(None)
        raise ArchiveUnavailable

    archive = archive_of(monkeypatch)
    archive.store = store

    metrics = Metrics(CollectorRegistry())
    workers = Workers(1, metrics)
    slides = ArchiveSegmentation(archive, ColourSegmenter(), workers, metrics, SlideOptions(None, 2**20))
    result = AreaResult(1, (), (Dataset(),), None, *[Level(Size(1, 1), None, 1.0)] * 3)
    storing = asyncio.create_task(slides.store(result))
    while not asked:
        await asyncio.sleep(0.01)
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    await workers.close()
    assert len(asked) == 1


@pytest.mark.parametrize("is_stated", [False, True], ids=["by its colours", "by its header"])
@pytest.mark.parametrize(("stain", "outcome"), [("H&E", "not H&E"), ("PD-L1 IHC", "answered")])
def test_the_watcher_passes_over_a_slide_of_another_stain_only_where_the_model_is_for_he(
    monkeypatch, tmp_path, caplog, is_stated, stain, outcome
):
    level = header((600, 400), 1.0)
    if is_stated:
        level.SpecimenDescriptionSequence = stained_with_pas()
    archive = archive_of(monkeypatch, Area(level))
    stored: list[Dataset] = []
    archive.store = stored.extend
    metrics = Metrics(CollectorRegistry())
    workers = Workers(1, metrics)
    model = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0, "stain": stain}))
    asyncio.run(model.start(metrics))
    options = SlideOptions(um_per_px=None, max_pixels=2**20)
    watch = Watch(tmp_path)
    watch.archive.arrives("1.2.3")
    watch.slides = ArchiveSegmentation(archive, model, workers, metrics, options)  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING):
        watch.run()
    asyncio.run(workers.close())

    assert watch.outcomes() == {outcome: 1}
    assert ("slide not H&E" in caplog.text) is (outcome == "not H&E")
    assert len(stored) == (outcome == "answered")
    for seg in stored:
        [algorithm] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
        assert "warnings=none" in algorithm.AlgorithmParameters
