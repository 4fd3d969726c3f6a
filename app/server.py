"""Running the application on uvicorn: one process that ends with 0 when it is asked to stop."""

import logging
import math
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.errors import AddressUnavailable

_MARGIN_SECONDS = 5

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Uvicorn, but it says where it can be reached, and does not raise a signal again that led to a clean stop."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say so."""
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            _log.info("running on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM for as long as the block runs."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """Take an address, without listening on it yet; port 0 takes a free one.

    Raises:
        AddressUnavailable: It is in use, not this machine's, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AddressUnavailable(
            f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        ) from error
    return listener


def run(app: FastAPI, listener: socket.socket, request_timeout_seconds: float) -> None:
    """Serve `app` until SIGINT or SIGTERM; what was accepted by then is answered first.

    That takes no longer than a request may take, and a little.
    """
    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(request_timeout_seconds) + _MARGIN_SECONDS,
    )
    _Server(config).run(sockets=[listener])
    _log.info("stopped")
