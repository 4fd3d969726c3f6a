"""`tessera slide`: whole-slide files, segmented without a server."""

import asyncio
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from app.cli.options import MODEL_SETTINGS, FiniteRange, setting_options, settings_of, slide_options
from app.cli.progress import progress_bar
from app.errors import ExtraMissing, TesseraError
from app.inference.model import BatchedSegmenter, load_segmenter
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.segmentation.folder import FileResult
from app.segmentation.results_table import not_finished, without
from app.segmentation.workers import Workers
from app.settings import Settings
from app.telemetry.metrics import SegmentationMetrics

if TYPE_CHECKING:  # what needs an extra is imported once it is known to be there
    from app.segmentation.slide_files import SlideFileOptions, SlideFileSegmentation

_PACKAGES = ("openslide", "openslide_bin", "tifffile")


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
    configure_logging()
    try:
        if any(find_spec(package) is None for package in _PACKAGES):
            raise ExtraMissing("a whole-slide file", "wsi")
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
        model = load_segmenter(settings.model)
        before = rows_before(paths, columns(model.manifest), out / TABLE_FILE, ENDINGS)
        out.mkdir(parents=True, exist_ok=True)
    except TesseraError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise failed(error) from error
    options = SlideFileOptions(um_per_px, max_pixels, mpp, opacity)
    results = asyncio.run(until_ended(_segment_all(model, settings, paths, out, options, before)))
    tell_end(results, "slides", out / TABLE_FILE)


async def _segment_all(
    model: BatchedSegmenter,
    settings: Settings,
    paths: list[Path],
    out: Path,
    options: "SlideFileOptions",
    before: Sequence[Sequence[str]],
) -> list[FileResult]:
    """Segment the slides one by one, say what becomes of each, and write the table anew with each.

    Its rows from `before` stay, each until the slide's turn comes, whose old results go then. A slide that this run
    does not finish has a row that says so.
    """
    from app.segmentation.slide_files import TABLE_FILE, SlideFileSegmentation, columns  # noqa: PLC0415

    metrics = SegmentationMetrics(CollectorRegistry())
    workers = Workers(settings.cores, metrics)
    segmentation = SlideFileSegmentation(model, workers, metrics, options, out)
    results: list[FileResult] = []

    def write(begun: int) -> None:
        rows, at_work = without(before, paths[:begun]), paths[len(results) : begun]
        write_results([*results, *map(not_finished, at_work)], columns(model.manifest), out / TABLE_FILE, rows)

    write(0)  # if that cannot be done, it is better known before hours of work
    await model.start(metrics)
    try:
        for number, path in enumerate(paths, 1):
            write(number)
            results.append(await _segment(segmentation, path))
        write(len(paths))
    finally:
        await model.close()
        await workers.close()
    return results


async def _segment(segmentation: "SlideFileSegmentation", path: Path) -> FileResult:
    """Segment a slide behind a progress bar; say what is wrong or odd about it."""
    name = click.format_filename(path)
    with progress_bar(name) as progress:
        result = await segmentation.segment(path, progress)
    for warning in result.warnings:
        click.echo(f"{name}: warning: {warning}", err=True)
    if result.problem is not None:
        click.echo(f"{name}: {result.problem}", err=True)
    return result
