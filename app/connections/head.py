"""What is wrong with a request line and headers, although the parser takes them. Source: RFC 9112."""

import logging
from collections.abc import Sequence

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpRequestParser,
    parse_url,
)

from app.api.problems import HeadersTooLarge, InvalidRequest, RequestRejected
from app.connections.offers import offers_http2

MOST_BYTES = 64 * 2**10
"""Of a request line and headers; also of what a chunked body may hold between two pieces of content."""

_log = logging.getLogger(__name__)


def check(parser: HttpRequestParser, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Make sure that a request can be handed on.

    Raises:
        RequestRejected: It is of another version, could be meant for two hosts, or is for another protocol.
        HttpParserInvalidURLError: Its target is none.
    """
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise InvalidRequest("only HTTP/1.1 and 1.0 are spoken here")
    if version == "1.1" and sum(name == b"host" for name, _ in headers) != 1:
        raise InvalidRequest("the request needs one Host header")  # section 3.2
    if not target.startswith(b"/") and parse_url(target).path is None:
        raise InvalidRequest("the request's target has no path")
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):  # the parser looks at the last one alone, and leaves the others in the body
        raise InvalidRequest("of the transfer codings only chunked is read here, and only once")  # section 6.1
    if parser.should_upgrade() and not (offers_http2(parser, headers) or _is_without_body(parser, headers)):
        raise InvalidRequest("another protocol than HTTP/1.1 is not spoken; send the body without Upgrade")


def too_large() -> RequestRejected:
    """Return what is wrong with one that has no end."""
    return HeadersTooLarge(f"the request's headers have more than {MOST_BYTES} bytes")


def reason_of(error: HttpParserError) -> RequestRejected:
    """Return what a request is refused for; what went wrong on this side the parser reports as the client's too."""
    cause = error.__context__
    if isinstance(cause, RequestRejected):
        return cause
    if isinstance(error, HttpParserCallbackError) and not isinstance(cause, HttpParserInvalidURLError | UnicodeError):
        _log.error("a request could not be taken", exc_info=cause)
    return InvalidRequest("the request is not HTTP/1.1 as RFC 9112 has it")


def _is_without_body(parser: HttpRequestParser, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether there is none; the parser skips that of a request for another protocol."""
    if parser.get_method() == b"CONNECT":
        return False
    return not any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
    )
