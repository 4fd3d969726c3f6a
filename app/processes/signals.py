"""SIGINT, SIGTERM and SIGHUP as something to wait for beside pipes."""

import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

_STOPS = (signal.SIGINT, signal.SIGTERM)
_MANY = 4096
_TERMINAL = 0


class StopSignals:
    """Takes the signals for the length of a block.

    Attributes:
        received: Those to stop that came, in order.
        reload_asked: Whether one of `reload_signals` came.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.reload_asked = False
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.setblocking(False)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in (*_STOPS, *reload_signals())}
        self._wakeup_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
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
        """Give the signals back."""
        self._restore(self._before)

    def leave_to_parent(self) -> None:
        """In a forked process: have no part in them, whoever sends them to all processes of the service at once."""
        self._restore(dict.fromkeys((*_STOPS, signal.SIGHUP), signal.SIG_IGN))

    def _restore(self, handlers: dict[int, Any]) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        self._wakes.close()
        self._woken.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOPS:
            self.received.append(number)
        else:
            self.reload_asked = True


def reload_signals() -> tuple[int, ...]:
    """Return what asks a service for a reload: SIGHUP, but not in a terminal, which it ends with, nor on Windows."""
    if sys.platform == "win32" or os.isatty(_TERMINAL):
        return ()
    return (signal.SIGHUP,)
