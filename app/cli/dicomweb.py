"""`tessera dicomweb`: slides of an archive, answered with DICOM Segmentations that are stored beside them."""

import asyncio
import re
from collections.abc import Callable
from contextlib import ExitStack
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from prometheus_client import CollectorRegistry, start_http_server

from app.cli.archive import (
    Given,
    archive_options,
    archive_session,
    failures_told,
    given_settings,
    slide_segmentation,
)
from app.cli.ending import bad_settings_told, until_signalled
from app.cli.options import FiniteRange, setting_options
from app.cli.progress import progress_bar
from app.errors import AddressUnavailable
from app.pathology.manifest import ModelManifest
from app.segmentation.folder import replace
from app.telemetry import logging
from app.telemetry.metrics import SegmentationMetrics
from app.telemetry.watching import WatchMetrics

if TYPE_CHECKING:
    from app.segmentation.archive import AreaResult

_DICOMWEB_PATH = "/dicom-web"
"""Below the root of an Orthanc, unless its administrator moved it."""
_MOST_POLL_SECONDS = 600
"""A look that finds nothing to do is the progress that docker/alerts.yml expects within 1800 s, and a series that still
arrives can hold it up for 600 s and a poll."""

_log = getLogger(__name__)


class _Uid(click.ParamType[str]):
    """A DICOM unique identifier (PS3.5, section 9)."""

    name = "UID"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if len(value) > 64 or not re.fullmatch(r"[0-9]+(\.[0-9]+)*", value):
            self.fail("not a DICOM UID", param, ctx)
        return value


@click.group()
def dicomweb() -> None:
    """Segment slides of a DICOMweb archive and store the results there. Research use only.

    Needs the extras slides and dicom. Credentials come from the environment: TESSERA_DICOMWEB_TOKEN, or
    TESSERA_DICOMWEB_USERNAME and TESSERA_DICOMWEB_PASSWORD. These options can be set there too: --allow-host, as
    TESSERA_DICOMWEB_HOSTS; --allow-http, --ca-bundle and --timeout, as in TESSERA_DICOMWEB_TIMEOUT; and those that
    serve also has, as in TESSERA_BUNDLE.
    """


@dicomweb.command()
@click.option("--url", required=True, help="Root of the archive's DICOMweb services, as in https://host/dicom-web.")
@click.option("--study", required=True, type=_Uid(), help="Study Instance UID of the slide.")
@click.option("--series", required=True, type=_Uid(), help="Series Instance UID of the slide.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the finest Segmentation to this file, and store nothing in the archive. Of a slide of several scanned"
    " areas, the second one's goes to NAME-2 with the same suffix (slide-2.dcm beside slide.dcm), and so on.",
)
@archive_options
def segment(url: str, study: str, series: str, out: Path | None, **options: Any) -> None:
    """Segment one slide and store DICOM Segmentations, one for a level near to what the model saw and each coarser one.

    A slide whose result the archive already holds is left alone, unless --out is given.
    """
    logging.configure("warning", "text")
    given = given_settings(options)
    if out is not None and given.slides.has_report:
        raise click.UsageError("--report stores a report in the archive, where --out stores nothing")
    with failures_told():
        asyncio.run(_segment(url, study, series, out, given))


async def _segment(url: str, study: str, series: str, out: Path | None, given: Given) -> None:
    metrics = SegmentationMetrics(CollectorRegistry())
    with archive_session(url, given.archive) as session, ExitStack() as shown:
        progress = shown.enter_context(progress_bar("segmenting"))
        done: list[str] = []

        async def keep(area: "AreaResult") -> None:
            file = None if out is None else _file_of(out, area.number)
            await (slides.store(area) if file is None else asyncio.to_thread(_write, area, file))
            done.append(_told(area, slides.manifest, file))

        async with slide_segmentation(url, session, given, metrics) as slides:
            try:
                known = await slides.segment(
                    study, series, keep, anew=out is not None, any_stain=True, progress=progress
                )
            finally:
                shown.close()
                for line in done:  # also where another area fails
                    click.echo(line)
            if known is not None:
                click.echo(f"already stored: SEG {known}")


