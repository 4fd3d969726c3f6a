"""Results of many files in a folder: what is segmented, what may not collide, and files that are whole or not there."""

import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi"})
"""Of files that hold a whole slide and nothing else. TIFFs are either."""
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one file.

    Attributes:
        path: The file.
        row: Its columns of the table between `file` and `problem`; empty when there is a problem.
        problem: Why it was not segmented, or None.
        warnings: What is unlike H&E tissue about it, a sentence each.
    """

    path: Path
    row: tuple[str, ...] = ()
    problem: str | None = None
    warnings: tuple[str, ...] = ()


def find_files(paths: Iterable[Path], suffixes: Collection[str]) -> list[Path]:
    """Return `paths` with each folder replaced by its files of these suffixes, in name order; each comes once."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            entries = (entry for entry in path.iterdir() if entry.suffix.lower() in suffixes)
            found.extend(sorted(entry for entry in entries if not (entry.is_dir() or entry.is_fifo())))
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.resolve(), path)
    return list(once.values())


def colliding(paths: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return two paths whose results would have one name, or None."""
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            return other, path
    return None


def overwriting(paths: Sequence[Path], out: Path, endings: Iterable[str]) -> Path | None:
    """Return one of `paths` that a result in `out` would replace, or None; see `result_path` for `endings`."""
    results = {result_path(out, path, ending).resolve() for ending in endings for path in paths}
    return next((path for path in paths if path.resolve() in results), None)


def result_path(out: Path, path: Path, ending: str) -> Path:
    """Return where a file's result goes: its name with another ending, such as "_mask.png", in `out`."""
    return out / f"{path.stem}{ending}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path to write a file to, which then takes the place of `path`: that is whole at any moment it is seen.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace(path: Path, content: bytes) -> None:
    """Write a file in one step; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_table(results: Iterable[FileResult], columns: Sequence[str], path: Path) -> None:
    """Write a CSV file in one step: a row for each result, in the order given.

    Args:
        results: What became of the files.
        columns: The names of their rows' columns.
        path: Where to.

    Raises:
        OSError: It cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", *columns, "problem"])
    for result in results:
        writer.writerow([result.path, *(result.row or [""] * len(columns)), result.problem or ""])
    replace(path, text.getvalue().encode(errors="backslashreplace"))  # a file's name may be no UTF-8
