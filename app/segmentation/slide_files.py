"""Whole-slide files without a server: a mask, polygons and an overlay of each, and its row of a table. Needs `wsi`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.errors import TesseraError, no_memory_to
from app.imaging.mask_tiff import write_mask_tiff
from app.imaging.overview import Overview
from app.imaging.paint import paint_overlay
from app.imaging.plausibility import InputWarning, rules_for
from app.inference.segmenter import Segmenter
from app.interop import geojson
from app.interop.annotations import Annotations
from app.interop.provenance import Conditions, description, picture_text, software
from app.pathology.arrays import RgbImage
from app.pathology.classes import code, label_indices
from app.pathology.geometry import Placement, Region, area_mm2
from app.pathology.manifest import ModelManifest
from app.segmentation.folder import (
    SLIDE_SUFFIXES,
    TIFF_SUFFIXES,
    FileResult,
    all_or_none,
    problem_of,
    replace,
    replacing,
    result_path,
)
from app.segmentation.outlines import slide_outlines
from app.segmentation.results_table import MODEL_COLUMNS, model_fields
from app.segmentation.scale import is_near
from app.segmentation.slide import Progress, check_pixels, choose_view, counted, scale_warning, segment_slide
from app.segmentation.stain import stain_warnings
from app.segmentation.windows import SegmentedArea
from app.segmentation.workers import Workers
from app.slides.openslide import WholeSlideFile
from app.slides.view import View
from app.telemetry.metrics import SegmentationMetrics

TABLE_FILE = "slides.csv"
MASK, POLYGONS, OVERLAY = ENDINGS = ("_mask.tif", ".geojson", "_overlay.png")
"""Of the results' names."""
SUFFIXES = SLIDE_SUFFIXES | TIFF_SUFFIXES
_OVERLAY_PX = 2048
"""The longest side that an overlay may have."""


@dataclass(frozen=True, slots=True)
class SlideFileOptions:
    """How whole-slide files are answered.

    Attributes:
        um_per_px: Pixel spacing at which the model sees them, or None for its own; see `choose_view`.
        max_pixels: The most pixels that it may see of one.
        mpp: Pixel spacing of the finest level of those that state none, in um/px, or None.
        opacity: Of the overlay's colours, 0 to 1.
    """

    um_per_px: float | None
    max_pixels: int
    mpp: float | None
    opacity: float


