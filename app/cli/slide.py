"""`tessera slide`: whole-slide files, segmented without a server."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from prometheus_client import CollectorRegistry

from app.cli.folder import (
    at_work,
    files_to_segment,
    model_for_files,
    print_end,
    print_findings,
    results_options,
    results_table,
    until_ended,
)
from app.cli.options import MODEL_SETTINGS, FiniteRange, setting_options, settings_of, slide_options
from app.cli.progress import progress_bar
from app.errors import TesseraError
from app.inference.model import BatchedSegmenter
from app.libraries import require
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.segmentation.folder import FileResult
from app.segmentation.results_table import ResultsTable
from app.segmentation.workers import Workers
from app.settings import Settings
from app.telemetry import logging
from app.telemetry.metrics import SegmentationMetrics

if TYPE_CHECKING:  # what needs an extra is imported once it is known to be there
    from app.segmentation.slide_files import SlideFileOptions, SlideFileSegmentation


@click.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@results_options
@click.option(
    "--mpp",
    type=FiniteRange(LEAST_UM_PER_PX, MOST_UM_PER_PX),
    help="Pixel spacing, in um/px, of the finest level of those slides that state none that can be used.",
)
@slide_options("Maximum number of pixels that the model sees of a slide; a pixel takes 5 to 12 bytes of memory.")
@setting_options(*MODEL_SETTINGS)
def slide(
    slides: tuple[Path, ...],
    out: Path,
    opacity: float,
    mpp: float | None,
    um_per_px: float | None,
    max_pixels: int,
    **given: Any,
) -> None:
    """Segment whole-slide files, SLIDES (or folders of them), without a server. Research use only.

    Reads what OpenSlide does: SVS, NDPI, MRXS, SCN, BIF, tiled TIFF and others. Writes NAME_mask.tif, NAME.geojson and
    NAME_overlay.png for each slide, and one slides.csv for all of them. Needs the extra wsi.
    """
    settings = settings_of(given)
    logging.configure("warning", "text")
    try:
        require("a whole-slide file", ("openslide", "openslide_bin", "tifffile"), "wsi")
        from app.segmentation.slide_files import (  # noqa: PLC0415
            ENDINGS,
            SUFFIXES,
            TABLE_FILE,
            SlideFileOptions,
            columns,
        )

        paths = files_to_segment(slides, SUFFIXES, out)
        if not paths:
            raise click.UsageError("no whole-slide files in these folders; pictures are segmented by `tessera segment`")
        model = model_for_files(settings)
    except TesseraError as error:
        raise click.ClickException(str(error)) from error
    options = SlideFileOptions(um_per_px, max_pixels, mpp, opacity)
    with results_table(paths, columns(model.manifest), out / TABLE_FILE, ENDINGS) as table:
        asyncio.run(until_ended(_segment_all(model, settings, table, out, options)))
    print_end(table, "slides")


async def _segment_all(
    model: BatchedSegmenter,
    settings: Settings,
    table: ResultsTable,
    out: Path,
    options: "SlideFileOptions",
) -> None:
    """Segment the table's slides one by one, and say what becomes of each."""
    from app.segmentation.slide_files import SlideFileSegmentation  # noqa: PLC0415

    metrics = SegmentationMetrics(CollectorRegistry())
    workers = Workers(settings.cores, metrics)
    segmentation = SlideFileSegmentation(model, workers, metrics, options, out)
    async with at_work(model, workers, metrics, table):
        for path in table.turns():
            table.add(await _segment(segmentation, path))


async def _segment(segmentation: "SlideFileSegmentation", path: Path) -> FileResult:
    """Segment a slide behind a progress bar; say what is wrong or odd about it."""
    with progress_bar(click.format_filename(path)) as progress:
        result = await segmentation.segment(path, progress)
    print_findings([result])
    return result
