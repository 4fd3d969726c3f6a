"""Running the application on uvicorn, and the addresses it listens on."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import NoReturn, cast

import uvicorn
from fastapi import FastAPI

from app.access.gate import Certificate
from app.api import segment
from app.api.running import Phase, running_of
from app.connections.balancing import Balancer
from app.connections.limits import ConnectionLimits, most_of_one
from app.connections.listener import Listener
from app.connections.load_shedding import LoadShedding
from app.connections.protocol import Connection
from app.errors import AccessUnusable, AddressUnavailable, reason_of
from app.settings import Settings

MARGIN_SECONDS = 5
"""What an answer may take beyond its request's time; and for which what is under way is waited for after a fault."""
RETIRED_SECONDS = 6.0
"""For which one that retires keeps a connection on which nothing comes: longer than one that serves does."""
_KEEP_ALIVE_SECONDS = 5
_JUST_TAKEN_SECONDS = 1.0
"""In which a connection that was taken last is seen at the latest: before that, it begins."""

_LISTENS_BY_UVICORN = sys.platform == "win32"
"""Whose event loop does not say when a connection waits."""

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn, but it leaves politely: whoever was accepted is answered, and whoever comes is told to go elsewhere.

    SIGTERM: the service says that it is not ready, takes requests for the grace that a load balancer needs, then takes
    no connection more and ends once all are answered. SIGINT: the same without the grace.

    Args:
        app: What to serve.
        settings: How.
        started: Called on the event loop when it takes connections.
        fronts: How many processes share the connections.
        balancer: Hands connections to other processes; None where it is alone.
        signals: Those that it takes itself.

    Raises:
        AccessUnusable: There is a certificate, and TLS is not to be had on this system.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        started: Callable[[], None],
        fronts: int = 1,
        balancer: Balancer | None = None,
        signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM),
    ) -> None:
        running = running_of(app)
        certificate = running.access.certificate
        if certificate is not None and _LISTENS_BY_UVICORN:
            raise AccessUnusable("TLS is not spoken on Windows; let a proxy speak it, or serve on another system")
        most = most_of_one(settings.max_connections, fronts)
        limits = ConnectionLimits(most, settings.header_timeout, settings.request_timeout)
        connection = partial(Connection, limits, running.metrics, LoadShedding(running, segment.router.routes))
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", connection),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.request_timeout) + MARGIN_SECONDS,
        )
        super().__init__(config)
        self._limits = limits
        self._connection = connection
        self._tls = certificate.context() if certificate else None
        if certificate is not None and (expiry := certificate.expires_at_seconds()) is not None:
            running.metrics.show_certificate(expiry)
        self._balancer = balancer
        self._listeners: list[Listener] = []
        self._running = running
        self._started = started
        self._grace_seconds = settings.shutdown_grace
        self._signals = signals
        self._retired_at = self._leave_at = math.inf

    @property
    def ended_well(self) -> bool:
        """Whether all that it had was ended; else its model was stuck."""
        return not self._running.stalled

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets if _LISTENS_BY_UVICORN else [])
        if not _LISTENS_BY_UVICORN:
            self._listeners = [self._listening(listener) for listener in sockets or ()]
            self.servers = cast("list[asyncio.Server]", self._listeners)
        if self.started:
            self._started()

    def _listening(self, listener: socket.socket) -> Listener:
        state = self.server_state
        connection = partial(self._connection, config=self.config, server_state=state, app_state=self.lifespan.state)
        backlog = self.config.backlog
        return Listener(listener, connection, state.connections, self._limits, backlog, self._tls, self._balancer)

    async def on_tick(self, counter: int) -> bool:
        """Return whether it is time to end."""
        now = time.monotonic()
        is_due = await super().on_tick(counter) or now >= self._leave_at or not self.ended_well
        for listener in self._listeners:
            listener.publish()
        has_some = bool(self.server_state.connections) or any(listener.beginning for listener in self._listeners)
        return is_due or (now >= self._retired_at + _JUST_TAKEN_SECONDS and not has_some)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End once all are answered; where the model is stuck, wait for nobody slow, who could get no answer."""
        if not self.ended_well:
            self.config.timeout_graceful_shutdown = MARGIN_SECONDS
        await super().shutdown(sockets)

    def leave(self, number: int, within_seconds: int | None = None) -> None:
        """End, after a grace where a load balancer has to notice first; a second signal does not wait for that.

        Args:
            number: The signal.
            within_seconds: For how long those are waited for who were accepted; None for as long as they may take.
        """
        if within_seconds is not None:
            self.config.timeout_graceful_shutdown = within_seconds
        if number == signal.SIGTERM and self._running.phase is Phase.SERVING and self._grace_seconds > 0:
            self._leave_at = time.monotonic() + self._grace_seconds
        else:
            super().handle_exit(number, None)
        self._running.phase = Phase.LEAVING

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Leave, for a signal."""
        self.leave(sig)

    def retire(self) -> None:
        """End as soon as all connections have: another process takes new ones, from the same socket."""
        if self._running.phase is Phase.SERVING:
            self._running.phase = Phase.RETIRING
            self._retired_at = time.monotonic()
            self._leave_at = self._retired_at + RETIRED_SECONDS
            for server in self.servers:
                server.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on its signals for as long as the block runs."""
        before = {number: signal.signal(number, self.handle_exit) for number in self._signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind_each(host: str, port: int, count: int) -> list[socket.socket]:
    """Take an address for several processes, a socket for each, among which the kernel deals out connections.

    They listen at once, and who comes early waits: until then, another service of this user could have the address too.
    Linux alone does. Between processes that accept from one socket it does not: who wakes first takes all that wait.

    Raises:
        AddressUnavailable: As for `bind`.
    """
    with bind(host, port) as probe:  # SO_REUSEPORT would share the address with another service, and not say so
        port = probe.getsockname()[1]
    with ExitStack() as unless_listening:
        listeners = [unless_listening.enter_context(bind(host, port, shared=True)) for _ in range(count)]
        with _told_as_unavailable(host, port):
            for listener in listeners:
                listener.listen()
        unless_listening.pop_all()
    return listeners


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Take an address, without listening on it yet; port 0 takes a free one.

    Args:
        host: A name or an address.
        port: The port.
        shared: Whether other sockets of this user may have it too, in the same way.

    Raises:
        AddressUnavailable: It is in use, not this machine's, or not allowed.
    """
    with ExitStack() as unless_bound, _told_as_unavailable(host, port):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Of a name that has both, as localhost may: the one that clients try who know of no other.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listener = unless_bound.enter_context(socket.socket(family, kind, protocol))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        unless_bound.pop_all()
    return listener


@contextmanager
def _told_as_unavailable(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AddressUnavailable(
            f"cannot listen on {host}:{port}: {reason_of(error)}; choose another --host or --port"
        ) from error


def say_where(listener: socket.socket, certificate: Certificate | None) -> None:
    """Log the address that a listener has."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if certificate else "http"
    _log.info("running on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)


def run(app: FastAPI, listener: socket.socket, settings: Settings) -> None:
    """Serve `app` until SIGINT or SIGTERM, in this process; where its model gets stuck, end it."""
    server = Server(app, settings, partial(say_where, listener, running_of(app).access.certificate))
    server.run(sockets=[listener])
    if not server.ended_well:
        end_at_once()
    _log.info("stopped")


def end_at_once() -> NoReturn:
    """End the process, with status 1: threads that are in the runtime do not come back, and would fail in its ruins."""
    logging.shutdown()
    os._exit(1)
