"""The request that a connection reads: how far it has come in, and what is known of it."""

from dataclasses import dataclass
from enum import Enum, auto

from app.connections import head
from app.connections.load_shedding import ShedRequest


class Stage(Enum):
    """How far a request has come in."""

    HEADERS = auto()
    """Its line and headers come."""
    OFFER = auto()
    """They have come, and offer HTTP/2: the parser skips the body, and another one will read it."""
    BODY = auto()
    """They have come; its body comes, if it has one."""
    WHOLE = auto()
    """All of it has come, and another may begin."""


@dataclass(slots=True)
class Incoming:
    """The request that comes in, or came last.

    Attributes:
        stage: How far it has come in.
        header_bytes: Of its target, headers and trailers so far.
        shed: Answers it, if it is shed and not answered yet.
        may_keep: Whether the connection may be kept after it.
    """

    stage: Stage = Stage.HEADERS
    header_bytes: int = 0
    shed: ShedRequest | None = None
    may_keep: bool = False

    def count(self, header_bytes: int) -> None:
        """Count a piece of its target, headers or trailers.

        Raises:
            RequestRejected: They are too large.
        """
        self.header_bytes += header_bytes
        if self.header_bytes > head.MOST_BYTES:
            raise head.too_large()
