"""`tessera slide`: whole-slide files, segmented without a server."""

import asyncio
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from prometheus_client import CollectorRegistry

from app.cli.folder import files_to_segment, write_results
from app.cli.options import MODEL_SETTINGS, FiniteRange, setting_options, settings_of, slide_options
from app.cli.progress import progress_bar
from app.errors import ExtraMissing, TesseraError
from app.imaging.paint import DEFAULT_OPACITY
from app.inference.model import BatchedSegmenter, load_segmenter
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX
from app.segmentation.folder import FileResult
from app.segmentation.workers import Workers
from app.settings import Settings
from app.telemetry import logging
from app.telemetry.metrics import SegmentationMetrics

if TYPE_CHECKING:  # what needs an extra is imported once it is known to be there
    from app.segmentation.slide_files import SlideFileOptions, SlideFileSegmentation

_PACKAGES = ("openslide", "openslide_bin", "tifffile")
_FAILED = 1


@click.command()
@click.argument("slides", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option(
    "--opacity",
    default=DEFAULT_OPACITY,
    show_default=True,
    type=FiniteRange(0, 1),
    help="Opacity of the overlays' colours.",
)
@click.option(
    "--mpp",
    type=FiniteRange(LEAST_UM_PER_PX, MOST_UM_PER_PX),
    help="Pixel spacing, in um/px, of the finest level of those slides that state none that can be used.",
)
@slide_options("Maximum number of pixels that the model sees of a slide; a pixel takes 5 to 10 bytes of memory.")
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
        if any(find_spec(package) is None for package in _PACKAGES):
            raise ExtraMissing("a whole-slide file", "wsi")
        from app.segmentation.slide_files import ENDINGS, SUFFIXES, SlideFileOptions  # noqa: PLC0415

        paths = files_to_segment(slides, SUFFIXES, out, ENDINGS)
        if not paths:
            raise click.UsageError("no whole-slide files in these folders; pictures are segmented by `tessera segment`")
        model = load_segmenter(settings.model)
        out.mkdir(parents=True, exist_ok=True)
    except (TesseraError, OSError) as error:
        raise click.ClickException(str(error)) from error
    options = SlideFileOptions(um_per_px, max_pixels, mpp, opacity)
    results = asyncio.run(_segment_all(model, settings, paths, out, options))
    if any(result.problem is not None for result in results):
        raise SystemExit(_FAILED)


async def _segment_all(
    model: BatchedSegmenter, settings: Settings, paths: list[Path], out: Path, options: "SlideFileOptions"
) -> list[FileResult]:
    """Segment the slides one by one, say what becomes of each, and write the table anew with each."""
    from app.segmentation.slide_files import TABLE_FILE, SlideFileSegmentation, columns  # noqa: PLC0415

    metrics = SegmentationMetrics(CollectorRegistry())
    workers = Workers(settings.cores, metrics)
    slides = SlideFileSegmentation(model, workers, metrics, options, out)
    results: list[FileResult] = []
    write = partial(write_results, results, columns(model.manifest), out / TABLE_FILE)
    write()  # if that cannot be done, it is better known before hours of work
    await model.start(metrics)
    try:
        for path in paths:
            results.append(await _segment(slides, path))
            write()
    finally:
        await model.close()
        await workers.close()
    failed = sum(result.problem is not None for result in results)
    click.echo(f"{len(results) - failed} of {len(results)} slides segmented; table: {out / TABLE_FILE}")
    return results


async def _segment(slides: "SlideFileSegmentation", path: Path) -> FileResult:
    """Segment a slide behind a progress bar; say what is wrong or odd about it."""
    name = click.format_filename(path)
    with progress_bar(name) as progress:
        result = await slides.segment(path, progress)
    for warning in result.warnings:
        click.echo(f"{name}: warning: {warning}", err=True)
    if result.problem is not None:
        click.echo(f"{name}: {result.problem}", err=True)
    return result
