"""One series of an archive: read, segmented, and answered with a DICOM Segmentation. Needs `slides` and `dicom`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pydicom import Dataset

from app.errors import (
    ArchiveUnavailable,
    ImageRejected,
    ImageTooLarge,
    NotASlide,
    SlideUnreadable,
    UnsupportedImage,
)
from app.imaging.plausibility import WARNING_CODES, InputWarning, rules_for
from app.inference.segmenter import Segmenter
from app.interop.dicom_pyramid import Spans, conditions_of, level_spans, pyramid_series_uid, segmentation_pyramid
from app.interop.dicom_sr import measurement_report
from app.interop.dicomweb import Archive
from app.pathology.geometry import area_mm2, of_microscope
from app.segmentation.backoff import Backoff
from app.segmentation.slide import (
    Progress,
    Seen,
    SlideOptions,
    check_pixels,
    choose_carrier,
    choose_view,
    counted,
    described,
    segment_slide,
    warn_of,
)
from app.segmentation.stain import check_stain, stain_warnings
from app.segmentation.workers import Workers
from app.slides.dicom_stains import names_other_stains
from app.slides.dicomweb import DicomwebSlide, ScannedArea
from app.slides.slide import Level
from app.slides.view import View
from app.telemetry.metrics import SegmentationMetrics

MICROSCOPY = "SM"

_STORE_TRIES = 5
"""With some 10 seconds of waits: an archive that is away for longer costs the result, which is then segmented again."""
_UNREADABLE = (SlideUnreadable, UnsupportedImage)
"""What may be wrong with one scanned area while the others can be answered."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AreaResult:
    """A segmented area of a slide.

    Attributes:
        number: Its place among the slide's, from 1 for the widest.
        fractions: The share of its pixels that each class has, as the model saw it; they add up to 1.
        pyramid: DICOM Segmentations of the level that carries the result and of the coarser ones, finest first.
        report: Shares and areas of the classes, of the finest Segmentation; None where that was not asked for.
        read: The level that was read.
        seen: The same as the model saw it.
        carrier: The finest level that has a Segmentation.
    """

    number: int
    fractions: tuple[float, ...]
    pyramid: tuple[Dataset, ...]
    report: Dataset | None
    read: Level
    seen: Level
    carrier: Level


Keep = Callable[[AreaResult], Awaitable[None]]
"""Takes the result of an area as soon as there is one, such as `ArchiveSegmentation.store`."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How an area will be segmented.

    Attributes:
        number: The area's place among the slide's, from 1 for the widest.
        area: What is segmented.
        view: What the model sees.
        carrier: The level that carries the result.
        sources: Headers of that level and of the coarser ones.
        spans: How many pixels of the view one of that level spans.
    """

    number: int
    area: ScannedArea
    view: View
    carrier: Level
    sources: list[Dataset]
    spans: Spans


