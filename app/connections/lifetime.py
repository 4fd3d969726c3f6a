"""How long a connection lasts: it begins where there is room, and ends in bounded time.

Uvicorn's ends when its client likes: it keeps one whose body nobody reads, and waits for ever for a client that does
not read its answer.
"""

import asyncio
from collections import deque
from enum import Enum, auto
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.door import Door
from app.api.middleware import PROBES, UNMATCHED
from app.api.problems import RequestRejected
from app.connections.ending import AnswersTransport, Ending
from app.connections.limits import RESERVE, ConnectionLimits
from app.connections.refusals import answer, too_many_connections, written
from app.telemetry.metrics import Metrics


class Stage(Enum):
    """What comes next of the request that is read."""

    ANY = auto()
    HEADERS = auto()
    BODY = auto()


class BoundedConnection(HttpToolsProtocol):
    """Begins and ends. What it reads in between is `GuardedConnection`'s.

    Args:
        door: Knows the routes of images, and the headers of every answer.
        limits: What the client may do.
        metrics: Told of what is refused.
        uvicorns: What uvicorn gives its own.
    """

    _ending: Ending
    _answers: AnswersTransport

    def __init__(self, door: Door, limits: ConnectionLimits, metrics: Metrics, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._door = door
        self._limits = limits
        self._metrics = metrics
        self._stage = Stage.ANY
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._may_keep = False
        self._is_extra = False
        self._refusal: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; one too many is refused."""
        super().connection_made(cast("asyncio.Transport", transport))
        self._ending = Ending(self.loop, self.transport, self._limits.unread_seconds)
        self._answers = AnswersTransport(self.transport, self._close)
        others = len(self.connections) - 1
        self._is_extra = others >= self._limits.most
        self.app = cast("Any", self._only_probes if self._is_extra else self._in_one_piece)
        if others >= self._limits.most + RESERVE:
            self._refusal = self._written(too_many_connections())
            self.transport.write(self._refusal)
            self._ending.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        for cycle in self._unanswered:  # uvicorn thinks of the last alone
            tell_that_it_ends(cycle)
        self._unset_keepalive_if_required()
        self._ending.forget()

    def pause_writing(self) -> None:
        """Give the client its time to read."""
        super().pause_writing()
        self._ending.expect_reading()

    def resume_writing(self) -> None:
        """Note that it has read."""
        super().resume_writing()
        self._ending.note_reading()

    def shutdown(self) -> None:
        """Take no further request."""
        self._may_keep = False
        super().shutdown()
        if self.transport.is_closing():  # by uvicorn, which under TLS waits for a farewell that may never come
            self._ending.end()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which no further request came."""
        self._ending.end()

    def on_response_complete(self) -> None:
        """Go on with the next request, if there is one and there shall be."""
        self._answers.send_kept()  # before a refusal, which goes past them
        self._unanswered.popleft()
        if self._ending.lingers:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._refusal is not None and not self._unanswered:
            self._give_refusal(self._refusal)

    async def _in_one_piece(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; the answer's head waits for the first piece of its body, to go out with it."""
        head: Message | None = None

        async def send_together(message: Message) -> None:
            nonlocal head
            if head is not None:
                beginning, head = head, None
                with self._answers.first_with_second():
                    await send(beginning)
                    await send(message)
            elif message["type"] == "http.response.start":
                head = message
            else:
                await send(message)

        try:
            await cast("ASGIApp", self.config.loaded_app)(scope, receive, send_together)
        finally:
            if head is not None:  # it has been counted and written down: so the client gets it, and then the end
                await send(head)

    async def _only_probes(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await cast("ASGIApp", self.config.loaded_app)(scope, receive, send)
        else:
            response = answer(too_many_connections(), self._metrics, self._door.headers)
            route = self._door.route_of(scope["path"].encode()) or UNMATCHED
            self._metrics.requests.labels(route, str(response.status_code)).inc()
            await response(scope, receive, send)

    def _give_refusal(self, refusal: bytes) -> None:
        self.transport.write(refusal)
        self._close()

    def _written(self, error: RequestRejected) -> bytes:
        return written(answer(error, self._metrics, self._door.headers), self.server_state.default_headers)

    def _close(self) -> None:
        """End the connection; a little later where the client still sends."""
        if self._stage is Stage.ANY and self._refusal is None:
            self._ending.end()
        elif not self._ending.lingers:
            self.flow.resume_reading()
            self._ending.linger()


def tell_that_it_ends(cycle: RequestResponseCycle) -> None:
    """Let the application know that no more of a request will come."""
    cycle.disconnected = True
    cycle.message_event.set()
