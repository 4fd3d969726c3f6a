"""Logs: one JSON object a line, or text for a terminal. They never hold a file name, a URL query or a pixel."""

import io
import json
import logging
import os
import sys
import warnings
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import IO, Literal

from app.telemetry.unread import UnreadHandler

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being served, for every line logged on its behalf."""

LogFormat = Literal["json", "text"]

_encode = json.JSONEncoder(default=str).encode
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, what was passed as `extra` beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


class TextFormatter(logging.Formatter):
    """A record as one line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline, and a traceback below it where there is one."""
        when = _clock(int(record.created))
        details = "  ".join(f"{name}={value}" for name, value in extras(record).items())
        line = f"{when} {record.levelname.lower():7} {record.getMessage()}" + (f"  {details}" if details else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


@lru_cache(maxsize=1)
def _clock(second: int) -> str:
    return datetime.fromtimestamp(second).strftime("%H:%M:%S")


def extras(record: logging.LogRecord) -> dict[str, object]:
    """Return what was logged beside the message, and the request's id."""
    found = {name: value for name, value in vars(record).items() if name not in _PLAIN}
    current = request_id.get()
    return {**({"request_id": current} if current else {}), **found}


def configure(level: str, log_format: LogFormat) -> None:
    """Send every log of the process to standard error in one format.

    Nothing waits for whoever reads it; see `app.telemetry.unread`.

    Not what Pillow warns of: an upload could make it warn of each of its tags, thousands of times. Its warning of too
    many pixels never comes: `app.imaging.decode`, which has a limit of its own, turns it off.
    """
    handler = _handler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # What no line shows is not looked up; see "Optimization" in the standard library's logging HOWTO.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def tell(line: str) -> None:
    """Say a line on standard error as it is, after all that was logged, and as little waited for."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, UnreadHandler):
            handler.tell(line)
            return
    sys.stderr.write(f"{line}\n")


def _handler(stream: IO[str]) -> logging.StreamHandler[IO[str]]:
    try:
        stream.fileno()
    except (AttributeError, io.UnsupportedOperation):  # there is no standard error, or a test reads it
        return logging.StreamHandler(stream)
    return UnreadHandler(stream) if hasattr(os, "register_at_fork") else logging.StreamHandler(stream)
