"""What the system knows of the bytes that were written to a TCP connection. Linux tells; others are not asked."""

import asyncio
import socket
import struct
import sys

_ACKNOWLEDGED = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of struct tcp_info (include/uapi/linux/tcp.h)."""


def below_tls(transport: asyncio.BaseTransport) -> socket.socket | None:
    """Return the socket that carries a TLS connection; None for one without TLS, whose transport tells all itself."""
    return transport.get_extra_info("socket") if transport.get_extra_info("ssl_object") else None


def taken_from(connection: socket.socket) -> int | None:
    """Return how many bytes the system has taken from this process, of a connection whose other side has received some.

    None where nobody tells, and once it is closed.
    """
    received = received_by(connection)
    waiting = waits_for(connection)
    return received + waiting if received and waiting is not None else None


def waits_for(connection: socket.socket) -> int | None:
    """Return how many bytes wait to be sent, or to be acknowledged (tcp(7), SIOCOUTQ); None where nobody tells."""
    if sys.platform != "linux":
        return None
    import fcntl  # noqa: PLC0415  not on Windows
    import termios  # noqa: PLC0415

    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except (OSError, ValueError):  # it is closed; Python's own says so by a number below 0
        return 0
    return int(struct.unpack("i", answer)[0])


def received_by(connection: socket.socket) -> int:
    """Return how many bytes the other side has acknowledged; 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    try:
        known = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKNOWLEDGED.size)
    except OSError:  # it is closed
        return 0
    return int(_ACKNOWLEDGED.unpack(known)[0]) if len(known) == _ACKNOWLEDGED.size else 0
