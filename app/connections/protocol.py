"""What a connection reads: HTTP/1.1, within limits. Source: RFC 9112.

Uvicorn's, on httptools, bounds neither headers nor the time that they take, and queues as many requests as come.
"""

import asyncio
import logging
from typing import Any, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserInvalidURLError, HttpParserUpgrade

from app.api.door import Door
from app.api.problems import InvalidRequest, RequestRejected, RequestTimeout
from app.connections import head
from app.connections.alarm import Alarm
from app.connections.lifetime import Stage, tell_that_it_ends
from app.connections.limits import ConnectionLimits
from app.connections.turning_away import SelectiveConnection
from app.telemetry.metrics import Metrics

_MOST_PIPELINED = 16
"""Requests that wait for the answer to the one before them. Hardly a client sends a second."""

_log = logging.getLogger(__name__)


def guarded(limits: ConnectionLimits, metrics: Metrics, door: Door) -> type[asyncio.Protocol]:
    """Return what uvicorn is to make of each connection."""

    def connection(**uvicorns: Any) -> GuardedConnection:
        return GuardedConnection(door, limits, metrics, **uvicorns)

    return cast("type[asyncio.Protocol]", connection)


class GuardedConnection(SelectiveConnection):
    """Speaks HTTP/1.1 within limits; what is refused here gets a problem document and ends the connection.

    Args:
        door: Turns away whom there is no place for.
        limits: What the client may do.
        metrics: Told of what is refused.
        uvicorns: What uvicorn gives its own.
    """

    def __init__(self, door: Door, limits: ConnectionLimits, metrics: Metrics, **uvicorns: Any) -> None:
        super().__init__(door, limits, metrics, **uvicorns)
        self._heard = False
        self._overhead_bytes = 0
        self._header_bytes = 0
        self._headers_due = Alarm(self.loop, self._miss_headers)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; one too many is refused."""
        super().connection_made(transport)
        if self._refusal is None:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._headers_due.clear()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._has_turned_away = False
        self._heard = True
        self._overhead_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade:  # not taken up: the request is answered as it is, and then the connection ends
            return
        except HttpParserError as error:
            self._refuse(_behind(error))
            return
        if self._stage is Stage.ANY:
            is_busy = self._unanswered or self._has_turned_away or self.transport.is_closing()
            if not is_busy:  # empty lines, of which some may precede
                self._expect_headers()
        elif self._overhead_bytes > head.MOST_BYTES:
            self._refuse(head.too_large())
        elif self._stage is Stage.HEADERS:
            self._expect_headers()

    # The parser calls the following, and hands on to `data_received` what they raise.

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._stage = Stage.HEADERS
        self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and leave a trailer: who reads headers has read them already."""
        self._count_header_bytes(len(name) + len(value))
        if self._stage is Stage.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request on."""
        if self._ending.lingers or self.transport.is_closing():
            raise InvalidRequest("the connection ends with the answer before")
        head.check(self.parser, self.url, self.headers)
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise InvalidRequest("too many requests at once on one connection; wait for their answers")
        if self._is_turned_away():
            self._begin_body()
            return
        self._unset_keepalive_if_required()  # of one that was turned away in the same read
        super().on_headers_complete()
        self._begin_body()
        self._unanswered.append(self.cycle)
        # Kept for another request once this one has come in whole: of a body that nobody reads the end may never come.
        self._may_keep = self.cycle.keep_alive and not self._is_extra and not self.parser.should_upgrade()
        self.cycle.keep_alive = False
        self.cycle.transport = self._answers

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._overhead_bytes = 0
        if self._turned_away is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._stage = Stage.ANY
        self._overhead_bytes = 0
        if self._turned_away is not None:
            self._answer_turned_away()
            return
        super().on_message_complete()
        if self._ending.lingers:
            self._ending.end()
        elif not self.cycle.response_started:
            self.cycle.keep_alive = self._may_keep

    def _begin_body(self) -> None:
        self._headers_due.clear()
        self._stage = Stage.BODY
        self._overhead_bytes = 0

    def _expect_headers(self) -> None:
        self._headers_due.set(self._limits.header_seconds)

    def _miss_headers(self) -> None:
        if self._unanswered:  # meanwhile nothing more is read
            self._expect_headers()
        elif not self._heard:
            self._ending.end()
        elif self._refusal is None and not self.transport.is_closing():
            self._refuse(RequestTimeout(f"the request's headers did not come within {self._limits.header_seconds:g} s"))

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > head.MOST_BYTES:
            raise head.too_large()

    def _refuse(self, error: RequestRejected) -> None:
        """Refuse what comes, after the answers to what came before it, and end the connection."""
        if self._ending.lingers or self.transport.is_closing():
            self._ending.end()
            return
        self._headers_due.clear()
        self._refusal = self._written(error)
        if self._stage is Stage.BODY and not self.cycle.response_complete:
            broken = self._unanswered.pop()
            if self.pipeline:
                self.pipeline.popleft()
            else:
                tell_that_it_ends(broken)
                if self.cycle.response_started:
                    self._ending.end()
                    return
        if not self._unanswered:
            self._give_refusal(self._refusal)


def _behind(error: HttpParserError) -> RequestRejected:
    """Return what a request is refused for; what went wrong on this side the parser reports as the client's too."""
    cause = error.__context__
    if isinstance(cause, RequestRejected):
        return cause
    if isinstance(error, HttpParserCallbackError) and not isinstance(cause, HttpParserInvalidURLError | UnicodeError):
        _log.error("a request could not be taken", exc_info=cause)
    return InvalidRequest("the request is not HTTP/1.1 as RFC 9112 has it")
