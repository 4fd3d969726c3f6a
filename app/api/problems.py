"""Errors as RFC 9457 problem documents, the only place that knows both the error tree and HTTP."""

import http
import logging
import re
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app.errors import (
    ArchiveDenied,
    ArchiveRefused,
    ArchiveUnavailable,
    AreaOutside,
    CallbackRefused,
    DeadlineExceeded,
    ExtraMissing,
    ImageTooLarge,
    InferenceFailed,
    MetricsIncomplete,
    ModelNotReady,
    NotASlide,
    OrderCancelled,
    OutOfMemory,
    QueueFull,
    SeriesNotFound,
    SlideUnreadable,
    TesseraError,
    TooManyRegions,
    UnreadableImage,
    UnsupportedImage,
)
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

MEDIA_TYPE = "application/problem+json"

_TYPE_PREFIX = "urn:problem-type:tessera:"
_log = logging.getLogger(__name__)


class RequestRejected(TesseraError):
    """The request as a whole, before any image is looked at."""


class InvalidRequest(RequestRejected):
    """The request itself cannot be understood."""


class UploadTooLarge(RequestRejected):
    """The body has more bytes or more files than allowed."""


class UnsupportedMediaType(RequestRejected):
    """The body's declared media type is none that the route takes."""


class NotAcceptable(RequestRejected):
    """The client accepts none of the media types that the route gives."""


_KINDS: dict[type[TesseraError], tuple[int, str]] = {
    InvalidRequest: (400, "Invalid request"),
    CallbackRefused: (403, "Callback refused"),
    SeriesNotFound: (404, "Series not found"),
    NotAcceptable: (406, "Not acceptable"),
    OrderCancelled: (409, "Order cancelled"),
    UploadTooLarge: (413, "Upload too large"),
    ImageTooLarge: (413, "Image too large"),
    UnsupportedMediaType: (415, "Unsupported media type"),
    UnsupportedImage: (415, "Unsupported image"),
    UnreadableImage: (422, "Unreadable image"),
    TooManyRegions: (422, "Too many regions"),
    SlideUnreadable: (422, "Slide unreadable"),
    AreaOutside: (422, "Area outside"),
    NotASlide: (422, "Not a slide"),
    QueueFull: (429, "Queue full"),
    InferenceFailed: (500, "Inference failed"),
    ExtraMissing: (501, "Extra missing"),
    ArchiveRefused: (502, "Archive refused"),
    ArchiveDenied: (502, "Archive denied"),
    ArchiveUnavailable: (502, "Archive unavailable"),
    ModelNotReady: (503, "Model not ready"),
    MetricsIncomplete: (503, "Metrics incomplete"),
    OutOfMemory: (503, "Out of memory"),
    DeadlineExceeded: (504, "Deadline exceeded"),
}


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="What kind of problem it is: a URI to compare, not to open.")
    title: str = Field(description="The kind in words, the same for each occurrence.")
    status: int = Field(description="The HTTP status code.", ge=400, le=599)
    detail: str = Field(description="This occurrence, and what would be right.")
    request_id: str | None = Field(description="The request, as in the X-Request-ID header and the logs.")


def problem_of(error: TesseraError) -> Problem:
    """Return the problem document of an error."""
    status, title = _KINDS[type(error)]
    return _problem(status, title, str(error))


def count_rejection(error: TesseraError, metrics: Metrics) -> None:
    """Count an error under its kind, and log the cause of one that is the service's own."""
    metrics.rejections.labels(_slug(type(error).__name__)).inc()
    if isinstance(error, InferenceFailed):
        _log.error("inference failed", exc_info=error)


def install(app: FastAPI, metrics: Metrics) -> None:
    """Answer every error of `app` with a problem document."""

    @app.exception_handler(TesseraError)
    async def known(_request: Request, error: TesseraError) -> Response:
        count_rejection(error, metrics)
        headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, QueueFull) else None
        return respond(problem_of(error), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where, *names = (str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":  # its name is the client's own text
            detail = f"the {where} has a parameter that is not known; /docs lists those that are"
        else:
            detail = f"{' '.join((where, *names))}: {first['msg']}"
        metrics.rejections.labels(_slug(InvalidRequest.__name__)).inc()
        return respond(problem_of(InvalidRequest(detail)))

    @app.exception_handler(HTTPException)
    async def plain(_request: Request, error: HTTPException) -> Response:
        title = http.HTTPStatus(error.status_code).phrase
        return respond(_problem(error.status_code, title, str(error.detail)), error.headers)


def internal_error() -> Problem:
    """Return the problem document of an error that nobody foresaw."""
    return _problem(500, "Internal server error", "this is a fault of the service; its log has the cause")


def respond(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return `problem` as a response."""
    return JSONResponse(problem.model_dump(), problem.status, headers, MEDIA_TYPE)


def _problem(status: int, title: str, detail: str) -> Problem:
    kind = _TYPE_PREFIX + _slug(title)
    return Problem(type=kind, title=title, status=status, detail=detail, request_id=request_id.get())


def _slug(words: str) -> str:
    """Return "QueueFull" or "Queue full" as "queue-full"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|\s+", "-", words).lower()
