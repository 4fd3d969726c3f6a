"""Files that are replaced in one step, so that an interrupt leaves the old one whole, and folders to write them to."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Give a file to write to; `path` becomes it at the end, or stays as it is when something goes wrong.

    Args:
        path: The file.
        lasting: Whether a power failure right after it must not undo it; waiting for the disk takes milliseconds.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path, temporary):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Have an error of the system that names no file, as that of a full disk, or `temporary`, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in {None, str(temporary)}:  # not the system's, or another file's
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_writable(folder: Path) -> None:
    """Make `folder` when missing, and make sure that a file can be written to it.

    Raises:
        OSError: It cannot; the error names the folder.
    """
    trial = folder / f".{os.getpid()}"
    with naming(folder, trial):
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Replace `path` by `text` as UTF-8, with its line ends as they are; `lasting` as `replacing` has it."""
    with replacing(path, lasting=lasting) as file:
        file.write(text.encode())
