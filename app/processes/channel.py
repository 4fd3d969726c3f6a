"""The pipe between the supervisor and each of its children: what is said over it, and the child's end of it.

What the supervisor and the other processes send is trusted, as this process's own memory is: it is pickled.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from app.errors import MetricsIncomplete
from app.inference.remote import EngineFacts
from app.telemetry.merging import Snapshot, snapshot

Pipe: TypeAlias = Connection


@dataclass(frozen=True, slots=True)
class Ready:
    """From a child: it serves."""

    facts: EngineFacts | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """From a child: it cannot start, and why, in one line for the user."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskAll:
    """From a front: somebody asks for the metrics of all."""


@dataclass(frozen=True, slots=True)
class AskOne:
    """To a child: send your metrics, with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Own:
    """From a child: its metrics, and the number that asked for them."""

    number: int
    metrics: Snapshot


@dataclass(frozen=True, slots=True)
class Everyones:
    """To a front: the metrics of all; None where a process did not send its own in time."""

    metrics: Snapshot | None


class Channel:
    """A child's end.

    Args:
        pipe: This end.
        registry: The child's own metrics.
        orphaned: Called when the supervisor is gone.
    """

    def __init__(self, pipe: Pipe, registry: CollectorRegistry, orphaned: Callable[[], None]) -> None:
        self._pipe = pipe
        self._registry = registry
        self._orphaned = orphaned
        self._asking: list[asyncio.Future[Snapshot | None]] = []

    def open(self, ready: Ready) -> None:
        """Say that this process serves, and begin to listen."""
        self._pipe.send(ready)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)

    async def everyones_metrics(self) -> Snapshot:
        """Return the metrics of all processes together.

        Raises:
            MetricsIncomplete: One of them did not send its own in time.
        """
        answer: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()
        self._asking.append(answer)
        if len(self._asking) == 1:  # who asks meanwhile gets the same answer
            self._pipe.send(AskAll())
        found = await answer
        if found is None:
            raise MetricsIncomplete("a process of the service does not tell its metrics; ask again, or see the log")
        return found

    def _read(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._hand_out(None)
            self._orphaned()
            return
        if isinstance(message, AskOne):
            self._pipe.send(Own(message.number, snapshot(self._registry)))
        elif isinstance(message, Everyones):
            self._hand_out(message.metrics)

    def _hand_out(self, metrics: Snapshot | None) -> None:
        asking, self._asking = self._asking, []
        for answer in asking:
            if not answer.done():
                answer.set_result(metrics)
