"""HTTP with an archive: to one address alone, verified, bounded, and with every failure under this project's names.

Nothing of the environment's takes part except credentials that the settings read and, for https, the proxy: what
passes a proxy by https stays encrypted and verified from end to end, which plain HTTP would not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import requests
from pydantic import SecretStr
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError as BodyError
from urllib3.util import Retry

from app.errors import ArchiveDenied, ArchiveNotAllowed, ArchiveUnavailable

_CONNECTIONS = 32
_CONNECT_SECONDS = 5.0
_MOST_BYTES = 2**29
"""Of one answer: the header of an instance of 100,000 frames has about 2**28."""
_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_NOT_NOW = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_UNTRUSTED = "the archive's certificate is not trusted; --ca-bundle names a file of your authority's certificates"
_NO_TLS = "the archive does not speak TLS at this address"


@dataclass(frozen=True, slots=True)
class ArchiveAccess:
    """Which archives may be spoken to, and how.

    Attributes:
        hosts: Names, or addresses, that the archive's host may have.
        allow_http: Whether a host other than this machine may be spoken to in the clear.
        ca_bundle: File of the certificates to trust; certifi's when None.
        timeout_seconds: The longest wait for the archive to send something.
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
        parts = urlsplit(url)
        host, scheme, _ = (parts.hostname or "").lower(), parts.scheme, parts.port
    except ValueError as error:
        raise ArchiveNotAllowed("--url is not a URL") from error
    if scheme not in {"http", "https"} or not host or parts.query or parts.fragment:
        raise ArchiveNotAllowed("--url must be one of http or https, as in https://archive.example/dicom-web")
    if parts.username is not None or parts.password is not None:
        raise ArchiveNotAllowed("--url holds credentials; set TESSERA_DICOMWEB_USERNAME and _PASSWORD, or _TOKEN")
    if host not in {name.lower() for name in access.hosts}:
        raise ArchiveNotAllowed(f"{host} is not an allowed archive; name it by --allow-host or TESSERA_DICOMWEB_HOSTS")
    if scheme == "http" and not access.allow_http and not is_loopback(host):
        raise ArchiveNotAllowed("plain HTTP shows patients' data to the network; use https, or say --allow-http")
    return parts


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ArchiveSession(requests.Session):
    """A session that reaches one origin and no other, whatever URL it is given or redirected to.

    Several threads may use it. It raises `ArchiveUnavailable` and `ArchiveDenied`; other statuses are left to its user.

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
            self.auth = HTTPBasicAuth(access.username, access.password.get_secret_value())
        self.adapters.clear()
        self.mount(f"{parts.scheme}://{parts.netloc}/", _ArchiveAdapter())

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Return the answer to a request, whose timeout is the session's unless another is given."""
        return super().send(request, **{**options, "timeout": options.get("timeout") or self.timeout})

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return the adapter that reaches `url`, which is the archive's."""
        try:
            return super().get_adapter(url)
        except requests.exceptions.InvalidSchema as error:
            raise ArchiveUnavailable("the archive redirects to another address, where nothing is sent") from error


class _Bearer(AuthBase):
    def __init__(self, token: SecretStr) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        return request


class _ArchiveAdapter(HTTPAdapter):
    """Repeats reads that fail, within seconds, so that a blip does not cost a slide; longer waits are not for here."""

    def __init__(self) -> None:
        again = Retry(
            total=3,
            read=1,  # a connection kept open that the archive has closed; a timeout must not be waited for often
            other=0,
            backoff_factor=0.5,
            status_forcelist=_NOT_NOW,
            allowed_methods=("GET",),
            raise_on_status=False,
            respect_retry_after_header=False,
        )
        super().__init__(pool_maxsize=_CONNECTIONS, max_retries=again)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        try:
            response = super().send(request, *args, **options)
        except requests.exceptions.SSLError as error:
            raise ArchiveUnavailable(_UNTRUSTED if "CERTIFICATE_VERIFY_FAILED" in str(error) else _NO_TLS) from error
        except requests.RequestException as error:
            raise ArchiveUnavailable("the archive cannot be reached, or does not answer within --timeout") from error
        status = response.status_code
        if status in _DENIED or status in _NOT_NOW:
            response.close()
            if status in _DENIED:
                raise ArchiveDenied(f"the archive denies access ({status}); see TESSERA_DICOMWEB_TOKEN or _USERNAME")
            raise ArchiveUnavailable(f"the archive does not answer now ({status})")
        response.raw = _BoundedBody(response.raw)
        return response


class _BoundedBody:
    """The body of an answer, which ends in an error where it is longer than any should be or breaks off."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, *args: Any, **options: Any) -> Iterator[bytes]:
        received = 0
        try:
            for chunk in self._raw.stream(*args, **options):
                received += len(chunk)
                if received > _MOST_BYTES:
                    raise ArchiveUnavailable(f"the archive sends more than {_MOST_BYTES} bytes at once")
                yield chunk
        except BodyError as error:
            raise ArchiveUnavailable("the archive breaks off in the middle of an answer") from error
