"""The audit log: one JSON object a line, one line a request. What stands in it is decided in `app/api/access.py`."""

import errno
import json
import os
import select
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from app.errors import AccessUnusable, AuditUnavailable, reason_of
from app.shared_numbers import shared_numbers

NOT_WRITTEN = "the audit log cannot be written, and nothing is answered without it"
_DOUBTED_NS = 10 * 10**9
"""For so long a line that could not be written speaks against the next one; then it is worth a try."""


class AuditLog:
    """A file to which lines are appended, by several processes if need be: a line is one write, and none is torn apart.

    A file that was moved away (logrotate) is noticed at the next line, which begins a new one. The processes share that
    a line was cut off, as by a full disk, so that whoever comes next begins anew, and that none could be written, and
    why. A pipe may be named, such as /dev/stdout in a container; it is not waited for.

    Args:
        path: The file; made where there is none, for its owner alone.
        clock: Tells nanoseconds, the same in all processes.

    Raises:
        AccessUnusable: It cannot be opened for appending.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._path = path
        self._clock = clock
        self._torn, self._doubted_until, self._doubted_for = (shared_numbers(1) for _ in range(3))
        try:
            self._handle = self._open()
            self._torn[0] = _ends_within_a_line(path)
        except OSError as error:
            raise AccessUnusable(
                f"the audit log {path}: {reason_of(error)}; choose a file that can be appended to"
            ) from error

    def write(self, record: Mapping[str, object]) -> None:
        """Append a line. When this returns, the system has it: it outlives the process, though not a power cut.

        Raises:
            AuditUnavailable: It could not be written.
        """
        try:
            self._append(record)
        except OSError as error:
            self._doubted_for[0] = error.errno or errno.EIO
            self._doubted_until[0] = self._clock() + _DOUBTED_NS
            raise AuditUnavailable(NOT_WRITTEN) from error
        self._doubted_until[0] = 0

    @property
    def trouble(self) -> str | None:
        """What keeps a line from being written now, as far as that shows without writing one; None: nothing does."""
        try:
            self._follow()
            self._try()
        except OSError as error:
            return (
                f"the audit log {self._path} cannot be written: {reason_of(error)}; images are refused until a line can"
                " be appended to it"
            )
        return None

    def _try(self) -> None:
        """Check everything that a write would need, without writing.

        Raises:
            OSError: It would fail.
        """
        if self._clock() < self._doubted_until[0]:
            raise OSError(self._doubted_for[0], os.strerror(self._doubted_for[0]))
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            _check_heard(self._handle)
        elif os.fstatvfs(self._handle).f_bavail == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _append(self, record: Mapping[str, object]) -> None:
        self._follow()
        line = b"\n" * self._torn[0] + json.dumps(record).encode() + b"\n"
        written = os.write(self._handle, line)
        if written:
            self._torn[0] = written < len(line)  # the disk is full: what comes next begins on a line of its own
        if written < len(line):
            raise OSError(errno.ENOSPC, "a line was cut off")

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
            self._torn[0] = _ends_within_a_line(self._path)  # another process may have begun with it long ago
            if os.fstat(handle).st_size == 0:
                self._doubted_until[0] = 0

    def _open(self) -> int:
        never_waits = getattr(os, "O_NONBLOCK", 0)  # for whoever reads a pipe; Windows has no such flag
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | never_waits, 0o600)


def _check_heard(handle: int) -> None:
    """Make sure that a pipe has a reader and room, or that a device takes what comes.

    Raises:
        OSError: It has not; or the device does not, as /dev/full.
    """
    os.write(handle, b"")
    asked = select.poll()
    asked.register(handle, select.POLLOUT)
    if asked.poll(0) != [(handle, select.POLLOUT)]:
        raise OSError(errno.EPIPE, "the pipe is full, or nobody reads it")


def _ends_within_a_line(path: Path) -> bool:
    """Whether the last line of a file was cut off; not known of what is no file or may not be read."""
    if not (path.is_file() and os.access(path, os.R_OK)):
        return False
    with path.open("rb") as file:
        file.seek(-1 if path.stat().st_size else 0, os.SEEK_END)
        return file.read() not in {b"", b"\n"}
