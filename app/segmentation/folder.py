"""Results of many files in a folder: what is segmented, what may not collide, and files that are whole or not there."""

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EAGAIN, EIO
from pathlib import Path
from typing import NamedTuple

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


class Found(NamedTuple):
    """Files to segment.

    Attributes:
        files: Each once.
        left_out: Files that are others of them under another name, and which.
    """

    files: list[Path]
    left_out: list[tuple[Path, Path]]


def find_files(paths: Iterable[Path], suffixes: Collection[str]) -> Found:
    """Return `paths` with each folder replaced by its files of these suffixes, in name order.

    Files whose names begin with a dot are passed over: copies make some, such as the `._NAME` of macOS.

    Raises:
        OSError: A folder cannot be listed, or not entered.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            entries = (entry for entry in path.iterdir() if entry.suffix.lower() in suffixes)
            seen = (entry for entry in entries if not entry.name.startswith("."))
            found.extend(sorted(entry for entry in seen if not (entry.is_dir() or entry.is_fifo())))
        else:
            found.append(path)
    once: dict[Path, Path] = {}
    left_out: list[tuple[Path, Path]] = []
    for path in found:
        first = once.setdefault(path.resolve(), path)
        if _entry(first) != _entry(path):
            left_out.append((path, first))
    return Found(list(once.values()), left_out)


def _entry(path: Path) -> Path:
    """Return where a name stands, which may be a link."""
    return path.parent.resolve() / path.name


def colliding(paths: Sequence[Path], *, ignores_case: bool = False) -> tuple[Path, Path] | None:
    """Return two paths whose results would have one name, or None.

    Args:
        paths: Of files.
        ignores_case: Whether names that differ in upper and lower case alone are one, as on many disks they are.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem.casefold() if ignores_case else path.stem, path)
        if other is not path:
            return other, path
    return None


def lying_in(paths: Sequence[Path], out: Path) -> Path | None:
    """Return one of `paths` that is in the folder `out`, or a link to what is there; or None."""
    folder = out.resolve()
    return next((path for path in paths if folder in (path.parent.resolve(), path.resolve().parent)), None)


def result_path(out: Path, path: Path, ending: str) -> Path:
    """Return where a file's result goes: its name with another ending, such as "_mask.png", in `out`."""
    return out / f"{path.stem}{ending}"


@contextmanager
def all_or_none(out: Path, path: Path, endings: Collection[str]) -> Iterator[None]:
    """Remove a file's results from `out`, and again if the block in which they are written anew fails.

    With them goes what a run that was killed left half written of them.

    Raises:
        OSError: One of those from before cannot be removed.
    """

    def remove() -> None:
        for ending in endings:
            result_path(out, path, ending).unlink(missing_ok=True)
        remove_half_written(out, path, endings)

    remove()
    try:
        yield
    except BaseException:
        with suppress(OSError):
            remove()
        raise


def remove_half_written(out: Path, path: Path, endings: Collection[str]) -> None:
    """Remove from `out` what a run that was killed left half written of a file's results; see `replacing`.

    Raises:
        OSError: Some of it cannot be removed.
    """
    for ending in endings:
        _partial(result_path(out, path, ending)).unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """Return where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.part")


def problem_of(error: OSError, path: Path) -> str:
    """Return what an error says, and of which file where that is not `path` itself; names may be no UTF-8."""
    reason = error.strerror or str(error)
    if error.filename is None or Path(os.fsdecode(error.filename)) == path:
        return reason
    return f"{os.fsencode(error.filename).decode(errors='replace')}: {reason}"


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give the path to write a file to, which then takes the place of `path`: that is whole at any moment it is seen.

    Args:
        path: The file.
        lasting: Whether also after the machine loses its power: what was written is on the disk before it has the name.
            That takes the disk some ms.

    Raises:
        OSError: It cannot be written; nothing is left of it. It is `path` that the error names.
    """
    partial = _partial(path)
    try:
        yield partial
        if lasting:
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno or EIO, error.strerror or str(error), os.fspath(path)) from error
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a lock, which a file stands for that is there as long: one process at a time gets into the block.

    On Windows all get in.

    Raises:
        BlockingIOError: Another one is in it.
        OSError: The file cannot be made, or its disk knows no locks.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415  not on Windows

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
            raise BlockingIOError(EAGAIN, os.strerror(EAGAIN), os.fspath(path))  # who had it has just removed its file
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def replace(path: Path, content: bytes, *, lasting: bool = True) -> None:
    """Write a file in one step; see `replacing`."""
    with replacing(path, lasting=lasting) as partial:
        partial.write_bytes(content)
