"""The pipe between the supervisor and each of its children: what is said over it, and the child's end of it.

What the supervisor and the other processes send is trusted, as this process's own memory is: it is pickled.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias, TypeVar

from prometheus_client import CollectorRegistry

from app.errors import MetricsIncomplete, ReloadRefused
from app.inference.remote import EngineFacts
from app.pathology.manifest import ModelManifest
from app.telemetry.merging import Snapshot, snapshot

Pipe: TypeAlias = Connection
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ready:
    """From a child: it serves, and with what."""

    facts: EngineFacts


@dataclass(frozen=True, slots=True)
class Refused:
    """From a child: it cannot start, and why, in one line for the user."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """From a child: its model does not answer any more."""


@dataclass(frozen=True, slots=True)
class Ping:
    """To a child: say that you are there."""


@dataclass(frozen=True, slots=True)
class Pong:
    """From a child: it is."""


@dataclass(frozen=True, slots=True)
class Retire:
    """To a child: another has taken its place; answer what you have, and end."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """From a child, the last that it says: what it has counted."""

    metrics: Snapshot


@dataclass(frozen=True, slots=True)
class AskReload:
    """From a front: somebody asks to serve the bundle as it lies there now."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """To a front that asked: what is served now, or why it is still what it was."""

    outcome: ModelManifest | ReloadRefused


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
    """A child's end. Used on its event loop, but for `farewell`.

    Args:
        pipe: This end.
        registry: The child's own metrics.
    """

    def __init__(self, pipe: Pipe, registry: CollectorRegistry) -> None:
        self._pipe = pipe
        self._registry = registry
        self._metrics_asked: list[asyncio.Future[Snapshot | None]] = []
        self._reload_asked: list[asyncio.Future[ModelManifest | ReloadRefused]] = []

    def open(self, ready: Ready, retire: Callable[[], None], orphaned: Callable[[], None]) -> None:
        """Say that this process serves, and begin to listen.

        Args:
            ready: What it says.
            retire: Called when another has taken its place.
            orphaned: Called when the supervisor is gone.
        """
        self._retire, self._orphaned = retire, orphaned
        self._pipe.send(ready)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)
        os.set_blocking(self._pipe.fileno(), True)  # libuv made it otherwise: a long message would be read in part

    def stuck(self) -> None:
        """Say that the model does not answer any more."""
        self._pipe.send(Stuck())

    def farewell(self) -> None:
        """Leave behind what this process has counted."""
        try:
            self._pipe.send(Farewell(snapshot(self._registry)))
        except (BrokenPipeError, ConnectionResetError):
            return  # nobody is left to count

    async def everyones_metrics(self) -> Snapshot:
        """Return the metrics of all processes together.

        Raises:
            MetricsIncomplete: One of them did not send its own in time.
        """
        answer: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()
        self._metrics_asked.append(answer)
        if len(self._metrics_asked) == 1:  # who asks meanwhile gets the same answer
            self._pipe.send(AskAll())
        found = await answer
        if found is None:
            raise MetricsIncomplete("a process of the service does not tell its metrics; ask again, or see the log")
        return found

    async def reload(self) -> ModelManifest:
        """Have all processes serve the bundle as it lies there now, and return what that is.

        Raises:
            ReloadRefused: It cannot be served, and what was served before still is.
        """
        answer: asyncio.Future[ModelManifest | ReloadRefused] = asyncio.get_running_loop().create_future()
        self._reload_asked.append(answer)
        if len(self._reload_asked) == 1:
            self._pipe.send(AskReload())
        outcome = await answer
        if isinstance(outcome, ReloadRefused):
            raise outcome
        return outcome

    def _read(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._metrics_asked = _hand_out(self._metrics_asked, None)
            self._reload_asked = _hand_out(self._reload_asked, ReloadRefused("the service is stopping"))
            self._orphaned()
            return
        match message:
            case Ping():
                self._pipe.send(Pong())
            case AskOne(number):
                self._pipe.send(Own(number, snapshot(self._registry)))
            case Everyones(metrics):
                self._metrics_asked = _hand_out(self._metrics_asked, metrics)
            case Reloaded(outcome):
                self._reload_asked = _hand_out(self._reload_asked, outcome)
            case Retire():
                self._retire()


def _hand_out(asking: list[asyncio.Future[_T]], answer: _T) -> list[asyncio.Future[_T]]:
    """Give all of them the answer, and return those that are left: none."""
    for one in asking:
        if not one.done():
            one.set_result(answer)
    return []
