"""What the system knows of the bytes that were written to a TCP connection. Linux tells; others are not asked."""

import socket
import struct
import sys

_ACKNOWLEDGED = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of struct tcp_info (include/uapi/linux/tcp.h)."""


def waits_for(connection: socket.socket) -> int | None:
    """Return how many bytes wait to be sent, or to be acknowledged (tcp(7), SIOCOUTQ); None where nobody tells."""
    if sys.platform != "linux":
        return None
    import fcntl  # noqa: PLC0415  not on Windows
    import termios  # noqa: PLC0415

    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    except OSError:  # it is closed
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
