"""A log that nobody waits for: where it is not read, lines wait, then are lost, and are spoken of once it is again."""

import logging
import os
import select
import socket
import stat
import sys
import time
from collections import deque
from typing import IO

_MOST_WAITING = 1000
"""Lines that are kept for a reader who is slow."""
_LAST_SECONDS = 1.0
"""For which a process that ends waits for whoever reads its log."""


class UnreadHandler(logging.StreamHandler[IO[str]]):
    """Writes to a stream's descriptor without waiting. It has no thread, so that the process can be forked at any time.

    Other programs may have the same standard error, and would be surprised by one that does not block: a pipe or a
    terminal is opened anew for that. Where it may not be, as another user's, it is asked for room first.

    Args:
        stream: Where to write; it has a descriptor.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        kind = os.fstat(stream.fileno()).st_mode
        # A file is never waited for, and has a place at which the next line goes; a socket cannot be opened.
        self._descriptor = _opened(stream.fileno(), anew=not (stat.S_ISREG(kind) or stat.S_ISSOCK(kind)))
        self._socket = socket.socket(fileno=os.dup(self._descriptor)) if stat.S_ISSOCK(kind) else None
        self._at_once = sys.maxsize if stat.S_ISREG(kind) else select.PIPE_BUF
        self._room = select.poll()
        self._room.register(self._descriptor, select.POLLOUT)
        os.register_at_fork(after_in_child=self._forget)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record's line, after those that wait, or let it wait."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  as any handler does with what its caller got wrong
            self.handleError(record)
        else:
            self.tell(line)

    def tell(self, line: str) -> None:
        """Write a line as it is, likewise."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(self._encoded(line))
        else:
            self._lost += 1
        self._write_what_waits()

    def flush(self) -> None:
        """Write what waits, for a second at most."""
        ends_at = time.monotonic() + _LAST_SECONDS
        while self._waiting and (left := ends_at - time.monotonic()) > 0:
            self._room.poll(1000 * left)
            self._write_what_waits()

    def close(self) -> None:
        """Let go of the descriptor."""
        super().close()
        if self._socket is not None:
            self._socket.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._socket = -1, None
        self._waiting.clear()

    def _encoded(self, line: str) -> bytes:
        return (line + self.terminator).encode(errors="backslashreplace")

    def _write_what_waits(self) -> None:
        try:
            while self._waiting and self._room.poll(0):
                line = self._waiting[0]
                written = self._write(line[: self._at_once])
                if written < len(line):
                    self._waiting[0] = line[written:]
                    continue
                self._waiting.popleft()
                if self._lost and not self._waiting:
                    self._waiting.append(self._encoded(self._of_lost()))
                    self._lost = 0
        except BlockingIOError:
            return
        except OSError:  # whoever read it is gone
            self._lost += len(self._waiting)
            self._waiting.clear()

    def _write(self, piece: bytes) -> int:
        if self._socket is not None:
            return self._socket.send(piece, socket.MSG_DONTWAIT)
        return os.write(self._descriptor, piece)

    def _of_lost(self) -> str:
        words = "%d lines of the log were lost: it was not read"
        return self.format(logging.LogRecord(__name__, logging.WARNING, "", 0, words, (self._lost,), None))

    def _forget(self) -> None:
        """In a forked process: what waits is its parent's to write."""
        self._waiting.clear()
        self._lost = 0


def _opened(descriptor: int, *, anew: bool) -> int:
    """Return another descriptor of what one leads to: anew, it does not block, where the system lets it be opened."""
    if anew:
        try:
            return os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            pass
    return os.dup(descriptor)
