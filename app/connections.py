"""A connection to a client, and what it may cost before and after the application has a say.

Uvicorn's, on httptools, which bounds neither headers nor the time that they take, keeps a connection whose body nobody
reads, and waits for ever for a client that does not read its answer. Source: RFC 9112.
"""

import asyncio
import logging
import uuid
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserInvalidURLError, HttpParserUpgrade
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.middleware import PROBES
from app.api.problems import (
    HeadersTooLarge,
    InvalidRequest,
    RequestRejected,
    RequestTimeout,
    TooManyConnections,
    count_rejection,
    problem_of,
    respond,
)
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

_MOST_HEADER_BYTES = 64 * 2**10
"""Of a request line and headers; also of what a chunked body may hold between two pieces of content."""
_MOST_PIPELINED = 16
"""Requests that wait for the answer to the one before them. Hardly a client sends a second."""
_RESERVE = 16
"""Connections beyond those allowed, on which probes alone are answered: a crowd must not look like a dead service."""
_LINGER_SECONDS = 2.0
"""For a client to read an answer that it gets while it still sends: closed at once, it may see a reset instead."""
_LEAST_READ_BYTES = 2**20
"""Of an answer, that a client reads in the time of one request; a slower one is cut off."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may do with connections.

    Attributes:
        most: Connections of this process at one time.
        header_seconds: From a connection, or from the first byte of a further request on it, to the end of its headers.
        unread_seconds: For which an answer may wait to be read.
    """

    most: int
    header_seconds: float
    unread_seconds: float


def guarded(limits: ConnectionLimits, metrics: Metrics) -> type[asyncio.Protocol]:
    """Return what uvicorn is to make of each connection."""

    def connection(**uvicorns: Any) -> GuardedConnection:
        return GuardedConnection(limits, metrics, **uvicorns)

    return cast("type[asyncio.Protocol]", connection)


class _Stage(Enum):
    """What comes next of the request that is read."""

    ANY = auto()
    HEADERS = auto()
    BODY = auto()


