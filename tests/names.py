"""A name server (RFC 1035, over UDP) that knows what a test tells it."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseRequestHandler, UDPServer

_HEADER = struct.Struct("!6H")
_FOUND, _NO_SUCH_NAME = 0x8180, 0x8183
_LIVES_SECONDS = 3600
_POLL_SECONDS = 0.01


@contextmanager
def name_server(known: dict[str, str]) -> Iterator[str]:
    """Answer with the IPv4 addresses of `known`, to be kept for an hour; give the host and port to ask.

    `known` may change meanwhile; a name that is not in it does not exist.
    """

    class Asked(BaseRequestHandler):
        def handle(self) -> None:
            data, answering = self.request
            name, end = _name(data)
            address = known.get(name)
            header = _HEADER.pack(
                _HEADER.unpack_from(data)[0], _FOUND if address else _NO_SUCH_NAME, 1, int(bool(address)), 0, 0
            )
            answer = header + data[_HEADER.size : end]
            if address:
                # The name is at the question's place, and the record an address (A) of the Internet's (IN).
                answer += struct.pack("!HHHIH", 0xC000 | _HEADER.size, 1, 1, _LIVES_SECONDS, 4) + socket.inet_aton(
                    address
                )
            answering.sendto(answer, self.client_address)

    with UDPServer(("127.0.0.1", 0), Asked) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _name(query: bytes) -> tuple[str, int]:
    """Return the name that is asked for, and where its question ends."""
    labels, at = [], _HEADER.size
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), at + 1 + 4  # type and class
