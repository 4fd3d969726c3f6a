"""The table of a folder of results: a row for each file, those of earlier runs among them."""

import csv
import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from app.pathology.manifest import ModelManifest
from app.segmentation.folder import FileResult, replace, result_path

_NOT_FINISHED = "not finished: the run ended before"
"""The problem of a file whose results may be there or not."""

_FILE, _PROBLEM = 0, -1
"""Columns of every row."""
_SECONDS_BETWEEN = 1.0
"""Of two times that the table is written, where files are done quickly: with ten thousand rows each takes a while."""

MODEL_COLUMNS = ("model", "model_version", "model_sha256")


def model_fields(manifest: ModelManifest) -> tuple[str, str, str]:
    """Return the columns that tell rows of one model from those of another; see `MODEL_COLUMNS`."""
    return manifest.name, manifest.version, manifest.sha256


class ResultsTable:
    """The table of a folder while a run adds to it.

    A row of an earlier run stays until its file's turn comes. The file on disk says `not finished` before that begins,
    and until it is done. Where files are done quickly, it says so at once of as many as come in the next second, and of
    one that is done a second late: whenever a run is killed, no row stands beside results that are not its own.

    Args:
        path: Of the table.
        columns: See `write_table`.
        files: Those of this run, in the order of their turns.
        before: Rows of earlier runs.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], files: Sequence[Path], before: Sequence[Sequence[str]]
    ) -> None:
        self.path = path
        self._columns = columns
        self.files = files
        self._before = before
        self._begun: dict[Path, FileResult] = {}
        self._on_disk = 0  # files of this run
        self._done = 0  # since it was written
        self._written_at = 0.0

    @property
    def results(self) -> list[FileResult]:
        """What became of the files that are done, in the order of their turns."""
        return [result for result in self._begun.values() if result.problem != _NOT_FINISHED]

    def turns(self) -> Iterator[Path]:
        """Yield the files; the turn of each begins when it is asked for.

        Raises:
            OSError: The table cannot be written.
        """
        for path in self.files:
            self._begun[path] = FileResult(path, problem=_NOT_FINISHED)
            if len(self._begun) > self._on_disk or self._is_due():
                self._write(self._coming())
            yield path

    def add(self, result: FileResult) -> None:
        """Be done with a file.

        Raises:
            OSError: The table cannot be written.
        """
        self._begun[result.path] = result
        self._done += 1
        if self._is_due():
            self._write(self._coming())

    def write(self) -> None:
        """Write what is known, and of no file that its turn is to come.

        Raises:
            OSError: It cannot be written.
        """
        self._write(0)

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_at >= _SECONDS_BETWEEN

    def _coming(self) -> int:
        """Return how many turns come until the table is due again: as many as of late, and at most twice those."""
        return int(self._done / max(0.5, (time.monotonic() - self._written_at) / _SECONDS_BETWEEN))

    def _write(self, coming: int) -> None:
        turns = self.files[: len(self._begun) + coming]
        unknown = (FileResult(path, problem=_NOT_FINISHED) for path in turns[len(self._begun) :])
        write_table([*self._begun.values(), *unknown], self._columns, self.path, without(self._before, turns))
        self._on_disk, self._done, self._written_at = len(turns), 0, time.monotonic()


def write_table(
    results: Iterable[FileResult], columns: Sequence[str], path: Path, before: Iterable[Sequence[str]] = ()
) -> None:
    """Write a CSV file in one step: a row for each result, in the order given, each file by its absolute path.

    It is plain UTF-8, for programs: with a byte-order mark, which Excel needs, they call the first column otherwise.

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
        writer.writerow([_as_written(result.path), *(result.row or [""] * len(columns)), result.problem or ""])
    replace(path, text.getvalue().encode(errors="backslashreplace"))  # a file's name may be no UTF-8


def read_table(columns: Sequence[str], path: Path) -> list[list[str]] | None:
    """Return the rows of a table that `write_table` wrote; none where there is no file.

    Returns:
        None where it has other columns, or is no table.

    Raises:
        OSError: It cannot be read.
    """
    try:
        header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
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


def unfinished(rows: Sequence[Sequence[str]]) -> list[Path]:
    """Return the files in `rows` whose run ended before they were done."""
    return [Path(row[_FILE]) for row in rows if row[_PROBLEM] == _NOT_FINISHED]


def _may_have_results(row: Sequence[str]) -> bool:
    return row[_PROBLEM] in ("", _NOT_FINISHED)


def _header(columns: Sequence[str]) -> list[str]:
    return ["file", *columns, "problem"]


def _as_written(path: Path) -> Path:
    """Return a path as it stands in the table: without folder it would be of any; it may be no UTF-8."""
    return Path(str(path.absolute()).encode(errors="backslashreplace").decode())
