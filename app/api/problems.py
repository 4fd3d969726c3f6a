"""Errors as RFC 9457 problem documents, the only place that knows both the error tree and HTTP."""

import http
import logging
import re
from collections.abc import Mapping
from functools import cache

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.errors import (
    AdminClosed,
    ArchiveDenied,
    ArchiveRefused,
    ArchiveUnavailable,
    AreaOutside,
    AuditUnavailable,
    CallbackRefused,
    ComeBackLater,
    CredentialsMissing,
    CredentialsRejected,
    DeadlineExceeded,
    ExtraMissing,
    ImageTooLarge,
    InferenceFailed,
    IssuerUnavailable,
    KeysUnavailable,
    MetricsIncomplete,
    ModelNotReady,
    OrderCancelled,
    OutOfMemory,
    QueueFull,
    RateExceeded,
    ReloadRefused,
    ScopeMissing,
    SlideUnreadable,
    TesseraError,
    TooManyConnections,
    TooManyRegions,
    UnreadableImage,
    UnsupportedImage,
    no_memory_to,
)
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

MEDIA_TYPE = "application/problem+json"

PROBLEM = "tessera.problem"
"""Where a request's scope has the kind of its problem, once it has one."""

_TYPE_PREFIX = "urn:problem-type:tessera:"
_log = logging.getLogger(__name__)


class RequestRejected(TesseraError):
    """The request as a whole, whatever its images are."""


class InvalidRequest(RequestRejected):
    """The request itself cannot be understood."""


class UploadTooLarge(RequestRejected):
    """The body has more bytes or more files than allowed."""


class AnswerTooLarge(RequestRejected):
    """The pictures asked for have more bytes together than one answer holds."""


class UnsupportedMediaType(RequestRejected):
    """The body's declared media type is none that the route takes."""


class UnsupportedContentEncoding(RequestRejected):
    """The body is compressed as a whole, which images are already."""


class NotAcceptable(RequestRejected):
    """The client accepts none of the media types that the route gives."""


class RequestTimeout(RequestRejected):
    """The client was too slow to send its request."""


class HeadersTooLarge(RequestRejected):
    """The request line and headers have more bytes than allowed."""


_STATUSES: dict[type[TesseraError], int] = {
    InvalidRequest: 400,
    CredentialsMissing: 401,
    CredentialsRejected: 401,
    ScopeMissing: 403,
    AdminClosed: 403,
    CallbackRefused: 403,
    NotAcceptable: 406,
    RequestTimeout: 408,
    OrderCancelled: 409,
    ReloadRefused: 409,
    UploadTooLarge: 413,
    AnswerTooLarge: 413,
    ImageTooLarge: 413,
    UnsupportedMediaType: 415,
    UnsupportedContentEncoding: 415,
    UnsupportedImage: 415,
    UnreadableImage: 422,
    TooManyRegions: 422,
    SlideUnreadable: 422,
    AreaOutside: 422,
    QueueFull: 429,
    RateExceeded: 429,
    HeadersTooLarge: 431,
    InferenceFailed: 500,
    ExtraMissing: 501,
    ArchiveRefused: 502,
    ArchiveDenied: 502,
    ArchiveUnavailable: 502,
    ModelNotReady: 503,
    KeysUnavailable: 503,
    IssuerUnavailable: 503,
    AuditUnavailable: 503,
    TooManyConnections: 503,
    MetricsIncomplete: 503,
    OutOfMemory: 503,
    DeadlineExceeded: 504,
}


_HEADERS: dict[type[TesseraError], dict[str, str]] = {
    CredentialsMissing: {"WWW-Authenticate": 'Bearer realm="tessera"'},
    CredentialsRejected: {"WWW-Authenticate": 'Bearer realm="tessera", error="invalid_token"'},
    UnsupportedContentEncoding: {"Accept-Encoding": "identity"},
    NotAcceptable: {"Vary": "Accept"},
}
"""RFC 6750, section 3; RFC 9110, sections 15.5.16 and 12.5.5."""


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="The kind of problem, as a URI to compare, not to open.")
    title: str = Field(description="The kind of problem in words, the same for each occurrence.")
    status: int = Field(description="The HTTP status code.", ge=400, le=599)
    detail: str = Field(description="What is wrong in this occurrence, and what would be right.")
    request_id: str | None = Field(description="The request's id, as in the X-Request-ID header and the logs.")
    retry_after_seconds: int | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="Seconds after which a new try makes sense; absent where that is not known.",
        ge=1,
    )


