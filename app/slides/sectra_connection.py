"""HTTP connections on which a whole answer has a deadline, its headers as well as its body.

A socket's timeout bounds each wait for more bytes, so an answer that drips byte by byte would hold its thread for ever.
"""

import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

import urllib3

_ends_at: ContextVar[float] = ContextVar("ends_at")


class AnswerTooSlow(Exception):
    """The answer was not there in time; urllib3 lets this pass, without another try, and closes the connection."""


@contextmanager
def answered_by(ends_at: float) -> Iterator[None]:
    """Let what is read in the block, in its thread, come by `ends_at`, in seconds of `time.monotonic`."""
    token = _ends_at.set(ends_at)
    try:
        yield
    finally:
        _ends_at.reset(token)


class _Stream(io.RawIOBase):
    """A socket's bytes until the deadline."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket) -> None:
        self._stream = stream
        self._sock = sock
        self._wait_seconds = sock.gettimeout() or 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _ends_at.get() - time.monotonic()
        if left <= 0:
            raise AnswerTooSlow
        self._sock.settimeout(min(left, self._wait_seconds))
        try:
            return self._stream.readinto(buffer)
        except TimeoutError:
            if left <= self._wait_seconds:
                raise AnswerTooSlow from None
            raise

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Stream(self.fp.detach(), sock))


class _HttpConnection(urllib3.connection.HTTPConnection):
    response_class = _Answer


class _HttpsConnection(urllib3.connection.HTTPSConnection):
    response_class = _Answer


class HttpPool(urllib3.HTTPConnectionPool):
    """Without TLS."""

    ConnectionCls = _HttpConnection


class HttpsPool(urllib3.HTTPSConnectionPool):
    """With TLS. A handshake is one wait, so a socket's timeout bounds it."""

    ConnectionCls = _HttpsConnection
