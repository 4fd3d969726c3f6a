"""Running the application on uvicorn, and the addresses it listens on."""

import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI

from app.errors import AddressUnavailable

MARGIN_SECONDS = 5

_log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn, but it does not raise a signal again that led to a clean stop.

    What was accepted by SIGINT or SIGTERM is answered first, which takes little longer than a request may take.

    Args:
        app: What to serve.
        request_timeout_seconds: How long a request may take.
        started: Called on the event loop when it takes connections.
    """

    def __init__(self, app: FastAPI, request_timeout_seconds: float, started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(request_timeout_seconds) + MARGIN_SECONDS,
        )
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM for as long as the block runs."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind_each(host: str, port: int, count: int) -> list[socket.socket]:
    """Take an address for several processes, a socket for each, among which the kernel spreads connections evenly.

    Linux alone does. Between processes that accept from one socket it does not: who wakes first takes all that wait.

    Raises:
        AddressUnavailable: As for `bind`.
    """
    with bind(host, port) as probe:  # SO_REUSEPORT would share the address with another service, and not say so
        port = probe.getsockname()[1]
    return [bind(host, port, shared=True) for _ in range(count)]


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Take an address, without listening on it yet; port 0 takes a free one.

    Args:
        host: A name or an address.
        port: The port.
        shared: Whether other sockets of this user may have it too, in the same way.

    Raises:
        AddressUnavailable: It is in use, not this machine's, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AddressUnavailable(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from error
    return listener


def say_where(listener: socket.socket) -> None:
    """Log the address that a listener has."""
    host, port = listener.getsockname()[:2]
    _log.info("running on http://%s:%d", f"[{host}]" if ":" in host else host, port)


def run(app: FastAPI, listener: socket.socket, request_timeout_seconds: float) -> None:
    """Serve `app` until SIGINT or SIGTERM, in this process."""
    Server(app, request_timeout_seconds, partial(say_where, listener)).run(sockets=[listener])
    _log.info("stopped")
