"""The address that an order of Sectra's names: whether it may be asked, and asking it.

An order comes from the network and says itself where its slide lies, so nothing is sent before the address is found on
the administrator's list; and then only there: no redirect is followed, no proxy or stored credential of this machine is
used, certificates are verified. Every wait and every answer is bounded.

`sectra_client` from PyPI has a client of its own. It takes any host, follows redirects, has no timeouts, reads answers
of any length, puts slide ids into its errors and knows no tiles; so of that package only the schemas are used.
"""

import json
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import urllib3

from app.addresses import Refusals, origin_of
from app.errors import ArchiveDenied, ArchiveRefused, ArchiveUnavailable, CallbackRefused
from app.outbound import AnswerTooSlow, Exchanges
from app.software import software_version

API_VERSION = "1.6"
"""Of Sectra's image-analysis interface: the least whose published examples store lists of primitives, as here."""
CONNECTIONS = 8
"""To one call-back address at one time."""

_TIMEOUT_SECONDS = 10
"""The longest wait for a connection, and for each part of an answer. What is sent has the time of a whole answer."""
_EXCHANGE_SECONDS = 30
"""Of a whole answer with its headers, however steadily it drips."""
_RETRIES = urllib3.Retry(total=2, redirect=0, status=0, other=0, backoff_factor=0.2, respect_retry_after_header=False)
"""Where a connection fails. A status is never tried again: urllib3 would read that answer to its end, however long."""
_CHUNK_BYTES = 2**16
_VISIBLE = re.compile(r"[\x21-\x7e]+")
"""RFC 3986, section 2, and RFC 6750, section 2.1, allow nothing else, and nothing else may reach a header."""
_FORM = "the order's call-back URL must be https://host/path, without user, query or fragment"
_REFUSALS = Refusals(
    malformed="the order's call-back URL is malformed",
    not_http=_FORM,
    with_credentials=_FORM,
    not_ascii=_FORM,
    not_listed="the order's call-back host and port are not in TESSERA_SECTRA_HOSTS",
    in_the_clear="the order's call-back URL must begin with https://",
)


class VersionChanged(Exception):
    """What was to be replaced is not of that version any more (409)."""


def path_of(*segments: str) -> str:
    """Return a path of these segments, each escaped, whatever is in it.

    Raises:
        CallbackRefused: A segment is empty or means a folder, which would make it another path.
    """
    if any(segment in ("", ".", "..") for segment in segments):
        raise CallbackRefused("the order's slideId or applicationId is empty or dots; send the one that Sectra uses")
    return "".join(f"/{quote(segment, safe='')}" for segment in segments)


class Callback:
    """The call-back address of one order. Blocks; several threads may use it at once.

    Args:
        url: As the order names it.
        token: The order's bearer token.
        hosts: The administrator's list: `host`, for its scheme's usual port, or `host:port`.
        tls: Whom to trust.

    Raises:
        CallbackRefused: The address is not on the list, or the address or the token is malformed. Nothing was sent.
    """

    def __init__(self, url: str, token: str, hosts: Iterable[str], tls: ssl.SSLContext) -> None:
        if not _VISIBLE.fullmatch(url):
            raise CallbackRefused(_FORM)
        try:
            parts = origin_of(url, hosts, _REFUSALS)
        except ValueError as error:
            raise CallbackRefused(str(error)) from None
        self._path = parts.path.rstrip("/")
        if not _VISIBLE.fullmatch(token):
            raise CallbackRefused("the order's token is empty or has spaces or control characters")
        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=_TIMEOUT_SECONDS, read=_TIMEOUT_SECONDS),
            "retries": _RETRIES,
            "maxsize": CONNECTIONS,
            "headers": {
                "Authorization": f"Bearer {token}",
                "X-Sectra-ApiVersion": API_VERSION,
                "X-Sectra-SoftwareVersion": software_version(),
            },
        }
        self._exchanges = Exchanges(_EXCHANGE_SECONDS, _EXCHANGE_SECONDS)
        self._pool = self._exchanges.bound(
            urllib3.HTTPSConnectionPool(parts.hostname or "", parts.port, ssl_context=tls, **options)
            if parts.scheme == "https"
            else urllib3.HTTPConnectionPool(parts.hostname or "", parts.port, **options)
        )

    def get(self, what: str, path: str, max_bytes: int) -> bytes:
        """Return what lies at `path`, below the call-back address.

        Args:
            what: Names it in errors, as in "a tile".
            path: Begins with a slash; see `path_of`.
            max_bytes: The longest answer read.

        Raises:
            ArchiveUnavailable: It cannot be reached, is not trusted, or does not answer now.
            ArchiveDenied: It does not accept the token.
            ArchiveRefused: It answers something else than it should, or too much.
        """
        return self._ask("GET", what, path, max_bytes, None)

    def send(self, method: str, what: str, path: str, content: Mapping[str, Any], max_bytes: int) -> bytes:
        """Send JSON and return the answer; see `get`. POST creates and PUT replaces: 200 and 201 are taken.

        Raises:
            VersionChanged: The answer is 409.
        """
        return self._ask(method, what, path, max_bytes, json.dumps(content).encode())

    def close(self) -> None:
        """Close the connections: what other threads still ask for ends in a failure, what they store is finished."""
        self._exchanges.end()
        self._pool.close()

    def _ask(self, method: str, what: str, path: str, max_bytes: int, body: bytes | None) -> bytes:
        headers = {**self._pool.headers, **({"Content-Type": "application/json"} if body else {})}
        try:
            with self._open(method, path, body, headers) as answer:
                if body and answer.status == 409:
                    raise VersionChanged
                _check_status(answer.status, what, {200, 201} if body else {200})
                return _read(answer, what, max_bytes)
        except AnswerTooSlow:
            raise ArchiveUnavailable(
                f"Sectra's call-back takes more than {_EXCHANGE_SECONDS} s when asked for {what}"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            # Its message and its cause name the address, so neither goes on.
            raise ArchiveUnavailable(f"Sectra's call-back {_reason(error)} when asked for {what}") from None

    @contextmanager
    def _open(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        answer = self._pool.urlopen(
            method, self._path + path, body, headers, redirect=False, preload_content=False, decode_content=False
        )
        try:
            yield answer
        finally:
            answer.close()  # what was not read to its end is not read on
            answer.release_conn()


def _check_status(status: int, what: str, wanted: set[int]) -> None:
    if status in wanted:
        return
    if 300 <= status < 400:
        raise ArchiveRefused(f"Sectra's call-back redirects when asked for {what}, and redirects are not followed")
    if status in (401, 403):
        raise ArchiveDenied(f"Sectra's call-back does not accept the order's token for {what} ({status})")
    if status >= 500:
        raise ArchiveUnavailable(f"Sectra's call-back answers {status} when asked for {what}")
    raise ArchiveRefused(f"Sectra's call-back answers {status} when asked for {what}")


def _read(answer: urllib3.BaseHTTPResponse, what: str, max_bytes: int) -> bytes:
    body = bytearray()
    while chunk := answer.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise ArchiveRefused(f"Sectra's call-back sends more than {max_bytes} bytes when asked for {what}")
    return bytes(body)


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
    if isinstance(cause, urllib3.exceptions.SSLError):
        return "shows a certificate that this machine does not trust"
    # A refused or unknown host is a NewConnectionError, which urllib3 derives from its timeouts.
    if isinstance(cause, urllib3.exceptions.NewConnectionError):
        return "cannot be reached"
    if isinstance(cause, urllib3.exceptions.TimeoutError):
        return f"does not answer within {_TIMEOUT_SECONDS} s"
    return "breaks off"