class ArchiveSegmentation:
    """Segments series of an archive.

    Args:
        archive: Where the slides are, and the results go.
        segmenter: The model, started.
        workers: Threads for reading.
        metrics: Told of stages and pixels.
        options: The model's own pixel spacing stands in for none.

    Attributes:
        manifest: The model's.
    """

    def __init__(
        self,
        archive: Archive,
        segmenter: Segmenter,
        workers: Workers,
        metrics: SegmentationMetrics,
        options: SlideOptions,
    ) -> None:
        self.manifest = segmenter.manifest
        self._rules = rules_for(self.manifest.stain)
        for code in WARNING_CODES:
            metrics.warnings.labels(code)  # at 0 from the start: a rate sees the first one
        self._archive = archive
        self._segmenter = segmenter
        self._workers = workers
        self._metrics = metrics
        self._um_per_px = options.um_per_px or self.manifest.um_per_px
        self._max_pixels = options.max_pixels
        self._has_report = options.has_report

    async def segment(
        self,
        study_uid: str,
        series_uid: str,
        keep: Keep,
        anew: bool = False,
        any_stain: bool = False,
        progress: Progress | None = None,
    ) -> str | None:
        """Segment a series; return the SOP Instance UID of the result that the archive already holds, or None.

        The series of a model's result follows from the slide's level, so the archive itself knows what is answered: a
        series that holds the result's finest level, which `store` hands over last. Each scanned area of a slide has a
        result of its own, and is forgotten once that is kept. One that is too large is passed over, and one that cannot
        be read refused when the others are done.

        Args:
            study_uid: Study Instance UID.
            series_uid: Series Instance UID.
            keep: Given the result of each area that has none.
            anew: Whether to segment a series whose result the archive holds.
            any_stain: Whether to segment, with a warning, one that is not stained with H&E, and no area of which is
                answered yet; a model of another stain takes any.
            progress: Told of each region read.

        Raises:
            ImageRejected: It cannot be segmented, or should not: `OtherStain`.
            ArchiveRefused: The archive does not answer a query.
            NotServed: The archive does not answer now, or the model is stopping.
            InferenceFailed: The model failed on it.
        """
        modality = await asyncio.to_thread(self._archive.modality, study_uid, series_uid)
        if modality != MICROSCOPY:
            raise NotASlide(f"the series is of modality {modality}, not of slide microscopy ({MICROSCOPY})")
        of_archive = (self._archive.client, self._archive.session)
        with await asyncio.to_thread(DicomwebSlide, *of_archive, study_uid, series_uid) as slide:
            plans: list[tuple[_Plan, tuple[InputWarning, ...]]] = []
            answered: list[str] = []
            refused: list[ImageRejected] = []
            for number, area in enumerate(slide.areas, start=1):
                try:
                    plan = self._plan(number, area)
                    known = None if anew else await self._known(plan, study_uid)
                    if known is None:
                        plans.append((plan, await self._warnings(plan)))
                    else:
                        answered.append(known)
                except (ImageTooLarge, *_UNREADABLE) as error:
                    refused.append(error)
            if not plans and not answered:
                raise _worst(refused) or refused[0]
            if not any_stain and not answered:
                check_stain([found for _, found in plans])
            tell = counted([plan.view for plan, _ in plans], self.manifest, progress)
            for plan, found in plans:
                try:
                    await keep(await self._segment(plan, found, tell))
                except _UNREADABLE as error:
                    refused.append(error)
            worst = _worst(refused)
            for other in refused:
                if other is not worst:
                    _log.warning("a scanned area of the slide gets no result: %s", other)
            if worst is not None:
                raise worst
            return None if plans else answered[0]

    async def store(self, area: AreaResult) -> None:
        """Store a result; a request that has begun is finished even if the caller is cancelled, and not repeated.

        The finest level goes last: were the archive to end in the middle, the series would not count as answered, and
        the next try completes it with the same instances. So where the archive does not answer, the same request is
        repeated after a wait, unless the archive then has the result: its answer may have been lost.

        Raises:
            ArchiveRefused: The archive does not take it.
            NotServed: The archive does not answer now.
        """
        beside = () if area.report is None else (area.report,)
        store = partial(self._archive.store, (*area.pyramid[:0:-1], *beside, area.pyramid[0]))
        backoff = Backoff()
        for number in range(1, _STORE_TRIES + 1):
            try:
                if number > 1 and await asyncio.to_thread(self._is_stored, area):
                    return
                await asyncio.to_thread(store)
            except ArchiveUnavailable as error:
                if number == _STORE_TRIES:
                    raise
                wait_seconds = backoff.next_seconds()
                _log.warning("%s; storing the result again in %.1f s", error, wait_seconds)
                await asyncio.sleep(wait_seconds)
            else:
                return

    def _is_stored(self, area: AreaResult) -> bool:
        finest = area.pyramid[0]
        found = self._archive.result_of(str(finest.StudyInstanceUID), str(finest.SeriesInstanceUID))
        return found == str(finest.SOPInstanceUID)

    def _plan(self, number: int, area: ScannedArea) -> _Plan:
        view = choose_view(area, self._um_per_px, lambda level: level.size.pixels <= self._max_pixels)
        check_pixels(view.level, self._max_pixels)
        # A level that begins elsewhere would show the result beside the tissue.
        in_place = [index for index in range(view.index, len(area.levels)) if area.begins_with(index, view.index)]
        carrier = choose_carrier(area.levels, view, self._max_pixels, in_place)
        sources = [area.checked_header(index) for index in in_place if index >= carrier]
        rows, columns = level_spans(area.checked_header(view.index), sources[0])
        return _Plan(number, area, view, area.levels[carrier], sources, (rows / view.step, columns / view.step))

    async def _known(self, plan: _Plan, study_uid: str) -> str | None:
        """Return the SOP Instance UID of the result that the archive holds, or None."""
        results_uid = pyramid_series_uid(plan.sources[0], self.manifest, plan.spans)
        return await asyncio.to_thread(self._archive.result_of, study_uid, results_uid)

    async def _warnings(self, plan: _Plan) -> tuple[InputWarning, ...]:
        look = partial(stain_warnings, plan.area, self._rules, states_other=names_other_stains(plan.sources[0]))
        return await self._workers.run("decode", look)

    async def _segment(self, plan: _Plan, warnings: tuple[InputWarning, ...], tell: Seen) -> AreaResult:
        read, seen, carrier = plan.view.source, plan.view.level, plan.carrier
        _log.info(
            "segmenting a slide",
            extra={"slide": described(read), "seen_by_model": described(seen), "result": described(carrier)},
        )
        warn_of(plan.view, self._um_per_px)
        for warning in warnings:
            _log.warning("%s", warning.message)
            self._metrics.warnings.labels(warning.code).inc()
        codes = tuple(warning.code for warning in warnings)
        segmented = await segment_slide(self._segmenter, plan.view, self._workers, self._metrics, tell)
        args = segmented.class_map, self.manifest, plan.spans, codes
        build = partial(segmentation_pyramid, plan.sources, *args)
        fractions = segmented.fractions
        del segmented, args  # a byte of confidence for each pixel
        pyramid = await self._workers.run("encode", build)
        report = None
        if self._has_report:
            conditions = conditions_of(plan.sources[0], plan.spans, codes)
            mm2 = area_mm2(read.size, of_microscope(read.um_per_px))  # the level of the result may be filled up
            of_seg = plan.sources[0], pyramid[0], fractions, self.manifest, conditions, mm2
            report = await self._workers.run("encode", partial(measurement_report, *of_seg))
        return AreaResult(plan.number, fractions, pyramid, report, read, seen, carrier)


def _worst(refused: Sequence[ImageRejected]) -> ImageRejected | None:
    """Return what stands for all that is wrong with a slide's areas: of one that is too large nothing need be said."""
    return next((one for one in refused if not isinstance(one, ImageTooLarge)), None)