def problem_of(error: TesseraError) -> Problem:
    """Return the problem document of an error."""
    title = kind_of(error).replace("-", " ").capitalize()
    wait_seconds = error.retry_after_seconds if isinstance(error, ComeBackLater) else None
    return _problem(_STATUSES[type(error)], title, str(error), wait_seconds)


def count_rejection(error: TesseraError, metrics: Metrics) -> None:
    """Count an error under its kind."""
    metrics.rejections.labels(kind_of(error)).inc()


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error of `app` with a problem document, and begin to count each kind of them."""
    for kind in _STATUSES:
        metrics.rejections.labels(_slug(kind.__name__))  # at 0 from the start: a rate sees the first one

    @app.exception_handler(TesseraError)
    async def known(request: Request, error: TesseraError) -> Response:
        return refuse(request.scope, error, metrics)

    @app.exception_handler(MemoryError)
    async def full(request: Request, error: MemoryError) -> Response:
        _log.warning("no memory", exc_info=error)
        return refuse(request.scope, OutOfMemory(no_memory_to("answer this request")), metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where, *names = (str(part) for part in first["loc"])
        return refuse(request.scope, InvalidRequest(f"{' '.join((where, *names))}: {first['msg']}"), metrics)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        title = http.HTTPStatus(error.status_code).phrase
        request.scope[PROBLEM] = _slug(title)
        detail = str(error.detail)
        if error.status_code == http.HTTPStatus.NOT_FOUND:
            detail = "no such path; /docs lists those that are, and /viewer is the page to drop patches on"
        elif error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = sorted(set((error.headers or {}).get("Allow", "").split(", ")) - {""})
            if "GET" in allowed:
                allowed = sorted({*allowed, "HEAD"})  # see `RequestScope`
            detail = f"not with this method; this path takes {', '.join(allowed) or 'another'}"
            return respond(_problem(error.status_code, title, detail), {"Allow": ", ".join(allowed)})
        return respond(_problem(error.status_code, title, detail), error.headers)


def refuse(scope: Scope, error: TesseraError, metrics: Metrics, more: Mapping[str, str] | None = None) -> Response:
    """Return the answer to a request that met `error`; note the problem's kind in its scope, and count it.

    Args:
        scope: The request's.
        error: What it met.
        metrics: Told of it.
        more: Members that the document has beside those of every other (RFC 9457, section 3.2).
    """
    count_rejection(error, metrics)
    scope[PROBLEM] = kind_of(error)
    return respond(problem_of(error), _headers_of(error), more)


def kind_of(error: TesseraError) -> str:
    """Return the kind of an error in one word, as metrics and the audit log have it."""
    return _slug(type(error).__name__)


def internal_error() -> Problem:
    """Return the problem document of an error that nobody foresaw."""
    return _problem(500, "Internal server error", "this is a fault of the service; its log has the cause")


def respond(
    problem: Problem, headers: Mapping[str, str] | None = None, more: Mapping[str, str] | None = None
) -> Response:
    """Return `problem` as a response; `more` are members that it has beside its own."""
    content = {**problem.model_dump(), **more} if more else problem
    return Response(to_json(content), problem.status, headers, MEDIA_TYPE)


def _headers_of(error: TesseraError) -> dict[str, str]:
    if isinstance(error, ComeBackLater):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, ScopeMissing):
        return {"WWW-Authenticate": f'Bearer realm="tessera", error="insufficient_scope", scope="{error.scope}"'}
    return _HEADERS.get(type(error), {})


def _problem(status: int, title: str, detail: str, retry_after_seconds: int | None = None) -> Problem:
    return Problem(
        type=_TYPE_PREFIX + _slug(title),
        title=title,
        status=status,
        detail=detail,
        request_id=request_id.get(),
        retry_after_seconds=retry_after_seconds,
    )


@cache
def _slug(words: str) -> str:
    """Return "NotASlide" or "Not a slide" as "not-a-slide"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|\s+", "-", words).lower()
