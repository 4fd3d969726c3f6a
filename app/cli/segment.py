"""`tessera segment`: what the service does, to files without one."""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

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
from app.cli.options import MODEL_SETTINGS, FiniteRange, setting_options, settings_of
from app.errors import TesseraError
from app.inference.model import BatchedSegmenter
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.segmentation.files import ENDINGS, IMAGE_SUFFIXES, TABLE_FILE, columns, segment_files
from app.segmentation.patch import PatchLimits, PatchSegmentation
from app.segmentation.results_table import ResultsTable
from app.segmentation.workers import Workers
from app.settings import Settings
from app.telemetry import logging
from app.telemetry.metrics import SegmentationMetrics


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@results_options
@click.option(
    "--mpp",
    type=FiniteRange(LEAST_UM_PER_PX, MOST_UM_PER_PX),
    help="Pixel spacing of the images, in um/px; if the model states its own, they are rescaled to it for the model."
    " By default a DICOM file's header is read, and a TIFF's tags.",
)
@setting_options(*MODEL_SETTINGS, "max_side_px", "max_pixels_at_once")
def segment(images: tuple[Path, ...], out: Path, opacity: float, mpp: float | None, **given: Any) -> None:
    """Segment IMAGES (files, or folders of them) without a server.

    Writes NAME_mask.png and NAME_overlay.png for each image, and one labels.csv for all of them.
    """
    settings = settings_of(given)
    logging.configure("warning", "text")
    paths = files_to_segment(images, IMAGE_SUFFIXES, out)
    if not paths:
        raise click.UsageError("no images in these folders; whole slides are segmented by `tessera slide`")
    try:
        model = model_for_files(settings)
    except TesseraError as error:
        raise click.ClickException(str(error)) from error
    if mpp is not None and model.manifest.um_per_px is None:
        click.echo("--mpp changes nothing: the model names no um_per_px", err=True)
    with results_table(paths, columns(model.manifest), out / TABLE_FILE, ENDINGS) as table:
        asyncio.run(until_ended(_segment_all(model, settings, table, out, opacity, mpp)))
    print_end(table, "images")


async def _segment_all(
    model: BatchedSegmenter,
    settings: Settings,
    table: ResultsTable,
    out: Path,
    opacity: float,
    mpp: float | None,
) -> None:
    """Segment the table's files behind a progress bar; say then what is wrong or odd about those that are done."""
    metrics = SegmentationMetrics(CollectorRegistry())
    workers = Workers(settings.cores, metrics)
    patches = PatchSegmentation(model, workers, metrics, PatchLimits(settings.max_side_px, settings.max_pixels_at_once))
    files = segment_files(patches, workers, table.turns(), out, opacity, mpp, at_once=2 * settings.cores)
    async with at_work(model, workers, metrics, table):
        try:
            with click.progressbar(length=len(table.files), label="segmenting", file=sys.stderr) as bar:
                async with aclosing(files):
                    async for result in files:
                        table.add(result)
                        bar.update(1)
        finally:
            print_findings(table.results)
