"""The table of a folder of results: a row for each file, those of earlier runs among them."""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from app.segmentation.folder import FileResult, replace, result_path

_NOT_FINISHED = "not finished: the run ended before"
"""The problem of a file whose results may be there or not."""

_FILE, _PROBLEM = 0, -1
"""Columns of every row."""


def not_finished(path: Path) -> FileResult:
    """Return what a table says of a file from when its turn comes until it is done."""
    return FileResult(path, problem=_NOT_FINISHED)


def write_table(
    results: Iterable[FileResult], columns: Sequence[str], path: Path, before: Iterable[Sequence[str]] = ()
) -> None:
    """Write a CSV file in one step: a row for each result, in the order given.

    Args:
        results: What became of the files.
        columns: The names of their rows' columns.
        path: Where to.
        before: Rows, as they are in the file, that come before those.

    Raises:
        OSError: It cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_header(columns))
    writer.writerows(before)
    for result in results:
        writer.writerow([result.path, *(result.row or [""] * len(columns)), result.problem or ""])
    replace(path, text.getvalue().encode(errors="backslashreplace"))  # a file's name may be no UTF-8


def read_table(columns: Sequence[str], path: Path) -> list[list[str]] | None:
    """Return the rows of a table that `write_table` wrote; none where there is no file.

    Returns:
        None where it has other columns, or is no table.

    Raises:
        OSError: It cannot be read.
    """
    try:
        header, *rows = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
    except FileNotFoundError:
        return []
    except (ValueError, csv.Error):  # not UTF-8, empty, or no CSV
        return None
    wide = len(columns) + 2
    return rows if header == _header(columns) and all(len(row) == wide for row in rows) else None


def superseding(paths: Sequence[Path], rows: Sequence[Sequence[str]]) -> tuple[str, Path] | None:
    """Return a file in `rows` and one of `paths`, another file, whose results would replace the former's; or None."""
    by_stem = {path.stem: path for path in map(_as_written, paths)}
    given = {_as_written(path): path for path in paths}
    for row in rows:
        other = by_stem.get(Path(row[_FILE]).stem)
        if other is not None and _may_have_results(row) and os.path.realpath(row[_FILE]) != os.path.realpath(other):
            return row[_FILE], given[other]
    return None


def foreign(paths: Sequence[Path], rows: Sequence[Sequence[str]], out: Path, endings: Iterable[str]) -> Path | None:
    """Return a file that a result of one of `paths` would replace and that is no result in `rows`; or None."""
    known = {Path(row[_FILE]).stem for row in rows if _may_have_results(row)}
    unknown = [path for path in paths if _as_written(path).stem not in known]
    results = (result_path(out, path, ending) for path in unknown for ending in endings)
    return next((result for result in results if os.path.lexists(result)), None)


def without(rows: Sequence[Sequence[str]], paths: Iterable[Path]) -> list[Sequence[str]]:
    """Return `rows` but for those of `paths`, which go by their names without endings, as results do."""
    stems = {_as_written(path).stem for path in paths}
    return [row for row in rows if Path(row[_FILE]).stem not in stems]


def _may_have_results(row: Sequence[str]) -> bool:
    return row[_PROBLEM] in ("", _NOT_FINISHED)


def _header(columns: Sequence[str]) -> list[str]:
    return ["file", *columns, "problem"]


def _as_written(path: Path) -> Path:
    """Return a path as it stands in the table."""
    return Path(str(path).encode(errors="backslashreplace").decode())
