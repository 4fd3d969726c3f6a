"""What the commands that segment files into a folder share."""

from collections.abc import Collection, Sequence
from pathlib import Path

import click

from app.segmentation.folder import FileResult, colliding, find_files, overwriting, write_table


def files_to_segment(
    paths: Sequence[Path], suffixes: Collection[str], out: Path, endings: Collection[str]
) -> list[Path]:
    """Return the files that `paths` name, of folders those of these suffixes.

    Args:
        paths: Files and folders.
        suffixes: In lower case.
        out: Folder for the results.
        endings: Of the results' names.

    Raises:
        click.UsageError: Two would have results of one name, or a result would replace one of them.
    """
    found = find_files(paths, suffixes)
    if collision := colliding(found):
        raise click.UsageError(
            f"{collision[0]} and {collision[1]} would share the name of their results; rename one, or segment them"
            " into another --out"
        )
    if overwritten := overwriting(found, out, endings):
        raise click.UsageError(f"{overwritten} would be overwritten by a result; choose another --out")
    return found


def write_results(results: Sequence[FileResult], columns: Sequence[str], table: Path) -> None:
    """Write the table of the results.

    Raises:
        click.ClickException: It cannot be written.
    """
    try:
        write_table(results, columns, table)
    except OSError as error:
        raise click.ClickException(f"{table}: {error.strerror}") from error
