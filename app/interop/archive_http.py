"""HTTP with an archive: to one address alone, verified, bounded, and with every failure under this project's names.

Nothing of the environment's takes part except credentials that the settings read and, for https, the proxy: what
passes a proxy by https stays encrypted and verified from end to end, which plain HTTP would not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import requests
from pydantic import SecretStr
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_environ_proxies
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import HTTPError as BodyError

from app.addresses import Refusals, is_loopback, origin_of
from app.errors import ArchiveDenied, ArchiveNotAllowed, ArchiveRefused, ArchiveUnavailable
from app.outbound import AnswerTooSlow, Exchanges

_CONNECTIONS = 32
_CONNECT_SECONDS = 5.0
"""For a connection and its handshake; what is sent over it has the time that the answer has."""
_MOST_BYTES = 2**29
"""The largest answer that is read: the header of an instance of 100,000 frames has about 2**28 bytes."""
_MOST_TIMEOUTS = 20
"""A whole answer may take this many times the timeout; its status and headers may take it once."""
_PAUSES_SECONDS = (0.0, 1.0, 2.0)
"""The waits before a read is repeated; whoever wants longer ones has to repeat it."""
_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_NOT_NOW = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_MOST_EPILOGUE_BYTES = 256
"""The most that may follow the mark that closes an answer's parts (RFC 2046, section 5.1.1); usually a line's end."""
_STORED = "application/dicom+json"
"""In which form to say what was stored (PS3.18, section 10.5)."""
_BREAKS_OFF = "the archive breaks off in the middle of an answer"
_UNAVAILABLE = "the archive cannot be reached, or does not answer within --timeout"
_TLS = {
    "certificate has expired": "the archive's certificate has expired; its administrator has to renew it",
    "certificate is not yet valid": "the archive's certificate is not valid yet; this machine's clock may be wrong",
    "mismatch": "the archive's certificate is for another host; --url must have the name that is in the certificate",
    "CERTIFICATE_VERIFY_FAILED": (
        "the archive's certificate is not trusted; --ca-bundle names a file of your authority's certificates"
    ),
    "": "the archive does not speak TLS at this address",
}
"""What to say of a failure whose text, which is OpenSSL's, has these words; the first that fits."""
_REFUSALS = Refusals(
    malformed="--url is not a URL",
    not_http="--url must be one of http or https, as in https://archive.example/dicom-web",
    with_credentials="--url holds credentials; set TESSERA_DICOMWEB_USERNAME and _PASSWORD, or _TOKEN",
    not_ascii="--url must have the host's name in ASCII, as in xn--bcher-kva.example",
    not_listed="{host} is not an allowed archive; name it by --allow-host or TESSERA_DICOMWEB_HOSTS",
    in_the_clear="plain HTTP shows patients' data to the network; use https, or say --allow-http",
)


@dataclass(frozen=True, slots=True)
class ArchiveAccess:
    """Which archives may be spoken to, and how.

    Attributes:
        hosts: Names, or addresses, that the archive's host may have.
        allow_http: Whether a host other than this machine may be spoken to in the clear.
        ca_bundle: File of the certificates to trust; certifi's when None.
        timeout_seconds: The longest wait for the archive to take a part of what is sent, for its answer to begin, and
            for each part of that.
        token: Bearer token (RFC 6750), or None.
        username: For HTTP Basic (RFC 7617), or None.
        password: For HTTP Basic, or None.
    """

    hosts: frozenset[str]
    allow_http: bool = False
    ca_bundle: Path | None = None
    timeout_seconds: float = 30.0
    token: SecretStr | None = field(default=None, repr=False)
    username: str | None = field(default=None, repr=False)
    password: SecretStr | None = field(default=None, repr=False)


def checked_address(url: str, access: ArchiveAccess) -> SplitResult:
    """Return the parts of an archive's URL.

    Raises:
        ArchiveNotAllowed: It is no URL of HTTP, holds credentials, names a host that is not allowed, or would go in
            the clear where that is not allowed.
    """
    try:
        return origin_of(url, access.hosts, _REFUSALS, any_port=True, allow_http=access.allow_http)
    except ValueError as error:
        raise ArchiveNotAllowed(str(error)) from error


