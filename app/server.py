"""Running the application on uvicorn: one process that ends with 0 when it is asked to stop."""

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

_MARGIN_SECONDS = 5

_log = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Uvicorn, but a signal that led to a clean stop is not raised again afterwards."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM for as long as the block runs."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(app: FastAPI, host: str, port: int, request_timeout_seconds: float) -> None:
    """Serve `app` until SIGINT or SIGTERM; what was accepted by then is answered first.

    That takes no longer than a request may take, and a little.

    Raises:
        SystemExit: The address is in use or not allowed (status 1); uvicorn has logged which.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(request_timeout_seconds) + _MARGIN_SECONDS,
    )
    _Server(config).run()
    _log.info("stopped")
