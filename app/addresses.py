"""Which addresses may be spoken to: hosts on a list, and in the clear, unasked, this machine alone."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

HOST = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?"
"""What a host on a list looks like, with or without a port: a pattern."""
_PORTS = {"http": 80, "https": 443}


class Refusals(NamedTuple):
    """What to say of a URL to which nothing is sent, by what is wrong with it; `{host}` stands for its host."""

    malformed: str
    not_http: str
    with_credentials: str
    not_ascii: str
    not_listed: str
    in_the_clear: str


def origin_of(
    url: str, hosts: Iterable[str], refusals: Refusals, any_port: bool = False, allow_http: bool = False
) -> SplitResult:
    """Return the parts of a URL that may be spoken to.

    Args:
        url: May be anything.
        hosts: The list: hosts with or without a port, in any case of letters.
        refusals: What to say of others.
        any_port: Whether a host without a port stands for all of its ports, and not only for the scheme's own.
        allow_http: Whether to speak with other machines in the clear.

    Raises:
        ValueError: It may not be spoken to; one of `refusals` is its message.
    """
    try:
        parts = urlsplit(url)
        own_port = _PORTS.get(parts.scheme)
        port = own_port if parts.port is None else parts.port
    except ValueError:
        raise ValueError(refusals.malformed) from None
    host = (parts.hostname or "").lower()
    shown = f"[{host}]" if ":" in host else host
    listed = {entry.lower() for entry in hosts}
    if own_port is None or not host or parts.query or parts.fragment:
        raise ValueError(refusals.not_http)
    if "@" in parts.netloc:
        raise ValueError(refusals.with_credentials)
    if not host.isascii():
        raise ValueError(refusals.not_ascii)
    if f"{shown}:{port}" not in listed and not ({host, shown} & listed and (any_port or port == own_port)):
        raise ValueError(refusals.not_listed.format(host=host))
    if parts.scheme == "http" and not allow_http and not is_loopback(host):
        raise ValueError(refusals.in_the_clear)
    return parts


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own; no name but localhost is looked up or believed."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_private(address: str) -> bool:
    """Return whether nobody in between can read or change what comes from a URL: it is https, or this machine."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))
