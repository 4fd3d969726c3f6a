"""Offers of HTTP/2 over plain HTTP, as Java's client and curl --http2 make them, which are passed over."""

from collections.abc import Sequence

from httptools import HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def offers_http2(parser: HttpRequestParser, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a request would be answered in HTTP/2 too, and in no other: section 7.8 of RFC 9110 leaves that to us."""
    if not parser.should_upgrade() or parser.get_method() == b"CONNECT":
        return False
    return {value.strip().lower() for name, value in headers if name == b"upgrade"} == {b"h2c"}


class _Body:
    """What a connection is told of a body by a parser of its own: what lies before it the connection knows."""

    def __init__(self, connection: HttpToolsProtocol) -> None:
        self.on_header = connection.on_header  # and trailers
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


def parser_of_body(
    parser: HttpRequestParser, headers: Sequence[tuple[bytes, bytes]], connection: HttpToolsProtocol
) -> HttpRequestParser:
    """Return a parser of what follows a head with Upgrade, of which `parser` reads no further."""
    kept = [name + b": " + value for name, value in headers if name in {b"content-length", b"transfer-encoding"}]
    first = parser.get_method() + b" / HTTP/" + parser.get_http_version().encode()
    rest = HttpRequestParser(_Body(connection))
    rest.feed_data(b"\r\n".join([first, *kept, b"", b""]))
    return rest