def _told(area: "AreaResult", manifest: ModelManifest, file: Path | None) -> str:
    """Return what was done, what the area is made of, and at which um/px it was read, seen and answered."""
    shares = zip(manifest.classes, area.fractions, strict=True)
    made_of = ", ".join(f"{tissue.name} {share:.1%}" for tissue, share in shares)
    finest = f"SEG {area.pyramid[0].SOPInstanceUID}"
    done = f"stored: {finest} and {len(area.pyramid) - 1} coarser" if file is None else f"{file}: {finest}"
    if area.report is not None:
        done += f", SR {area.report.SOPInstanceUID}"
    read, seen, carrier = (
        "unknown" if level.um_per_px is None else f"{level.um_per_px:.4g}"
        for level in (area.read, area.seen, area.carrier)
    )
    return f"{done}: {made_of}; um/px: {read} read, {seen} seen by the model, {carrier} in the result"


@dicomweb.command()
@click.option(
    "--url",
    required=True,
    help="Root of the Orthanc, as in https://host; its DICOMweb services must be at /dicom-web below it.",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("tessera-watch.json"),
    show_default=True,
    help="File that records how far the archive's log of changes has been read.",
)
@click.option(
    "--poll",
    type=FiniteRange(0, _MOST_POLL_SECONDS, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds to wait before asking the archive again when it has nothing new.",
)
@click.option(
    "--tries",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often to try a slide that fails; 10 times if the archive is at fault or memory is short.",
)
@click.option(
    "--skip-existing",
    is_flag=True,
    help="On the first start (no state file), skip the slides that the archive already holds and answer only new ones.",
)
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Port for Prometheus metrics, on --host; by default none."
)
@archive_options
@setting_options("host", "log_level", "log_format")
def watch(
    url: str, state: Path, poll: float, tries: int, skip_existing: bool, metrics_port: int | None, **options: Any
) -> None:
    """Answer each new slide of an Orthanc with DICOM Segmentations, until SIGTERM or SIGINT.

    Without a state file, it begins with the first slide in the archive and answers all of them; see --skip-existing. A
    slide counts as arrived once Orthanc reports its series as stable.
    """
    with bad_settings_told(options.get("log_format")):
        given = given_settings(options)
    logging.configure(given.service.log_level, given.service.log_format)
    with failures_told():
        watching = _watch(url.rstrip("/"), state, poll, tries, skip_existing, metrics_port, given)
        asyncio.run(until_signalled(watching))
        _log.info("stopped")


async def _watch(
    url: str, state: Path, poll: float, tries: int, skip_existing: bool, metrics_port: int | None, given: Given
) -> None:
    registry = CollectorRegistry()
    with archive_session(url, given.archive) as session, ExitStack() as until_the_end:
        from app.interop.orthanc import Orthanc  # noqa: PLC0415
        from app.segmentation.bookmark import Bookmark  # noqa: PLC0415
        from app.segmentation.watch import Watcher  # noqa: PLC0415

        bookmark = until_the_end.enter_context(Bookmark(state, url))
        watched = WatchMetrics(registry)
        # Before the model is loaded, at which a process may end each time.
        watched.show(bookmark.last_change, bookmark.last_progress)
        if metrics_port is not None:
            until_the_end.callback(_expose(given.service.host, metrics_port, registry))
        async with slide_segmentation(url + _DICOMWEB_PATH, session, given, SegmentationMetrics(registry)) as slides:
            watcher = Watcher(Orthanc(url, session), slides, bookmark, watched, poll, tries, skip_existing)
            _log.info("watching", extra={"after_change": bookmark.last_change})
            await watcher.run()


def _write(area: "AreaResult", file: Path) -> None:
    from app.interop.dicom_file import to_bytes  # noqa: PLC0415

    data = to_bytes(area.pyramid[0])
    try:
        if file.is_symlink() or (file.exists() and not file.is_file()):  # or a device, in whose place no file belongs
            file.write_bytes(data)
        else:
            replace(file, data)
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error


def _file_of(out: Path, number: int) -> Path:
    """Return where the result of the slide's first, second ... scanned area goes: slide.dcm, slide-2.dcm ..."""
    return out if number == 1 else out.with_name(f"{out.stem}-{number}{out.suffix}")


def _expose(host: str, port: int, registry: CollectorRegistry) -> Callable[[], None]:
    """Answer Prometheus in a thread of its own; return what ends that."""
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise AddressUnavailable(f"cannot give metrics on {host}:{port}: {error.strerror or error}") from error
    _log.info("metrics on http://%s:%d/metrics", *server.server_address[:2])

    def end() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return end
