"""Waits for an archive: none is longer than its limit, however slowly bytes drip, and a session that ends ends them.

A socket's own timeout begins anew with every byte, and no other thread can end it.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Lock, Timer
from typing import Any

from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection


class Waits:
    """What the threads of one session wait for.

    Attributes:
        over: Set once `end` has been called.
    """

    def __init__(self) -> None:
        self.over = Event()
        self._lock = Lock()
        self._stops: set[Callable[[], None]] = set()

    @contextmanager
    def limited(self, seconds: float, stop: Callable[[], None], finishes: bool = False) -> Iterator[None]:
        """Bound what is waited for in this context.

        Args:
            seconds: The longest wait.
            stop: Called from another thread, makes the wait fail or come to an end.
            finishes: Whether the wait outlives `end`.

        Raises:
            TimeoutError: The wait was too long.
            ConnectionAbortedError: `end` was called.
        """
        late = Event()

        def end_late() -> None:
            late.set()
            stop()

        timer = Timer(seconds, end_late)
        timer.daemon = True
        with self._lock:
            if not finishes:
                if self.over.is_set():
                    raise ConnectionAbortedError
                self._stops.add(stop)
        timer.start()
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001  it is raised below, or is the cause
            failure = error
        finally:
            timer.cancel()
            with self._lock:
                self._stops.discard(stop)
        if late.is_set():  # also where the wait ended well: what was stopped may look complete
            raise TimeoutError from failure
        if not finishes and self.over.is_set():
            raise ConnectionAbortedError from failure
        if failure is not None:
            raise failure

    def end(self) -> None:
        """End every wait, and let none begin, except those that finish."""
        with self._lock:
            self.over.set()
            stops = list(self._stops)
        for stop in stops:
            stop()


class _Limited(HTTPConnection):
    """A connection whose answer's status and headers have to come within the read timeout, all of them.

    Args:
        waits: Takes part in these.
    """

    def __init__(self, *args: Any, waits: Waits, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waits = waits
        self._stores = False

    def request(self, method: str, *args: Any, **options: Any) -> None:
        self._stores = method == "POST"
        if self._waits.over.is_set() and not self._stores:
            raise ConnectionAbortedError
        super().request(method, *args, **options)

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        # Whether something is stored has to be known: that answer is waited for even if the session ends.
        stop = partial(_shut, self.sock)
        with self._waits.limited(float(self.timeout or 0), stop, finishes=self._stores):
            return super().getresponse()


class _LimitedTls(_Limited, HTTPSConnection):
    """The same over TLS."""


def _shut(connected: socket.socket) -> None:
    with suppress(OSError):  # the archive was faster
        connected.shutdown(socket.SHUT_RDWR)


CONNECTIONS: dict[str, type[HTTPConnection]] = {"http": _Limited, "https": _LimitedTls}
"""For each scheme."""