class SlideFileSegmentation:
    """Segments whole-slide files into a folder.

    Args:
        segmenter: The model, started.
        workers: Threads for reading and writing.
        metrics: Told of stages and pixels.
        options: How the files are answered.
        out: An existing folder.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        workers: Workers,
        metrics: SegmentationMetrics,
        options: SlideFileOptions,
        out: Path,
    ) -> None:
        self._segmenter = segmenter
        self._workers = workers
        self._metrics = metrics
        self._options = options
        self._out = out
        self._rules = rules_for(segmenter.manifest.stain)
        self._um_per_px = options.um_per_px or segmenter.manifest.um_per_px

    async def segment(self, path: Path, progress: Progress) -> FileResult:
        """Segment a slide and write its results to the folder, all of them or none; those from before are removed.

        Args:
            path: Of the file.
            progress: Told of each region read.
        """
        try:
            with all_or_none(self._out, path, ENDINGS):
                return await self._opened(path, progress)
        except TesseraError as error:
            problem = str(error)
        except OSError as error:
            problem = problem_of(error, path)
        except MemoryError:
            problem = f"{no_memory_to('segment this slide')}, or ask for a coarser --um-per-px"
        return FileResult(path, problem=problem)

    async def _opened(self, path: Path, progress: Progress) -> FileResult:
        with await self._workers.run(None, partial(WholeSlideFile, path, self._options.mpp)) as slide:
            return await self._segment(path, slide, progress)

    async def _segment(self, path: Path, slide: WholeSlideFile, progress: Progress) -> FileResult:
        manifest, most = self._segmenter.manifest, self._options.max_pixels
        view = choose_view(slide, self._um_per_px, lambda level: level.size.pixels <= most)
        check_pixels(view.level, most, takes_mpp=self._um_per_px is not None)
        found = await self._workers.run("decode", partial(stain_warnings, slide, self._rules))
        sha256 = await self._workers.run(None, partial(_sha256, path))
        tell = counted([view], manifest, progress)
        overview = Overview(view.level.size, _OVERLAY_PX)

        def seen(region: Region, pixels: RgbImage) -> None:
            overview.add(region, pixels)
            tell(region, pixels)

        area = await segment_slide(self._segmenter, view, self._workers, self._metrics, seen)
        result = _Result(path, slide, view, area, overview, sha256, found, manifest)
        step = await self._workers.run("encode", partial(result.write, self._out, self._options.opacity))
        messages = (*(warning.message for warning in found), *self._spacing_warnings(slide, view))
        return FileResult(path, result.row(step), warnings=messages)

    def _spacing_warnings(self, slide: WholeSlideFile, view: View) -> Iterator[str]:
        own, stated = slide.levels[0].um_per_px, self._options.mpp
        if (scale := scale_warning(view, self._um_per_px)) is not None:
            yield scale if own is not None or self._um_per_px is None else f"{scale}; --mpp states it"
        if own is not None and stated is not None and not is_near(own, stated):
            yield f"the file states {own:.4g} um/px, which counts; --mpp {stated:g} is not used"


@dataclass(frozen=True, slots=True)
class _Result:
    """A segmented slide.

    Attributes:
        path: Of its file.
        slide: Still open.
        view: What the model saw.
        area: What it found.
        overview: The slide from afar.
        sha256: Of the file, hexadecimal.
        warnings: What is unlike H&E tissue about it.
        manifest: The model's.
    """

    path: Path
    slide: WholeSlideFile
    view: View
    area: SegmentedArea
    overview: Overview
    sha256: str
    warnings: tuple[InputWarning, ...]
    manifest: ModelManifest

    @property
    def conditions(self) -> Conditions:
        """How the model saw the slide's finest level."""
        codes = tuple(warning.code for warning in self.warnings)
        return Conditions(self.slide.levels[0].um_per_px, 1 / self.view.level.downsample, codes)

    def write(self, out: Path, opacity: float) -> int:
        """Write mask, polygons and overlay, once all of them can be; return the step at which polygons were traced."""
        classes, class_map = self.manifest.classes, self.area.class_map
        regions, step = slide_outlines(
            class_map,
            self.area.confidence,
            label_indices(classes),
            self.view.level.downsample,
            self.slide.levels[0].size,
        )
        annotations = Annotations(regions, Placement(), self.manifest, self.sha256, self.conditions)
        document = geojson.document(annotations)
        painted, text = self.overview.nearest(class_map), picture_text(self.manifest, self.conditions)
        overlay = paint_overlay(self.overview.image(), painted, classes, opacity, text)
        with replacing(result_path(out, self.path, MASK)) as partial_file:
            said = description(self.manifest, self.conditions)
            write_mask_tiff(partial_file, class_map, classes, self.view.level.um_per_px, software(), said)
        replace(result_path(out, self.path, POLYGONS), document)
        replace(result_path(out, self.path, OVERLAY), overlay)
        return step

    def row(self, step: int) -> tuple[str, ...]:
        """Return the table's columns; see `columns`."""
        finest, read, seen = self.slide.levels[0], self.view.source, self.view.level
        mm2 = area_mm2(finest.size, finest.um_per_px)
        return (
            code(self.area.labels),
            *(f"{fraction:.6f}" for fraction in self.area.fractions),
            *("" if mm2 is None else f"{fraction * mm2:.4f}" for fraction in self.area.fractions),
            *map(str, (finest.size.width_px, finest.size.height_px, *self.slide.corner)),
            _spacing(finest.um_per_px),
            str(self.view.index),
            _spacing(read.um_per_px),
            _spacing(seen.um_per_px),
            f"{seen.downsample:g}",
            str(step),
            " ".join(warning.code for warning in self.warnings),
            self.sha256,
            *model_fields(self.manifest),
        )


def columns(manifest: ModelManifest) -> list[str]:
    """Return the names of the columns of `slides.csv` between `file` and `problem`."""
    return [
        "code",
        *(f"{tissue.name}_fraction" for tissue in manifest.classes),
        *(f"{tissue.name}_mm2" for tissue in manifest.classes),
        "width_px",
        "height_px",
        "left_px",
        "top_px",
        "um_per_px",
        "level",
        "level_um_per_px",
        "seen_um_per_px",
        "mask_downsample",
        "polygon_step",
        "warnings",
        "sha256",
        *MODEL_COLUMNS,
    ]


def _spacing(um_per_px: float | None) -> str:
    return "" if um_per_px is None else f"{um_per_px:g}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
