"""What the commands that speak with an archive share: options, the session, the model beside it."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.archive_settings import ArchiveSettings
from app.cli.ending import end_though_stuck, end_with
from app.cli.options import MODEL_SETTINGS, setting_options, settings_as, settings_of, slide_options
from app.errors import ModelNotReady, TesseraError
from app.imaging.dicom_packages import require_dicom
from app.inference.model import load_segmenter
from app.libraries import require, silence_libraries
from app.segmentation.slide import SlideOptions
from app.settings import Settings
from app.telemetry.metrics import SegmentationMetrics

if TYPE_CHECKING:  # what needs an extra is imported once it is known to be there
    from app.interop.archive_http import ArchiveSession
    from app.segmentation.archive import ArchiveSegmentation

_PACKAGES = ("dicomweb_client", "wsidicom", "pydicom", "highdicom")
_ALLOW_HOST = "--allow-host"
_STUCK = "the model does not answer any more, and this command ends with it; start it anew"


@dataclass(frozen=True, slots=True)
class Given:
    """What the options and the environment say.

    Attributes:
        service: Of the model.
        archive: Of the archive.
        slides: How slides are answered.
    """

    service: Settings
    archive: ArchiveSettings
    slides: SlideOptions


def archive_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every command that speaks with an archive, and those of the model."""

    def described(name: str) -> str:
        return str(ArchiveSettings.model_fields[name].description)

    options: tuple[Callable[[Callable[..., None]], Callable[..., None]], ...] = (
        click.option(_ALLOW_HOST, "hosts", multiple=True, help="Host name allowed in --url; may be repeated."),
        click.option("--allow-http", is_flag=True, default=None, help=described("allow_http")),
        click.option("--ca-bundle", type=click.Path(path_type=Path), help=described("ca_bundle")),
        click.option("--timeout", type=float, help=described("timeout")),
        slide_options(
            "Maximum number of pixels that the model sees of a slide, and of the level that carries the result; a pixel"
            " takes about 5 bytes of memory."
        ),
        click.option(
            "--report",
            "has_report",
            is_flag=True,
            help="Store a structured report (DICOM SR, TID 1500) beside each result: each class's share and area.",
        ),
    )
    for option in (setting_options(*MODEL_SETTINGS), *reversed(options)):
        command = option(command)
    return command


def given_settings(options: dict[str, Any]) -> Given:
    """Return what the options, which are used up, and the environment say."""
    slides = SlideOptions(*(options.pop(name) for name in ("um_per_px", "max_pixels", "has_report")))
    archive = {name: options.pop(name) for name in ("hosts", "allow_http", "ca_bundle", "timeout")}
    archive["hosts"] = archive["hosts"] or None
    return Given(settings_of(options), settings_as(ArchiveSettings, archive, {"hosts": _ALLOW_HOST}), slides)


def archive_session(url: str, settings: ArchiveSettings) -> "ArchiveSession":
    """Return a session that reaches the archive; make sure of the extras, and that they keep UIDs to themselves.

    Raises:
        ArchiveNotAllowed: The address is not one to speak with.
        ExtraMissing: An extra is not installed.
    """
    require("an archive", _PACKAGES, "slides", "dicom")
    require_dicom()
    from app.interop.archive_http import ArchiveAccess, ArchiveSession  # noqa: PLC0415

    silence_libraries("py.warnings")  # which quote attributes, in the name of whichever module asked for them
    access = ArchiveAccess(
        hosts=frozenset(settings.hosts),
        allow_http=settings.allow_http,
        ca_bundle=settings.ca_bundle,
        timeout_seconds=settings.timeout,
        token=settings.token,
        username=settings.username,
        password=settings.password,
    )
    return ArchiveSession(url, access)


@contextmanager
def failures_told() -> Iterator[None]:
    """End the command with one line if the block fails; where the model is stuck, at once, to be started anew."""
    try:
        yield
    except ModelNotReady as error:
        end_though_stuck(str(error))
    except TesseraError as error:
        end_with(click.ClickException(str(error)))


@asynccontextmanager
async def slide_segmentation(
    url: str, session: "ArchiveSession", given: Given, metrics: SegmentationMetrics
) -> AsyncIterator["ArchiveSegmentation"]:
    """Give what segments slides of the archive at `url`, with the model started.

    Raises:
        StartupError: The bundle or the device cannot be used.
        ModelNotReady: The model got stuck: nothing else in this process can be segmented.
    """
    from app.interop.dicomweb import Archive  # noqa: PLC0415
    from app.segmentation.archive import ArchiveSegmentation  # noqa: PLC0415
    from app.segmentation.workers import Workers  # noqa: PLC0415

    settings = given.service
    model = load_segmenter(settings.model)
    workers = Workers(settings.cores, metrics, abandons_when_cancelled=True)
    await model.start(metrics)
    try:
        yield ArchiveSegmentation(Archive(url, session), model, workers, metrics, given.slides)
    except ModelNotReady as error:
        raise ModelNotReady(_STUCK) from error
    finally:
        session.close()  # first, for threads may be waiting for the archive
        await model.close()
        await workers.close()