class ArchiveSession(requests.Session):
    """A session that reaches one origin and no other, whatever URL it is given or redirected to.

    Several threads may use it. One may close it while others wait: reads then end soon, and what stores is waited for.
    It raises `ArchiveUnavailable` and `ArchiveDenied`, and `ArchiveRefused` where it is redirected elsewhere, or a POST
    is redirected at all; other statuses are left to its user.

    Args:
        url: Of the archive.
        access: What is allowed.

    Raises:
        ArchiveNotAllowed: See `checked_address`.
    """

    def __init__(self, url: str, access: ArchiveAccess) -> None:
        super().__init__()
        parts = checked_address(url, access)
        self.timeout = (min(_CONNECT_SECONDS, access.timeout_seconds), access.timeout_seconds)
        self.trust_env = False  # else ~/.netrc would give credentials, and REQUESTS_CA_BUNDLE decide whom to trust
        self.verify = str(access.ca_bundle) if access.ca_bundle else True
        if parts.scheme == "https" and not is_loopback(parts.hostname or ""):
            self.proxies = get_environ_proxies(url)
        if access.token is not None:
            self.auth = _Bearer(access.token)
        elif access.username is not None and access.password is not None:
            secret = access.password.get_secret_value()
            # Bytes: of text, requests takes Latin-1, where servers take UTF-8 (RFC 7617, section 2.1).
            self.auth = HTTPBasicAuth(access.username.encode(), secret.encode())
        self.adapters.clear()
        self.mount(f"{parts.scheme}://{parts.netloc}/", _ArchiveAdapter(access.timeout_seconds))

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Return the answer to a request, whose timeout is the session's unless another is given.

        Of the answer to what stores, a Content-Type of JSON or XML has lost its parameters, as `charset`, with which
        dicomweb_client does not know it.
        """
        options["timeout"] = options.get("timeout") or self.timeout
        if request.method == "GET":
            return super().send(request, **options)
        request.headers["Accept"] = _STORED
        response = super().send(request, **{**options, "allow_redirects": False})  # else it would become a GET
        if response.is_redirect:
            response.close()
            raise ArchiveRefused("the archive redirects what is to be stored; --url must be where it takes it itself")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type.endswith(("json", "xml")):
            response.headers["Content-Type"] = media_type
        return response

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return the adapter that reaches `url`, which is the archive's."""
        try:
            return super().get_adapter(url)
        except requests.exceptions.InvalidSchema as error:
            raise ArchiveRefused("the archive redirects to another address, where nothing is sent") from error


class _Bearer(AuthBase):
    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        return request


class _ArchiveAdapter(HTTPAdapter):
    """Repeats reads that fail, within seconds, so that a blip does not cost a slide.

    Urllib3 would do so too, but first reads what came with a status, were it endless.
    """

    def __init__(self, timeout_seconds: float) -> None:
        super().__init__(pool_maxsize=_CONNECTIONS)
        self._exchanges = Exchanges(timeout_seconds, _MOST_TIMEOUTS * timeout_seconds)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> HTTPConnectionPool:
        return self._exchanges.bound(super().get_connection_with_tls_context(*args, **options))

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        pauses_seconds = list(_PAUSES_SECONDS) if request.method == "GET" else []
        while True:
            cause: Exception | None = None
            try:
                response = super().send(request, *args, **options)
            except requests.exceptions.SSLError as error:
                raise ArchiveUnavailable(next(said for words, said in _TLS.items() if words in str(error))) from error
            except (requests.Timeout, AnswerTooSlow) as error:  # another would take as long
                raise ArchiveUnavailable(_UNAVAILABLE) from error
            except requests.RequestException as error:
                failure, cause = ArchiveUnavailable(_UNAVAILABLE), error
            else:
                status = response.status_code
                if status not in _NOT_NOW:
                    break
                response.close()
                failure = ArchiveUnavailable(f"the archive does not answer now ({status})")
            if not pauses_seconds or self._exchanges.over.wait(pauses_seconds.pop(0)):
                raise failure from cause
        if status in _DENIED:
            response.close()
            raise ArchiveDenied(f"the archive denies access ({status}); see TESSERA_DICOMWEB_TOKEN or _USERNAME")
        end = _end_of_parts(response.headers.get("Content-Type", "")) if status == HTTPStatus.OK else b""
        response.raw = _BoundedBody(response.raw, self._exchanges.answer_seconds, end)
        return response

    def close(self) -> None:
        self._exchanges.end()
        super().close()


def _end_of_parts(content_type: str) -> bytes:
    """Return what a body of several parts must end in; nothing for one that has none."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary() if header.get_content_maintype() == "multipart" else None
    return f"--{boundary}--".encode("latin-1") if boundary else b""


class _BoundedBody:
    """The body of an answer, which ends in an error where it is longer or slower than any should be, or breaks off.

    Of one without a stated length, as Orthanc's, the connection's end is all that says so: one of several parts must
    end in the mark that closes them, else a frame that was cut off would pass for a whole one.
    """

    def __init__(self, raw: Any, limit_seconds: float, end: bytes) -> None:
        self._raw = raw
        self._limit_seconds = limit_seconds
        self._end = end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, *args: Any, **options: Any) -> Iterator[bytes]:
        received, last = 0, b""
        try:
            for chunk in self._raw.stream(*args, **options):
                received += len(chunk)
                if received > _MOST_BYTES:
                    raise ArchiveUnavailable(f"the archive sends more than {_MOST_BYTES} bytes at once")
                if self._end:
                    last = (last + chunk)[-len(self._end) - _MOST_EPILOGUE_BYTES :]
                yield chunk
        except AnswerTooSlow as error:
            raise ArchiveUnavailable(f"the archive's answer takes more than {self._limit_seconds:g} s") from error
        except BodyError as error:
            raise ArchiveUnavailable(_BREAKS_OFF) from error
        if self._end not in last:
            raise ArchiveUnavailable(_BREAKS_OFF)
