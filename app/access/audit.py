"""The audit log: one JSON object a line, one line a request. What stands in it is decided in `app/api/access.py`."""

import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from app.errors import AccessUnusable, AuditUnavailable


class AuditLog:
    """A file to which lines are appended, by several processes if need be: a line is one write, and none is torn apart.

    A file that was moved away (logrotate) is noticed at the next line, which begins a new one. It is made before the
    processes are forked: they share that a line was cut off, as by a full disk, so that whoever comes next begins anew.

    Args:
        path: The file; made where there is none, for its owner alone.

    Raises:
        AccessUnusable: It cannot be opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._torn = mmap.mmap(-1, 1)
        try:
            self._handle = self._open()
            self._torn[0] = _ends_within_a_line(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise AccessUnusable(f"the audit log {path}: {reason}; choose a file that can be appended to") from error

    def write(self, record: Mapping[str, object]) -> None:
        """Append a line. When this returns, the system has it: it outlives the process, though not a power cut.

        Raises:
            AuditUnavailable: It could not be written.
        """
        try:
            self._follow()
            line = b"\n" * self._torn[0] + json.dumps(record).encode() + b"\n"
            written = os.write(self._handle, line)
        except OSError as error:
            raise AuditUnavailable("the audit log cannot be written, and nothing is answered without it") from error
        if written:
            self._torn[0] = written < len(line)  # the disk is full: what comes next begins on a line of its own
        if written < len(line):
            raise AuditUnavailable("the audit log cannot be written, and nothing is answered without it")

    @property
    def is_usable(self) -> bool:
        """Whether a line can be written now, as far as that shows without writing one."""
        try:
            self._follow()
            return os.fstatvfs(self._handle).f_bavail > 0
        except OSError:
            return False

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _follow(self) -> None:
        """Open the file anew where its name leads elsewhere by now."""
        try:
            same = os.path.samestat(self._path.stat(), os.fstat(self._handle))
        except FileNotFoundError:
            same = False
        if not same:
            handle = self._open()
            os.close(self._handle)
            self._handle = handle
            self._torn[0] = False

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def _ends_within_a_line(path: Path) -> bool:
    """Whether the last line of a file was cut off; not known of what is no file or may not be read."""
    if not (path.is_file() and os.access(path, os.R_OK)):
        return False
    with path.open("rb") as file:
        file.seek(-1 if path.stat().st_size else 0, os.SEEK_END)
        return file.read() not in {b"", b"\n"}
