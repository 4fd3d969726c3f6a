"""What a connection refuses by itself because the service is full: images, and all but probes where it is one too many.

A request that is shed never becomes one of the application's: the way through it would cost twice as much, and a
service that is asked for several times what it can do would spend on refusals what its answers need.
"""

import time
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access import may_send_images
from app.api.middleware import CLIENT_LEFT_STATUS, PROBES, UNMATCHED, note, request_id_of
from app.api.running import Phase, Running
from app.api.security_headers import headers_of_answers
from app.api.uploads import comes_soon
from app.connections.refusals import connection_refused, known_as, refused
from app.errors import QueueFull, TooManyConnections
from app.telemetry.metrics import Metrics


class LoadShedding:
    """Looks at requests whose headers have come.

    It takes no place: whoever passes it may still find none in `uploaded_images`. It sheds only requests that need
    nothing but a 429. A request without a key that allows images where one is needed, one that must be audited, one
    that needs CORS headers, and one whose body is long or of unstated length are handed on.

    Args:
        running: Where they go: whom it serves, and from when on its service.
        routes: Those that take images.

    Attributes:
        headers: Of every answer.
    """

    def __init__(self, running: Running, routes: Iterable[BaseRoute]) -> None:
        self._running = running
        self._access = running.access
        self._metrics = running.metrics
        self.headers = headers_of_answers(has_tls=self._access.certificate is not None)
        self._routes = {route.path.encode(): route.path for route in routes if isinstance(route, Route)}

    def shed(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> "ShedRequest | None":
        """Return what to answer a request with once it has come in whole; None for one that is to be handed on.

        Args:
            method: The request's, as it came.
            target: Likewise: a path, and perhaps a query. A path in another spelling than the route's is handed on.
            headers: Likewise, their names in lower case.
        """
        route = self._routes.get(target.partition(b"?")[0])
        service = self._running.service
        if route is None or method != b"POST" or service is None or not service.segmenter.ready:
            return None
        try:
            service.admission.expect_place()
        except QueueFull as error:
            stated = Headers(raw=list(headers))
            if self._is_plain(stated) and may_send_images(self._access, headers):
                return ShedRequest(error, route, request_id_of(stated), self._metrics, self.headers)
        return None

    def keeps_connections(self) -> bool:
        """Return whether a connection may be kept for another request."""
        return self._running.phase is Phase.SERVING

    async def serve_probes(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request on a connection that is one too many: `app` answers probes alone."""
        if scope["path"] in PROBES:
            await app(scope, receive, send)
            return
        response = connection_refused(TooManyConnections(), self._metrics, self.headers)
        route = self._routes.get(scope["path"].encode(), UNMATCHED)
        self._metrics.requests.labels(route, str(response.status_code)).inc()
        await response(scope, receive, send)

    def _is_plain(self, headers: Headers) -> bool:
        is_foreign = bool(self._access.origins) and "origin" in headers
        is_written_down = self._access.audit is not None
        return not is_foreign and not is_written_down and comes_soon(headers)


class ShedRequest:
    """A request that is shed.

    Args:
        error: Why.
        route: Where it wanted to go.
        current: Its id.
        metrics: Told what came of it.
        headers: Of every answer.
    """

    def __init__(
        self,
        error: QueueFull,
        route: str,
        current: str,
        metrics: Metrics,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> None:
        self._error = error
        self._route = route
        self._id = current
        self._metrics = metrics
        self._headers = headers
        self._start = time.perf_counter()

    def answer(self, *, is_last: bool) -> Response:
        """Return the answer, and note that it is given.

        Args:
            is_last: Whether the connection ends with it.
        """
        with known_as(self._id):
            response = refused(self._error, self._metrics, self._headers, is_last=is_last)
            self._note(response.status_code)
        return response

    def left(self) -> None:
        """Note that its client left."""
        with known_as(self._id):
            self._note(CLIENT_LEFT_STATUS)

    def _note(self, status: int) -> None:
        note(self._metrics, "POST", self._route, status, time.perf_counter() - self._start)
