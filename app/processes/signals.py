"""SIGINT and SIGTERM as something to wait for beside pipes."""

import signal
import socket
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_MANY = 4096


class StopSignals:
    """Takes SIGINT and SIGTERM for the length of a block.

    Attributes:
        received: Those that came, in order.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.setblocking(False)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in _NUMBERS}
        self._wakeup_before = signal.set_wakeup_fd(self._wakes.fileno())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def fileno(self) -> int:
        """Return what is readable once a signal has come."""
        return self._woken.fileno()

    def take(self) -> None:
        """Make it unreadable again."""
        with suppress(BlockingIOError):
            self._woken.recv(_MANY)

    def release(self) -> None:
        """Give the signals back; also for a forked process, which has its own way with them."""
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._wakes.close()
        self._woken.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
