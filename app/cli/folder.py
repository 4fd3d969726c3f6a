"""What the commands that segment files into a folder share."""

import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from errno import ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path
from typing import Any

import click

from app.cli.ending import until_signalled
from app.cli.options import FiniteRange
from app.errors import TesseraError
from app.imaging.paint import DEFAULT_OPACITY
from app.inference.model import BatchedSegmenter, load_segmenter
from app.segmentation.folder import FileResult, colliding, find_files, locked, lying_in, remove_half_written
from app.segmentation.results_table import ResultsTable, foreign, read_table, superseding, unfinished
from app.segmentation.workers import Workers
from app.settings import Settings
from app.telemetry.metrics import SegmentationMetrics

FAILED = 1
"""Exit status where a file was not segmented."""
_LOCK_FILE = ".tessera.lock"
_WITHOUT_LOCKS = (ENOLCK, ENOSYS, EOPNOTSUPP)
"""What disks say that know no locks, as some of clusters."""


def results_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every command that segments files into a folder."""
    opacity = click.option(
        "--opacity",
        default=DEFAULT_OPACITY,
        show_default=True,
        type=FiniteRange(0, 1),
        help="Opacity of the overlays' colours.",
    )
    out = click.option(
        "--out",
        required=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for the results; none that a given file lies in.",
    )
    return out(opacity(command))


def files_to_segment(paths: Sequence[Path], suffixes: Collection[str], out: Path) -> list[Path]:
    """Return the files that `paths` name, of folders those of these suffixes; say which are named twice.

    Args:
        paths: Files and folders.
        suffixes: In lower case.
        out: Folder for the results.

    Raises:
        click.UsageError: Two would have results of one name, or one lies where the results go.
        click.ClickException: A folder cannot be read.
    """
    try:
        found = find_files(paths, suffixes)
        within = lying_in(found.files, out)
    except OSError as error:
        raise failed(error) from error
    _check_apart(found.files)
    if within is not None:
        raise click.UsageError(f"{click.format_filename(within)} lies in the folder of --out; choose another --out")
    for left_out, same in found.left_out:
        one, other = map(click.format_filename, (left_out, same))
        click.echo(f"{one}: left out, for it is the same file as {other}", err=True)
    return found.files


def _check_apart(paths: Sequence[Path], *, ignores_case: bool = False) -> None:
    if collision := colliding(paths, ignores_case=ignores_case):
        one, other = map(click.format_filename, collision)
        raise click.UsageError(
            f"{one} and {other} would have results of one name; give them one by one, each with another --out"
        )


@contextmanager
def results_table(
    paths: Sequence[Path], columns: Sequence[str], path: Path, endings: Collection[str]
) -> Iterator[ResultsTable]:
    """Give the table of a run that has its folder to itself, and whose results replace nothing but its own files'.

    Args:
        paths: The files that this run segments.
        columns: See `write_table`.
        path: Of the table; its folder need not be there.
        endings: Of the results' names.

    Raises:
        click.UsageError: The table is another one, or a result would replace what is not this file's, or two would have
            one name where the folder's disk does not tell upper from lower case.
        click.ClickException: Another run writes there, or it cannot be read or written.
    """
    out = path.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(out / _LOCK_FILE))
            except BlockingIOError as error:
                raise click.ClickException(
                    f"another run writes to {click.format_filename(out)}; wait until it ends, or choose another --out"
                ) from error
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    raise
            lock_by_another_name = out / _LOCK_FILE.upper()
            _check_apart(paths, ignores_case=sys.platform == "win32" or lock_by_another_name.exists())
            before = _rows_before(paths, columns, path, endings)
            for file in unfinished(before):
                remove_half_written(out, file, endings)
            table = ResultsTable(path, columns, paths, before)
            table.write()  # if that cannot be done, it is better known before hours of work
            yield table
    except OSError as error:
        raise failed(error) from error


def _rows_before(
    paths: Sequence[Path], columns: Sequence[str], table: Path, endings: Collection[str]
) -> list[list[str]]:
    """Return the rows of a table from earlier runs, once it is sure that no result replaces what is none of theirs.

    Args:
        paths: The files that this run segments.
        columns: See `write_table`.
        table: It, in the folder of the results.
        endings: Of the results' names.

    Raises:
        click.UsageError: The table is another one, or a result would replace what is not this file's.
        OSError: The table cannot be read.
    """
    name = click.format_filename(table)
    rows = read_table(columns, table)
    if rows is None:
        raise click.UsageError(
            f"{name} has other columns than this run's, as of another model, or is no table; choose another --out"
        )
    if clash := superseding(paths, rows):
        raise click.UsageError(
            f"{name} has results of {clash[0]}, which those of {click.format_filename(clash[1])} would replace; choose"
            " another --out, or delete that row"
        )
    if there := foreign(paths, rows, table.parent, endings):
        raise click.UsageError(
            f"{click.format_filename(there)} would be replaced by a result, and {table.name} names no file that it is"
            " the result of; move or delete it, or choose another --out"
        )
    return rows


def model_for_files(settings: Settings) -> BatchedSegmenter:
    """Load the model, whose batches may take any time: nobody waits but who can end the command; docs/decisions/0018.

    Raises:
        StartupError: The bundle or the device cannot be used.
    """
    return load_segmenter(replace(settings.model, stall_seconds=math.inf))


@asynccontextmanager
async def at_work(
    model: BatchedSegmenter, workers: Workers, metrics: SegmentationMetrics, table: ResultsTable
) -> AsyncIterator[None]:
    """Start the model; when the block ends, however it does, write the table, and end model and workers."""
    await model.start(metrics)
    try:
        yield
    finally:
        try:
            table.write()  # before anything is waited for: a second signal ends that
        finally:
            await model.close()
            await workers.close()


def print_findings(results: Sequence[FileResult]) -> None:
    """Say what is odd, and then what is wrong, about which files."""
    for result in results:
        for warning in result.warnings:
            click.echo(f"{click.format_filename(result.path)}: warning: {warning}", err=True)
    for result in results:
        if result.problem is not None:
            click.echo(f"{click.format_filename(result.path)}: {result.problem}", err=True)


def failed(error: OSError) -> click.ClickException:
    """Return an error of a file or folder as one line."""
    reason = error.strerror or str(error)
    return click.ClickException(
        reason if error.filename is None else f"{click.format_filename(error.filename)}: {reason}"
    )


async def until_ended(work: Coroutine[Any, Any, None]) -> None:
    """Do `work`.

    Raises:
        click.Abort: SIGTERM or SIGINT ended it.
        click.ClickException: It cannot be done.
    """
    try:
        is_done = await until_signalled(work)
    except TesseraError as error:
        raise click.ClickException(str(error)) from error
    if not is_done:
        raise click.Abort


def print_end(table: ResultsTable, what: str) -> None:
    """Say how many files were segmented, and where the table is.

    Raises:
        SystemExit: Some were not.
        click.ClickException: Standard output takes nothing.
    """
    results = table.results
    count = sum(result.problem is None for result in results)
    try:
        click.echo(f"{count} of {len(results)} {what} segmented; table: {click.format_filename(table.path)}")
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left at its end
        raise click.ClickException(f"standard output: {error.strerror or error}") from error
    if count < len(results):
        raise SystemExit(FAILED)
