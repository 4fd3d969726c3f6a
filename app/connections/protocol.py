"""A client's connection: HTTP/1.1 within limits, from its beginning to its end in bounded time. Source: RFC 9112.

Uvicorn's, on httptools, bounds neither headers nor the time that they take, queues as many requests as come, and ends
when its client likes: it keeps one whose body nobody reads, and waits for ever for a client that does not read.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
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
from app.connections.incoming import Incoming, Stage
from app.connections.limits import RESERVE, ConnectionLimits
from app.connections.load_shedding import LoadShedding, ShedRequest
from app.connections.offers import offers_http2, parser_of_body
from app.connections.refusals import connection_refused, written
from app.connections.unread import Unread
from app.errors import TesseraError, TooManyConnections
from app.telemetry.metrics import Metrics

_MOST_PIPELINED = 16
"""Requests that wait for the answer to the one before them. Hardly a client sends a second."""


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
        self._serves_probes_only = False
        self._client_has_spoken = False
        # Rings when headers are late, or the rest of a request that is shed.
        self._input_due = Alarm(self.loop, self._miss_input)
        # Before the first request it is as after one.
        self._incoming = Incoming(Stage.WHOLE)
        # What has come since headers, a piece of a body or a request ended: it is what a chunked body may have too much
        # of, between its pieces and after them.
        self._overhead_bytes = 0
        self._has_shed_in_this_read = False
        # What the application has to answer, in the order in which it came.
        self._unanswered: deque[RequestResponseCycle] = deque()
        # What is written last, once all is answered; nothing more is read then.
        self._refusal: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; one too many is refused."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._ending = Ending(self.loop, self.transport, self._limits.unread_seconds)
        unread = Unread(self.loop, self.transport, self._unread_of_front)
        self._answers = AnswersTransport(self.transport, self._close, unread)
        others = len(self.connections) - 1
        app = cast("ASGIApp", self.config.loaded_app)
        if others < self._limits.most:
            self.app = cast("Any", partial(in_one_piece, app, self._answers))
        else:
            self._serves_probes_only = True
            self.app = cast("Any", partial(self._shedding.serve_probes, app))
        if others < self._limits.most + RESERVE:
            self._input_due.set(self._limits.header_seconds)
        else:
            self._refusal = self._refusal_for(TooManyConnections())
            self.transport.write(self._refusal)
            self._ending.end()

    # What the client sends.

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        self._client_has_spoken = True
        self._has_shed_in_this_read = False
        self._overhead_bytes += len(data)
        try:
            self._feed(data)
        except HttpParserUpgrade:
            # It is not taken up: the request is answered as it is, and then the connection ends.
            return
        except HttpParserError as error:
            self._refuse(head.reason_of(error))
            return
        stage = self._incoming.stage
        if stage is Stage.WHOLE:
            # Empty lines may precede a request, but not for ever; while one is answered, its successor has time.
            if not (self._unanswered or self._has_shed_in_this_read or self.transport.is_closing()):
                self._input_due.set(self._limits.header_seconds)
        elif self._overhead_bytes > head.MOST_BYTES:
            self._refuse(head.too_large())
        elif stage is Stage.HEADERS:
            self._input_due.set(self._limits.header_seconds)

    def _feed(self, data: bytes) -> None:
        """Let the parser read on; of a request that offers HTTP/2, another one its body.

        What the parser's call-backs raise comes out of it, as the context of an HttpParserError.
        """
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            if self._incoming.stage is not Stage.OFFER:
                raise
            self._incoming.stage = Stage.BODY
            self.parser = parser_of_body(self.parser, self.headers, self)
            self.parser.feed_data(data[upgrade.args[0] :])

    # What the parser makes of it: its call-backs, in their order.

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._incoming = Incoming()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        self._incoming.count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, and leave a trailer: who reads headers has read them already."""
        incoming = self._incoming
        incoming.count(len(name) + len(value))
        if incoming.stage is Stage.HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request on, or shed it, unless it is refused."""
        if self._ending.lingers or self.transport.is_closing():
            raise InvalidRequest("the connection ends with the answer before")
        head.check(self.parser, self.url, self.headers)
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise InvalidRequest("too many requests at once on one connection; wait for their answers")
        incoming = self._incoming
        is_upgrade = self.parser.should_upgrade()
        is_plain = not (self._unanswered or self._serves_probes_only or self.flow.write_paused or is_upgrade)
        # Of the requests of one read only one is shed: the others take their turn among all connections.
        if is_plain and not self._has_shed_in_this_read:
            incoming.shed = self._shedding.shed(self.parser.get_method(), self.url, self.headers)
        if incoming.shed is None:
            # One that was shed in the same read has left the connection idle.
            self._unset_keepalive_if_required()
            super().on_headers_complete()
            self._unanswered.append(self.cycle)
            self.cycle.transport = self._answers
            # Until all of it has come: of a body that nobody reads the end may never come.
            self.cycle.keep_alive = False
        # From the stage `_refuse` tells which requests were handed on: it changes after all that may raise.
        keeps = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        incoming.may_keep = keeps and not self._serves_probes_only and not is_upgrade
        incoming.stage = Stage.OFFER if offers_http2(self.parser, self.headers) else Stage.BODY
        self._overhead_bytes = 0
        self._input_due.clear()
        if incoming.shed is not None:
            self._input_due.set(SOON_SECONDS)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._overhead_bytes = 0
        if self._incoming.shed is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        incoming = self._incoming
        if incoming.stage is Stage.OFFER:
            # To the parser, which skips its body; that is still to be read.
            return
        incoming.stage = Stage.WHOLE
        self._overhead_bytes = 0
        if incoming.shed is not None:
            self._answer_shed(incoming.shed)
            return
        super().on_message_complete()
        if self._ending.lingers:
            self._ending.end()
        elif not self.cycle.response_started:
            self.cycle.keep_alive = incoming.may_keep

    def _answer_shed(self, shed: ShedRequest) -> None:
        """Answer one of which all has come."""
        self._incoming.shed = None
        self._has_shed_in_this_read = True
        self._input_due.clear()
        is_last = not self._incoming.may_keep or not self._shedding.keeps_connections()
        self._answers.write(self._bytes_of(shed.answer(is_last=is_last)))
        # Uvicorn's, not the one below: of those that were handed on, none is answered with this.
        super().on_response_complete()
        if is_last:
            self._close()

    # What becomes of the answers.

    def on_response_complete(self) -> None:
        """Go on with the next request, if there is one and there shall be."""
        # A refusal does not go through the answers' transport, and so would overtake what that keeps.
        self._answers.send_kept()
        self._unanswered.popleft()
        if self._ending.lingers:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        self._end_if_refused()

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        self._ending.expect_reading()

    def resume_writing(self) -> None:
        """Note that it has read."""
        super().resume_writing()
        self._ending.note_reading()

    # How it ends: by a refusal, by a time limit, by the server, by the client.

    def _refuse(self, error: RequestRejected) -> None:
        """Refuse what comes, after the answers to what came before it, and end the connection."""
        if self._ending.lingers or self.transport.is_closing():
            self._ending.end()
            return
        self._input_due.clear()
        self._refusal = self._refusal_for(error)
        if self._incoming.stage is Stage.BODY and not self.cycle.response_complete:
            # It was handed on already, as the last: it waits for its turn, or the application has begun with it.
            broken = self._unanswered.pop()
            if self.pipeline:
                self.pipeline.popleft()
            else:
                _tell_that_it_ends(broken)
                if self.cycle.response_started:
                    self._ending.end()
                    return
        self._end_if_refused()

    def _end_if_refused(self) -> None:
        """End the connection with its refusal, if there is one and all that came before is answered."""
        if self._refusal is not None and not self._unanswered:
            self.transport.write(self._refusal)
            self._close()

    def _close(self) -> None:
        """End the connection; a little later where the client still sends."""
        if self._incoming.stage is Stage.WHOLE and self._refusal is None:
            self._ending.end()
        elif not self._ending.lingers:
            self.flow.resume_reading()
            self._ending.linger()

    def _miss_input(self) -> None:
        """The headers of a request did not come in time, or the rest of one that is shed."""
        shed = self._incoming.shed
        if shed is not None:
            self._refusal = self._bytes_of(shed.answer(is_last=True))
            self._incoming.shed = None
            self._end_if_refused()
        elif self._unanswered:
            # Meanwhile nothing more is read.
            self._input_due.set(self._limits.header_seconds)
        elif self._client_has_spoken:
            self._refuse(RequestTimeout(f"the request's headers did not come within {self._limits.header_seconds:g} s"))
        else:
            self._ending.end()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which no further request came."""
        self._ending.end()

    def shutdown(self) -> None:
        """Take no further request."""
        self._incoming.may_keep = False
        if self._incoming.shed is None:
            super().shutdown()
        # Uvicorn has closed it, but under TLS that waits for a farewell that may never come.
        if self.transport.is_closing():
            self._ending.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        # Uvicorn tells the last alone.
        for cycle in self._unanswered:
            _tell_that_it_ends(cycle)
        self._unset_keepalive_if_required()
        self._input_due.clear()
        self._ending.forget()
        if self._incoming.shed is not None:
            self._incoming.shed.left()
            self._incoming.shed = None

    def _unread_of_front(self) -> Iterator[Unread]:
        return (cast("Connection", one)._answers.unread for one in self.connections)

    def _refusal_for(self, error: TesseraError) -> bytes:
        return self._bytes_of(connection_refused(error, self._metrics, self._shedding.headers))

    def _bytes_of(self, response: Response) -> bytes:
        return written(response, self.server_state.default_headers)


def _tell_that_it_ends(cycle: RequestResponseCycle) -> None:
    """Let the application know that no more of a request will come."""
    cycle.disconnected = True
    cycle.message_event.set()
