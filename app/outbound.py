"""Connections to other services on which each answer has a deadline, and on which what only reads can be ended.

A socket's timeout bounds each wait for more bytes, so an answer that drips byte by byte would hold its thread for ever.
"""

import io
import math
import socket
import time
from contextlib import suppress
from functools import partial
from http.client import HTTPResponse
from threading import Event, RLock
from typing import Any

from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection


class AnswerTooSlow(Exception):
    """The answer was not there in time; urllib3 lets this pass, without another try, and closes the connection."""


class Exchanges:
    """What several threads ask of one service.

    Args:
        head_seconds: The longest that an answer's status and headers may take, all of them, once it was asked for, and
            the longest wait for the service to take a part of what is sent.
        answer_seconds: The same of the whole answer.

    Attributes:
        over: Set once `end` has been called.
    """

    def __init__(self, head_seconds: float, answer_seconds: float) -> None:
        self.head_seconds = head_seconds
        self.answer_seconds = answer_seconds
        self.over = Event()
        self._lock = RLock()  # not Lock: garbage that is collected while it is held may leave
        self._reading: set[socket.socket] = set()

    def bound(self, pool: HTTPConnectionPool) -> HTTPConnectionPool:
        """Return `pool`, with connections that take part in these exchanges."""
        pool.ConnectionCls = _Tls if pool.scheme == "https" else _Plain
        pool.conn_kw["exchanges"] = self
        return pool

    def end(self) -> None:
        """End every GET, and let none begin. Whether something is stored has to be known: that is waited for."""
        with self._lock:
            self.over.set()
            for sock in list(self._reading):
                # Not `sock.shutdown`: of TLS, that takes away what another thread is reading with.
                with suppress(OSError), socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                    same.shutdown(socket.SHUT_RDWR)

    def enter(self, sock: socket.socket) -> None:
        """Let `end` cut a socket."""
        with self._lock:
            self._reading.add(sock)

    def leave(self, sock: socket.socket) -> None:
        """Let `end` cut it no more."""
        with self._lock:
            self._reading.discard(sock)

    def check(self) -> None:
        """Raise ConnectionAbortedError if `end` was called."""
        if self.over.is_set():
            raise ConnectionAbortedError


class _Stream(io.RawIOBase):
    """A socket's bytes until `ends_at`, in seconds of `time.monotonic`."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, exchanges: Exchanges, reads: bool) -> None:
        self.ends_at = time.monotonic() + exchanges.head_seconds
        self._stream = stream
        self._sock = sock
        self._exchanges = exchanges
        self._reads = reads
        self._wait_seconds = sock.gettimeout() or math.inf
        if reads:
            exchanges.enter(sock)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._check()
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise AnswerTooSlow
        self._sock.settimeout(min(left, self._wait_seconds))
        try:
            return self._stream.readinto(buffer)
        except TimeoutError:
            if left <= self._wait_seconds:
                raise AnswerTooSlow from None
            raise
        finally:
            self._check()  # whatever was read, or failed: to be cut looks like an end

    def _check(self) -> None:
        if self._reads:
            self._exchanges.check()

    def close(self) -> None:
        self._exchanges.leave(self._sock)
        self._stream.close()
        super().close()


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, exchanges: Exchanges, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._body_seconds = exchanges.answer_seconds - exchanges.head_seconds
        self._stream = _Stream(self.fp.detach(), sock, exchanges, options.get("method") == "GET")
        self.fp = io.BufferedReader(self._stream)

    def begin(self) -> None:
        super().begin()
        self._stream.ends_at += self._body_seconds


class _Plain(HTTPConnection):
    def __init__(self, *arguments: Any, exchanges: Exchanges, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._exchanges = exchanges
        self.response_class = partial(_Answer, exchanges=exchanges)  # type: ignore[assignment]  # it is only called

    def request(self, method: str, *arguments: Any, **options: Any) -> None:
        if method == "GET":
            self._exchanges.check()
        if self.is_closed:
            self.connect()
        self.timeout = self._exchanges.head_seconds  # else urllib3 sends within the time that it has for connecting
        super().request(method, *arguments, **options)


class _Tls(_Plain, HTTPSConnection):
    """A handshake is one wait, so a socket's timeout bounds it."""
