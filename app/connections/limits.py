"""What clients may do with connections."""

from dataclasses import dataclass

RESERVE = 16
"""Connections beyond those allowed, on which probes alone are answered: a crowd must not look like a dead service."""


def most_of_one(connections: int, processes: int) -> int:
    """Return how many of a service's connections each of its processes may have."""
    return -(-connections // processes)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What clients may do with connections.

    Attributes:
        most: Connections of this process at one time.
        header_seconds: From a connection, or from the first byte of a further request on it, to the end of its headers.
        unread_seconds: For which an answer may wait to be read.
    """

    most: int
    header_seconds: float
    unread_seconds: float
