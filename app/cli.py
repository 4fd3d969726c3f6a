"""The `tessera` command: `serve` runs the service, `segment` does the same to files without one."""

import asyncio
from collections.abc import Callable
from importlib.metadata import version as installed_version
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app.errors import StartupError
from app.inference.segmenter import BatchedSegmenter, load_segmenter
from app.segmentation.files import FileResult, colliding, find_images, overwriting, segment_files, write_table
from app.segmentation.patch import PatchLimits, PatchSegmentation
from app.segmentation.workers import Workers
from app.settings import Settings, unknown_variables
from app.telemetry import logging
from app.telemetry.metrics import Metrics

_FAILED = 1
_log = getLogger(__name__)


class _BadSetting(click.ClickException):
    """A setting that makes no sense: one line, and the exit code of a usage error."""

    exit_code = click.UsageError.exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(installed_version("tessera"), "-V", "--version", prog_name="tessera")
def main() -> None:
    """Tissue maps of H&E patches. Research use only.

    Every option of serve can also be set by an environment variable: --max-side-px by TESSERA_MAX_SIDE_PX.
    """


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these settings, or for all; their help is the settings' own."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name, field in reversed(Settings.model_fields.items()):
            if not names or name in names:
                flag = "--" + name.replace("_", "-")
                command = click.option(flag, name, type=_click_type(field), help=field.description)(command)
        return command

    return decorate


def _click_type(field: FieldInfo) -> Any:
    annotation = next((part for part in get_args(field.annotation) if part is int), field.annotation)
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    return click.Path(path_type=Path) if annotation is Path else annotation or str


def _settings(given: dict[str, Any]) -> Settings:
    """Return the settings of the environment and of the flags that were given, which win."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"--{name.replace('_', '-')} (TESSERA_{name.upper()}): " if name else ""
        raise _BadSetting(where + first["msg"].removeprefix("Value error, ")) from error


@main.command()
@setting_options()
def serve(**given: Any) -> None:
    """Run the service."""
    from app.main import create_app  # noqa: PLC0415  the web stack is not for `tessera segment` to wait for
    from app.server import bind, run  # noqa: PLC0415

    settings = _settings(given)
    logging.configure(settings.log_level, settings.log_format)
    for name in unknown_variables():
        _log.warning("the environment variable %s is not a setting", name)
    try:
        listener = bind(settings.host, settings.port)
        app = create_app(settings)
    except StartupError as error:
        raise click.ClickException(str(error)) from error
    run(app, listener, settings.request_timeout)


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the results.")
@click.option(
    "--opacity", default=0.4, show_default=True, type=click.FloatRange(0, 1), help="Of the overlays' colours."
)
@setting_options("bundle", "device", "cores", "max_batch_size", "max_side_px", "max_pixels_at_once")
def segment(images: tuple[Path, ...], out: Path, opacity: float, **given: Any) -> None:
    """Segment IMAGES (files, or folders of them) without a server.

    Writes NAME_mask.png and NAME_overlay.png for each image and labels.csv for all.
    """
    settings = _settings(given)
    logging.configure("warning", "text")
    paths = find_images(images)
    if not paths:
        raise click.UsageError("no images in these folders")
    if collision := colliding(paths):
        raise click.UsageError(f"{collision[0]} and {collision[1]} would share the name of their results")
    if overwritten := overwriting(paths, out):
        raise click.UsageError(f"{overwritten} would be overwritten by a result; choose another --out")
    metrics = Metrics(CollectorRegistry())
    try:
        model = load_segmenter(settings.bundle, settings.device, settings.cores, settings.max_batch_size, metrics)
        out.mkdir(parents=True, exist_ok=True)
    except (StartupError, OSError) as error:
        raise click.ClickException(str(error)) from error
    results = asyncio.run(_segment_all(model, metrics, settings, paths, out, opacity))
    table = write_table(results, model.manifest, out)
    failed = [result for result in results if result.problem]
    for result in failed:
        click.echo(f"{result.path}: {result.problem}", err=True)
    click.echo(f"{len(results) - len(failed)} of {len(results)} images segmented; table: {table}")
    if failed:
        raise SystemExit(_FAILED)


async def _segment_all(
    model: BatchedSegmenter, metrics: Metrics, settings: Settings, paths: list[Path], out: Path, opacity: float
) -> list[FileResult]:
    """Segment the files behind a progress bar; return the results in the order of `paths`."""
    workers = Workers(settings.cores, metrics)
    patches = PatchSegmentation(model, workers, metrics, PatchLimits(settings.max_side_px, settings.max_pixels_at_once))
    await model.start()
    try:
        found = {}
        with click.progressbar(length=len(paths), label="segmenting") as bar:
            async for result in segment_files(patches, paths, out, opacity, at_once=2 * settings.cores):
                found[result.path] = result
                bar.update(1)
        return [found[path] for path in paths]
    finally:
        await model.close()
        await workers.close()


if __name__ == "__main__":
    main()
