"""`tessera segment`: what the service does, to files without one."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from prometheus_client import CollectorRegistry

from app.cli.folder import (
    configure_logging,
    failed,
    files_to_segment,
    results_options,
    rows_before,
    tell_end,
    until_ended,
    write_results,
)
from app.cli.options import MODEL_SETTINGS, FiniteRange, setting_options, settings_of
from app.errors import TesseraError
from app.inference.model import BatchedSegmenter, load_segmenter
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.segmentation.files import ENDINGS, IMAGE_SUFFIXES, TABLE_FILE, columns, segment_files
from app.segmentation.folder import FileResult
from app.segmentation.patch import PatchLimits, PatchSegmentation
from app.segmentation.results_table import not_finished, without
from app.segmentation.workers import Workers
from app.settings import Settings
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
    configure_logging()
    paths = files_to_segment(images, IMAGE_SUFFIXES, out)
    if not paths:
        raise click.UsageError("no images in these folders; whole slides are segmented by `tessera slide`")
    try:
        model = load_segmenter(settings.model)
        before = rows_before(paths, columns(model.manifest), out / TABLE_FILE, ENDINGS)
        out.mkdir(parents=True, exist_ok=True)
    except TesseraError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise failed(error) from error
    if mpp is not None and model.manifest.um_per_px is None:
        click.echo("--mpp changes nothing: the model names no um_per_px", err=True)
    results = asyncio.run(until_ended(_segment_all(model, settings, paths, out, opacity, mpp, without(before, paths))))
    tell_end(results, "images", out / TABLE_FILE)


async def _segment_all(
    model: BatchedSegmenter,
    settings: Settings,
    paths: list[Path],
    out: Path,
    opacity: float,
    mpp: float | None,
    before: Sequence[Sequence[str]],
) -> list[FileResult]:
    """Segment the files behind a progress bar and write the table; return the results in the order of `paths`.

    The table, with the rows from `before`, names every file from the start, so that it says of an interrupted run what
    is missing.
    """
    metrics = SegmentationMetrics(CollectorRegistry())
    workers = Workers(settings.cores, metrics)
    patches = PatchSegmentation(model, workers, metrics, PatchLimits(settings.max_side_px, settings.max_pixels_at_once))
    results = {path: not_finished(path) for path in paths}

    def write() -> None:
        write_results(list(results.values()), columns(model.manifest), out / TABLE_FILE, before)

    write()  # if that cannot be done, it is better known before the work
    await model.start(metrics)
    done: set[Path] = set()
    try:
        with click.progressbar(length=len(paths), label="segmenting") as bar:
            async for result in segment_files(patches, paths, out, opacity, mpp, at_once=2 * settings.cores):
                results[result.path] = result
                done.add(result.path)
                bar.update(1)
    finally:
        try:
            _tell([result for path, result in results.items() if path in done])
            write()  # before anything is waited for: a second signal ends that
        finally:
            await model.close()
            await workers.close()
    return list(results.values())


def _tell(results: Sequence[FileResult]) -> None:
    """Say what is odd, and then what is wrong, about which files."""
    for result in results:
        for warning in result.warnings:
            click.echo(f"{click.format_filename(result.path)}: warning: {warning}", err=True)
    for result in results:
        if result.problem is not None:
            click.echo(f"{click.format_filename(result.path)}: {result.problem}", err=True)
