"""Which hosts are this machine: the only ones with which patients' data may go in the clear unasked."""

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's own; no name but localhost is looked up or believed."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
