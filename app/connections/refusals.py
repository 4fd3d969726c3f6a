"""Answers to requests that the application does not get to see."""

import logging
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.api.problems import kind_of, refuse
from app.errors import TesseraError
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


@contextmanager
def known_as(current: str) -> Iterator[None]:
    """Have a request's id in what the block answers and logs."""
    token = request_id.set(current)
    try:
        yield
    finally:
        request_id.reset(token)


def refused(
    error: TesseraError, metrics: Metrics, headers: Iterable[tuple[bytes, bytes]], *, is_last: bool
) -> Response:
    """Return the answer that refuses a request, and count it. The request's id is set.

    Args:
        error: Why.
        metrics: Told of it.
        headers: Of every answer.
        is_last: Whether the connection ends with it.
    """
    response = refuse({"type": "http"}, error, metrics)
    response.headers["X-Request-ID"] = request_id.get() or ""
    if is_last:
        response.headers["Connection"] = "close"
    response.raw_headers.extend(headers)
    return response


def connection_refused(error: TesseraError, metrics: Metrics, headers: Iterable[tuple[bytes, bytes]]) -> Response:
    """Return the answer with which a connection ends that may not go on; the arguments are those of `refused`."""
    with known_as(str(uuid.uuid4())):
        response = refused(error, metrics, headers, is_last=True)
        _log.info("connection refused", extra={"status": response.status_code, "kind": kind_of(error)})
    return response


def written(response: Response, more_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return an answer's bytes."""
    lines = [b"%s: %s\r\n" % header for header in (*more_headers, *response.raw_headers)]
    return b"".join((STATUS_LINE[response.status_code], *lines, b"\r\n", bytes(response.body)))
