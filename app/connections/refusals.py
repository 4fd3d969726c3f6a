"""Answers to requests that the application does not get to see."""

import logging
import uuid
from collections.abc import Iterable

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.api.problems import RequestRejected, TooManyConnections, count_rejection, problem_of, respond
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


def answer(error: RequestRejected, metrics: Metrics, headers: Iterable[tuple[bytes, bytes]]) -> Response:
    """Return the answer that refuses a request, and note that it was given.

    Args:
        error: Why.
        metrics: Told of it.
        headers: Of every answer.
    """
    token = request_id.set(str(uuid.uuid4()))
    try:
        problem = problem_of(error)
        _log.info("connection refused", extra={"status": problem.status, "kind": problem.type.rpartition(":")[2]})
    finally:
        request_id.reset(token)
    count_rejection(error, metrics)
    again = {"Retry-After": "1"} if isinstance(error, TooManyConnections) else {}
    response = respond(problem, {"Connection": "close", "X-Request-ID": problem.request_id or "", **again})
    response.raw_headers.extend(headers)
    return response


def written(response: Response, more_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return an answer's bytes."""
    lines = [b"%s: %s\r\n" % header for header in (*more_headers, *response.raw_headers)]
    return b"".join((STATUS_LINE[response.status_code], *lines, b"\r\n", bytes(response.body)))


def too_many_connections() -> RequestRejected:
    """Return what is wrong with a connection that is one too many."""
    return TooManyConnections("the service has as many connections as it may have; try again later")
