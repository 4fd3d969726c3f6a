"""Files that are replaced in one step, so that an interrupt leaves the old one whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to; `path` becomes it at the end, or stays as it is when something goes wrong."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path, temporary):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
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


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` as UTF-8, with its line ends as they are."""
    with replacing(path) as file:
        file.write(text.encode())