class GuardedConnection(HttpToolsProtocol):
    """Speaks HTTP/1.1 within limits; what is refused here gets a problem document and ends the connection.

    Args:
        limits: What the client may do.
        metrics: Told of what is refused.
        uvicorns: What uvicorn gives its own.
    """

    def __init__(self, limits: ConnectionLimits, metrics: Metrics, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._metrics = metrics
        self._stage = _Stage.ANY
        self._heard = False
        self._overhead_bytes = 0
        self._header_bytes = 0
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._may_keep = False
        self._is_extra = False
        self._is_closing = False
        self._fault: RequestRejected | None = None
        self._refusal: bytes | None = None
        self._headers_due = _Alarm(self.loop, self._miss_headers)
        self._reading_due = _Alarm(self.loop, self._miss_reading)
        self._end_due = _Alarm(self.loop, self._end)
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; one too many is refused."""
        super().connection_made(cast("asyncio.Transport", transport))
        others = len(self.connections) - 1
        self._is_extra = others >= self._limits.most
        if self._is_extra:
            self.app = cast("Any", self._only_probes)
        if others >= self._limits.most + _RESERVE:
            self._refusal = self._written(_too_many())
            self.transport.write(self._refusal)
            self._end()
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        for cycle in self._unanswered:  # uvicorn thinks of the last alone
            _tell_that_it_ends(cycle)
        self._unset_keepalive_if_required()
        for alarm in (self._headers_due, self._reading_due, self._end_due):
            alarm.clear()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._heard = True
        self._overhead_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade:  # not taken up: the request is answered as it is, and then the connection ends
            return
        except HttpParserError as error:
            self._note_own_fault(error)
            self._refuse(self._fault or InvalidRequest("the request is not HTTP/1.1 as RFC 9112 has it"))
            return
        if self._stage is _Stage.ANY:
            if not self._unanswered and not self.transport.is_closing():  # empty lines, of which some may precede
                self._expect_headers()
        elif self._overhead_bytes > _MOST_HEADER_BYTES:
            self._refuse(_too_large())

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._stage = _Stage.HEADERS
        self._header_bytes = 0
        self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and leave a trailer: who reads headers has read them already."""
        self._count_header_bytes(len(name) + len(value))
        if self._stage is _Stage.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        self._check_head()
        super().on_headers_complete()
        self._headers_due.clear()
        self._stage = _Stage.BODY
        self._overhead_bytes = 0
        self._unanswered.append(self.cycle)
        # Kept for another request once this one has come in whole: of a body that nobody reads the end may never come.
        self._may_keep = self.cycle.keep_alive and not self._is_extra and not self.parser.should_upgrade()
        self.cycle.keep_alive = False
        self.cycle.transport = _AnswersTransport(self.transport, self._close)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._overhead_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        super().on_message_complete()
        self._stage = _Stage.ANY
        self._overhead_bytes = 0
        if self._is_closing:
            self._end()
        elif not self.cycle.response_started:
            self.cycle.keep_alive = self._may_keep

    def on_response_complete(self) -> None:
        """Go on with the next request, if there is one and there shall be."""
        self._unanswered.popleft()
        if self._is_closing:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._refusal is not None and not self._unanswered:
            self._give_refusal(self._refusal)

    def shutdown(self) -> None:
        """Take no further request."""
        self._may_keep = False
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which no further request came."""
        self._end()

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """Note that it has read."""
        super().resume_writing()
        self._reading_due.clear()

    def _expect_headers(self) -> None:
        self._headers_due.set(self._limits.header_seconds)

    def _miss_headers(self) -> None:
        if self._unanswered:  # meanwhile nothing more is read
            self._expect_headers()
        elif not self._heard:
            self._end()
        elif self._refusal is None and not self.transport.is_closing():
            self._refuse(RequestTimeout(f"the request's headers did not come within {self._limits.header_seconds:g} s"))

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > _MOST_HEADER_BYTES:
            self._reject(_too_large())

    def _check_head(self) -> None:
        """Refuse a request that is not to be handed on."""
        if self._is_closing or self.transport.is_closing():
            self._reject(InvalidRequest("the connection ends with the answer before"))
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            self._reject(InvalidRequest("only HTTP/1.1 is spoken here"))
        if version == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            self._reject(InvalidRequest("the request needs one Host header"))  # RFC 9112, section 3.2
        if self.parser.should_upgrade() and not self._is_without_body():
            self._reject(InvalidRequest("another protocol than HTTP/1.1 is not spoken; send the body without Upgrade"))
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._reject(InvalidRequest("too many requests at once on one connection; wait for their answers"))

    def _is_without_body(self) -> bool:
        """Whether there is none; the parser skips that of a request for another protocol."""
        if self.parser.get_method() == b"CONNECT":
            return False
        return not any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in self.headers
        )

    def _reject(self, fault: RequestRejected) -> None:
        self._fault = fault
        raise HttpParserError(str(fault))  # which the parser hands on to `data_received`

    def _note_own_fault(self, error: HttpParserError) -> None:
        """Log what went wrong on this side of the parser: it reports that as if the client had sent nonsense."""
        cause = error.__context__
        foreseen = (HttpParserError, HttpParserInvalidURLError, UnicodeError)
        if isinstance(error, HttpParserCallbackError) and not isinstance(cause, foreseen):
            _log.error("a request could not be taken", exc_info=cause)

    def _refuse(self, error: RequestRejected) -> None:
        """Refuse what comes, after the answers to what came before it, and end the connection."""
        if self._is_closing or self.transport.is_closing():
            self._end()
            return
        self._headers_due.clear()
        self._refusal = self._written(error)
        if self._stage is _Stage.BODY and not self.cycle.response_complete:
            broken = self._unanswered.pop()
            if self.pipeline:
                self.pipeline.popleft()
            else:
                _tell_that_it_ends(broken)
                if self.cycle.response_started:
                    self._end()
                    return
        if not self._unanswered:
            self._give_refusal(self._refusal)

    def _give_refusal(self, refusal: bytes) -> None:
        self.transport.write(refusal)
        self._close()

    def _written(self, error: RequestRejected) -> bytes:
        """Return an answer's bytes; for where no request is to be answered by the application."""
        response = _answer(error, self._metrics)
        headers = (*self.server_state.default_headers, *response.raw_headers)
        lines = [b"%s: %s\r\n" % header for header in headers]
        return b"".join((STATUS_LINE[response.status_code], *lines, b"\r\n", response.body))

    async def _only_probes(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await cast("ASGIApp", self.config.loaded_app)(scope, receive, send)
        else:
            await _answer(_too_many(), self._metrics)(scope, receive, send)

    def _close(self) -> None:
        """End the connection once what was written is sent, and once the client has had time to read it."""
        if self._stage is _Stage.ANY and self._refusal is None:
            self._end()
        elif not self._is_closing:
            self._is_closing = True
            self.flow.resume_reading()
            self._end_due.set(_LINGER_SECONDS)

    def _end(self) -> None:
        """End the connection once what was written is sent, which a client must not put off for ever."""
        self.transport.close()
        self._expect_reading()

    def _expect_reading(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        if self._unread_bytes:
            self._reading_due.set(self._limits.unread_seconds)

    def _miss_reading(self) -> None:
        if self._unread_bytes - self.transport.get_write_buffer_size() < _LEAST_READ_BYTES:
            self.transport.abort()
        else:
            self._expect_reading()


class _Alarm:
    """Calls `act` after a time, unless it is told not to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        self._loop = loop
        self._act = act
        self._due: TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Call it after `seconds`; one that is set already stays as it is."""
        if self._due is None:
            self._due = self._loop.call_later(seconds, self._ring)

    def clear(self) -> None:
        """Do not call it."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _ring(self) -> None:
        self._due = None
        self._act()


class _AnswersTransport(asyncio.Transport):
    """A connection's transport as an answer sees it, which ends the connection and not the transport."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport = transport
        self._close = close

    def write(self, data: Any) -> None:
        """Send a piece of an answer; in vain once the connection has ended."""
        if not self._transport.is_closing():
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection."""
        self._close()


def _tell_that_it_ends(cycle: RequestResponseCycle) -> None:
    """Let the application know that no more of a request will come."""
    cycle.disconnected = True
    cycle.message_event.set()


def _answer(error: RequestRejected, metrics: Metrics) -> Response:
    """Return the answer that refuses a request before the application has it, and note that it was given."""
    token = request_id.set(str(uuid.uuid4()))
    try:
        problem = problem_of(error)
        _log.info("connection refused", extra={"status": problem.status, "kind": problem.type.rpartition(":")[2]})
    finally:
        request_id.reset(token)
    count_rejection(error, metrics)
    again = {"Retry-After": "1"} if isinstance(error, TooManyConnections) else {}
    return respond(problem, {"Connection": "close", "X-Request-ID": problem.request_id or "", **again})


def _too_large() -> RequestRejected:
    return HeadersTooLarge(f"the request's headers have more than {_MOST_HEADER_BYTES} bytes")


def _too_many() -> RequestRejected:
    return TooManyConnections("the service has as many connections as it may have; try again later")
