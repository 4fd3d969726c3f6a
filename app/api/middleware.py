"""What every request gets: an id, a line in the log, its metrics, and an answer whatever happens."""

import asyncio
import logging
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import internal_error, respond
from app.api.running import Phase, running_of
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

UNMATCHED = "unmatched"
"""The route of what matches none."""
METHOD = "tessera.method"
"""Where a scope has the method that a request came with, if it is another."""
CLIENT_LEFT_STATUS = 499
"""What the log and metrics show for a client that left; nginx's number, since HTTP has none."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
PROBES = frozenset({"/health/live", "/health/ready", "/metrics"})
"""Asked every few seconds by whoever runs the service."""
_log = logging.getLogger(__name__)


class RequestScope:
    """ASGI middleware around the whole application.

    HEAD is answered as GET is (RFC 9110, section 9.3.2); the server leaves the content out. What is behind sees a GET.

    A caller's own X-Request-ID is kept when it is a UUID and replaced when it is anything else: an id ends up in logs,
    and free text there could be a patient's.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET", METHOD: method}
        current = request_id_of(Headers(scope=scope))
        token = request_id.set(current)
        start = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = current
                if running_of(scope["app"]).phase is not Phase.SERVING:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_LEFT_STATUS
        except asyncio.CancelledError:  # the server's time to end is over, and it says so to the client itself
            status = status or 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", None) or UNMATCHED
            note(self._metrics, method, route, status, time.perf_counter() - start)
            request_id.reset(token)


class InternalErrors:
    """ASGI middleware that answers 500 where whatever is behind it fails unforeseen, and logs why.

    It stands behind what adds headers to all answers: without its CORS headers no page of another origin could read it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = has_begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            raise
        except Exception:
            _log.exception("unforeseen error")
            if has_begun:
                raise  # the server can only cut it off
            await respond(internal_error())(scope, receive, send)


def note(metrics: Metrics, method: str, route: str, status: int, seconds: float) -> None:
    """Count a request that has ended, and log its line."""
    metrics.requests.labels(route, str(status)).inc()
    metrics.request_duration.labels(route).observe(seconds)
    fields = {
        "method": method if method in METHODS else "other",
        "route": route,
        "status": status,
        "ms": round(seconds * 1000, 1),
    }
    # Probes and scrapes come every few seconds and would drown the rest.
    level = logging.DEBUG if route in PROBES else logging.INFO
    _log.log(level, "request", extra=fields)


def request_id_of(headers: Headers) -> str:
    """Return the id of the request that has these headers: a UUID, its own or a new one."""
    text = headers.get("x-request-id")
    try:
        return str(uuid.UUID(text)) if text else str(uuid.uuid4())
    except ValueError:
        return str(uuid.uuid4())


def path_of(scope: Scope) -> str:
    """Return a request's path as routes have it: below where the service is mounted, and as lenient as the router."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.rstrip("\n")
