"""A client's connection: HTTP/1.1 within limits, from its beginning to its end in bounded time. Source: RFC 9112.

Uvicorn's, on httptools, bounds neither headers nor the time that they take, queues as many requests as come, and ends
when its client likes: it keeps one whose body nobody reads, and waits for ever for a client that does not read.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from functools import partial
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.problems import InvalidRequest, RequestRejected, RequestTimeout
from app.api.uploads import SOON_SECONDS
from app.connections import head
from app.connections.alarm import Alarm
from app.connections.answers import AnswersTransport, in_one_piece
from app.connections.ending import Ending
from app.connections.limits import RESERVE, ConnectionLimits
from app.connections.load_shedding import LoadShedding, ShedRequest
from app.connections.offers import offers_http2, parser_of_body
from app.connections.refusals import connection_refused, written
from app.connections.unread import Unread
from app.errors import TesseraError, TooManyConnections
from app.telemetry.metrics import Metrics

_MOST_PIPELINED = 16
"""Requests that wait for the answer to the one before them. Hardly a client sends a second."""


class _Stage(Enum):
    """What comes next of the request that is read."""

    ANY = auto()
    HEADERS = auto()
    OFFERED = auto()  # HTTP/2: the parser skips the body, and another one reads it
    BODY = auto()


class Connection(HttpToolsProtocol):
    """One client's; what is refused here gets a problem document.

    A request is handed on to the application, or shed: answered here, with what it brings thrown away. After any other
    refusal the connection ends.

    Args:
        limits: What the client may do.
        metrics: Told of what is refused.
        shedding: Says which requests are shed.
        uvicorns: What uvicorn gives its own.
    """

    _ending: Ending
    _answers: AnswersTransport

    def __init__(self, limits: ConnectionLimits, metrics: Metrics, shedding: LoadShedding, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._metrics = metrics
        self._shedding = shedding
        self._is_extra = False  # and serves probes alone
        self._input_due = Alarm(self.loop, self._miss_input)
        self._stage = _Stage.ANY
        self._is_heard = False  # something has come
        self._header_bytes = 0  # of the request that is read, with its target and trailers
        self._overhead_bytes = 0  # since the last piece of a body, and of whatever is not one
        self._shed: ShedRequest | None = None  # the one that is read
        self._has_shed = False  # one of this read
        self._unanswered: deque[RequestResponseCycle] = deque()  # which were handed on
        self._may_keep = False  # it, for another request than the one that is read
        self._refusal: bytes | None = None  # with which it ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; one too many is refused."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._ending = Ending(self.loop, self.transport, self._limits.unread_seconds)
        unread = Unread(self.loop, self.transport, self._unread_of_front)
        self._answers = AnswersTransport(self.transport, self._close, unread)
        others = len(self.connections) - 1
        self._is_extra = others >= self._limits.most
        app = cast("ASGIApp", self.config.loaded_app)
        whole = partial(in_one_piece, app, self._answers)
        self.app = cast("Any", partial(self._shedding.serve_probes, app) if self._is_extra else whole)
        if others < self._limits.most + RESERVE:
            self._input_due.set(self._limits.header_seconds)
        else:
            self._refusal = self._refused(TooManyConnections())
            self.transport.write(self._refusal)
            self._ending.end()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._has_shed = False
        self._is_heard = True
        self._overhead_bytes += len(data)
        try:
            self._feed(data)
        except HttpParserUpgrade:  # not taken up: the request is answered as it is, and then the connection ends
            return
        except HttpParserError as error:
            self._refuse(head.reason_of(error))
            return
        is_busy = self._unanswered or self._has_shed or self.transport.is_closing()
        if self._stage is not _Stage.ANY and self._overhead_bytes > head.MOST_BYTES:
            self._refuse(head.too_large())
        elif self._stage is _Stage.HEADERS or (self._stage is _Stage.ANY and not is_busy):
            self._input_due.set(self._limits.header_seconds)  # after empty lines too, of which some may precede

    # The parser calls the following, and hands on to `data_received` what they raise.

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._stage = _Stage.HEADERS
        self._header_bytes = 0

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
        """Hand the request on, unless it is refused."""
        if self._ending.lingers or self.transport.is_closing():
            raise InvalidRequest("the connection ends with the answer before")
        head.check(self.parser, self.url, self.headers)
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise InvalidRequest("too many requests at once on one connection; wait for their answers")
        is_upgrade = self.parser.should_upgrade()
        is_plain = not (self._unanswered or self._is_extra or self.flow.write_paused or is_upgrade)
        if is_plain and not self._has_shed:  # the others of one read take their turn among all connections
            self._shed = self._shedding.shed(self.parser.get_method(), self.url, self.headers)
        if self._shed is None:
            self._unset_keepalive_if_required()  # of one that was shed in the same read
            super().on_headers_complete()
            self._unanswered.append(self.cycle)
            self.cycle.keep_alive = (
                False  # until it has come in whole: of a body that nobody reads the end may never come
            )
            self.cycle.transport = self._answers
        keeps = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self._may_keep = keeps and not self._is_extra and not is_upgrade
        self._stage = _Stage.OFFERED if offers_http2(self.parser, self.headers) else _Stage.BODY
        self._overhead_bytes = 0
        self._input_due.clear()
        if self._shed is not None:
            self._input_due.set(SOON_SECONDS)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._overhead_bytes = 0
        if self._shed is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if self._stage is _Stage.OFFERED:
            return
        self._stage = _Stage.ANY
        self._overhead_bytes = 0
        if self._shed is not None:
            self._answer_shed(self._shed)
            return
        super().on_message_complete()
        if self._ending.lingers:
            self._ending.end()
        elif not self.cycle.response_started:
            self.cycle.keep_alive = self._may_keep

    # From here on it is the application that is done, or the server, or the client.

    def on_response_complete(self) -> None:
        """Go on with the next request, if there is one and there shall be."""
        self._answers.send_kept()  # before a refusal, which goes past them
        self._unanswered.popleft()
        if self._ending.lingers:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        self._end_as_refused()

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        self._ending.expect_reading()

    def resume_writing(self) -> None:
        """Note that it has read."""
        super().resume_writing()
        self._ending.note_reading()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which no further request came."""
        self._ending.end()

    def shutdown(self) -> None:
        """Take no further request."""
        self._may_keep = False
        if self._shed is None:
            super().shutdown()
        if self.transport.is_closing():  # by uvicorn, which under TLS waits for a farewell that may never come
            self._ending.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        for cycle in self._unanswered:  # uvicorn thinks of the last alone
            _tell_that_it_ends(cycle)
        self._unset_keepalive_if_required()
        self._input_due.clear()
        self._ending.forget()
        if self._shed is not None:
            self._shed.left()
            self._shed = None

    def _miss_input(self) -> None:
        """The headers of a request did not come in time, or the rest of one that is shed."""
        if self._shed is not None:
            self._refusal = self._written(self._shed.answer(is_last=True))
            self._shed = None
            self._end_as_refused()
        elif self._unanswered:  # meanwhile nothing more is read
            self._input_due.set(self._limits.header_seconds)
        elif self._is_heard:
            self._refuse(RequestTimeout(f"the request's headers did not come within {self._limits.header_seconds:g} s"))
        else:
            self._ending.end()

    def _feed(self, data: bytes) -> None:
        """Let the parser read on; of a request that offers HTTP/2, another one its body."""
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._stage is not _Stage.OFFERED:
                raise
            self._stage = _Stage.BODY
            self.parser = parser_of_body(self.parser, self.headers, self)
            self.parser.feed_data(data[upgrade.args[0] :])

    def _count_header_bytes(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > head.MOST_BYTES:
            raise head.too_large()

    def _answer_shed(self, shed: ShedRequest) -> None:
        """Answer one that has come in whole."""
        self._shed = None
        self._has_shed = True
        self._input_due.clear()
        is_last = not self._may_keep or not self._shedding.keeps_connections()
        self._answers.write(self._written(shed.answer(is_last=is_last)))
        super().on_response_complete()  # nothing of uvicorn's has ended
        if is_last:
            self._close()

    def _refuse(self, error: RequestRejected) -> None:
        """Refuse what comes, after the answers to what came before it, and end the connection."""
        if self._ending.lingers or self.transport.is_closing():
            self._ending.end()
            return
        self._input_due.clear()
        self._refusal = self._refused(error)
        if self._stage is _Stage.BODY and not self.cycle.response_complete:
            broken = self._unanswered.pop()
            if self.pipeline:
                self.pipeline.popleft()
            else:
                _tell_that_it_ends(broken)
                if self.cycle.response_started:
                    self._ending.end()
                    return
        self._end_as_refused()

    def _end_as_refused(self) -> None:
        """End the connection with its refusal, if there is one and all that came before is answered."""
        if self._refusal is not None and not self._unanswered:
            self.transport.write(self._refusal)
            self._close()

    def _close(self) -> None:
        """End the connection; a little later where the client still sends."""
        if self._stage is _Stage.ANY and self._refusal is None:
            self._ending.end()
        elif not self._ending.lingers:
            self.flow.resume_reading()
            self._ending.linger()

    def _unread_of_front(self) -> Iterator[Unread]:
        return (cast("Connection", one)._answers.unread for one in self.connections)

    def _refused(self, error: TesseraError) -> bytes:
        return self._written(connection_refused(error, self._metrics, self._shedding.headers))

    def _written(self, response: Response) -> bytes:
        return written(response, self.server_state.default_headers)


def _tell_that_it_ends(cycle: RequestResponseCycle) -> None:
    """Let the application know that no more of a request will come."""
    cycle.disconnected = True
    cycle.message_event.set()
