"""A running service under attack: what it is asked, what it answers, and what becomes of its processes."""

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from benchmarks.serving.processes import memory, tree
from tests.conftest import RunningService

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer as it came over a socket."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """Return its problem document; that it is one is checked."""
        assert self.headers["content-type"] == PROBLEM, (self.status, self.headers)
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["detail"]
        assert document["request_id"] == self.headers["x-request-id"]
        return document


def connect(service: RunningService, seconds: float = 30) -> socket.socket:
    where = urlsplit(service.url)
    return socket.create_connection((where.hostname, where.port), seconds)


def exchange(service: RunningService, *pieces: bytes, then_leave: bool = False) -> list[Answer]:
    """Send `pieces` over a connection of their own, and return the answers that come until the service closes it.

    What it refuses to read any more is left out; who waits for 30 s gets a TimeoutError.
    """
    with connect(service) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        return [] if then_leave else answers(everything_from(connection))


def everything_from(connection: socket.socket) -> bytes:
    """Return all that comes; the service, which says that it closes the connection, need not wait until it is read."""
    text = b""
    with suppress(ConnectionError):
        while part := connection.recv(2**16):
            text += part
            if b"connection: close\r\n" in text.lower():
                with suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_WR)
    return text


def answers(text: bytes) -> list[Answer]:
    """Take apart answers of a stated length, the last of which may be followed by nothing."""
    found = []
    while text:
        head, _, text = text.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        status = int(status_line.split(" ")[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        assert len(text) >= length, "the answer is cut off"
        found.append(Answer(status, headers, text[:length]))
        text = text[length:]
    return found


def processes_of(pid: int) -> list[int]:
    """Return a process and all below it."""
    return sorted([pid, *tree(pid)])


def own_bytes(pids: list[int]) -> int:
    """Return the memory that processes have, what they share counted once."""
    return int(memory(pids).pss_mb * 2**20)
