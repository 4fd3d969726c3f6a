"""One series of an archive: read, segmented, and answered with a DICOM Segmentation. Needs `slides` and `dicom`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pydicom import Dataset

from app.errors import NotASlide
from app.imaging.tiling import plan_windows
from app.inference.segmenter import Segmenter
from app.interop.dicom_pyramid import pyramid_series_uid, segmentation_pyramid
from app.interop.dicomweb import Archive
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region
from app.segmentation.slide import choose_level, segment_slide
from app.segmentation.windows import SegmentedArea
from app.segmentation.workers import Workers
from app.slides.dicomweb import DicomwebSlide
from app.slides.slide import Slide
from app.telemetry.metrics import Metrics

MICROSCOPY = "SM"

Progress = Callable[[int, int], None]
"""Told, on the event loop, how many regions of how many have been read."""


@dataclass(frozen=True, slots=True)
class SlideResult:
    """A segmented series.

    Attributes:
        area: What is known of the segmented level.
        pyramid: DICOM Segmentations of that level and of the coarser ones, finest first.
    """

    area: SegmentedArea
    pyramid: tuple[Dataset, ...]


@dataclass(frozen=True, slots=True)
class SlideOptions:
    """Which level of a slide to segment; see `choose_level`."""

    um_per_px: float | None
    max_pixels: int


class ArchiveSegmentation:
    """Segments series of an archive.

    Args:
        archive: Where the slides are, and the results go.
        segmenter: The model, started.
        workers: Threads for reading.
        metrics: Told of stages and pixels.
        options: Which level to take; the model's own pixel spacing stands in for none.

    Attributes:
        manifest: The model's.
    """

    def __init__(
        self, archive: Archive, segmenter: Segmenter, workers: Workers, metrics: Metrics, options: SlideOptions
    ) -> None:
        self.manifest = segmenter.manifest
        self._archive = archive
        self._segmenter = segmenter
        self._workers = workers
        self._metrics = metrics
        self._um_per_px = options.um_per_px or self.manifest.um_per_px
        self._max_pixels = options.max_pixels

    async def segment(
        self, study_uid: str, series_uid: str, anew: bool = False, progress: Progress | None = None
    ) -> SlideResult | str:
        """Return the segmented series, or the SOP Instance UID of the result that the archive already holds.

        The series of a model's result follows from the slide's level, so the archive itself knows what is answered: a
        series that holds the segmented level's result, which `store` hands over last.

        Args:
            study_uid: Study Instance UID.
            series_uid: Series Instance UID.
            anew: Whether to segment a series whose result the archive holds.
            progress: Told of each region read.

        Raises:
            ImageRejected: It cannot be segmented.
            ArchiveRefused: The archive does not answer a query.
            NotServed: The archive does not answer now, or the model is stopping.
            InferenceFailed: The model failed on it.
        """
        modality = await asyncio.to_thread(self._archive.modality, study_uid, series_uid)
        if modality != MICROSCOPY:
            raise NotASlide(f"the series is of modality {modality}, not of slide microscopy ({MICROSCOPY})")
        of_archive = (self._archive.client, self._archive.session)
        with await asyncio.to_thread(DicomwebSlide, *of_archive, study_uid, series_uid) as slide:
            level = choose_level(slide.levels, self._um_per_px, self._max_pixels)
            sources = [slide.headers(index) for index in range(level, len(slide.levels))]
            if not anew:
                results_uid = pyramid_series_uid(sources[0], self.manifest)
                where = (study_uid, results_uid, str(sources[0][0].SOPInstanceUID))
                if known := await asyncio.to_thread(self._archive.result_of, *where):
                    return known
            source: Slide = slide if progress is None else _Observed(slide, self._regions(slide, level), progress)
            area = await segment_slide(self._segmenter, source, level, self._workers, self._metrics)
        build = partial(segmentation_pyramid, sources, area.class_map, self.manifest)
        return SlideResult(area, await self._workers.run("encode", build))

    async def store(self, result: SlideResult) -> None:
        """Store a result; once begun, it is finished even if the caller is cancelled.

        The finest level goes last: were the archive to end in the middle, the series would not count as answered, and
        the next try completes it with the same instances.

        Raises:
            ArchiveRefused: The archive does not take it.
            NotServed: The archive does not answer now.
        """
        await asyncio.to_thread(self._archive.store, result.pyramid[::-1])

    def _regions(self, slide: Slide, level: int) -> int:
        manifest = self.manifest
        return len(plan_windows(slide.levels[level].size, manifest.window_px, manifest.margin_px))


class _Observed:
    """A slide that says how far its reading has come."""

    def __init__(self, slide: Slide, regions: int, progress: Progress) -> None:
        self.levels = slide.levels
        self._slide = slide
        self._regions = regions
        self._progress = progress
        self._read = 0
        self._loop = asyncio.get_running_loop()

    def read(self, level: int, region: Region) -> RgbImage:
        pixels = self._slide.read(level, region)
        self._loop.call_soon_threadsafe(self._count)
        return pixels

    def _count(self) -> None:
        self._read += 1
        self._progress(self._read, self._regions)
