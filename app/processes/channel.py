"""The pipe between the supervisor and each of its children: what is said over it, and the child's end of it.

What the supervisor and the other processes send is trusted, as this process's own memory is: it is pickled.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeAlias, TypeVar

from prometheus_client import CollectorRegistry

from app.errors import STOPPING, MetricsIncomplete, ReloadRefused
from app.inference.remote import EngineFacts
from app.pathology.manifest import ModelManifest
from app.telemetry.merging import Snapshot, snapshot

Pipe: TypeAlias = Connection
_ALL_METRICS_SECONDS = 6.0
"""How long a front waits for the metrics of all. The supervisor gives up after five seconds, unless it hangs itself."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ready:
    """From a child: it serves, and with what."""

    facts: EngineFacts


@dataclass(frozen=True, slots=True)
class Tried:
    """From a child that tried the model: the contract of what it loaded, which may be a variant's."""

    manifest: ModelManifest


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
class Stop:
    """To a front: end as this signal, which the supervisor got, asks to.

    Attributes:
        number: The signal's.
        within_seconds: For how long it may answer what it has; None for as long as a request may take.
    """

    number: int
    within_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Farewell:
    """From a child, the last that it says: what it has counted."""

    metrics: Snapshot


@dataclass(frozen=True, slots=True)
class ReloadRequest:
    """From a front: somebody asks to serve the bundle as it lies there now."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """To a front that asked: what is served now, or why it is still what it was."""

    outcome: ModelManifest | ReloadRefused


@dataclass(frozen=True, slots=True)
class AllMetricsRequest:
    """From a front: somebody asks for the metrics of all."""


@dataclass(frozen=True, slots=True)
class MetricsRequest:
    """To a child: send your metrics, with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class ChildMetrics:
    """From a child: its metrics, and the number that asked for them."""

    number: int
    metrics: Snapshot


@dataclass(frozen=True, slots=True)
class AllMetrics:
    """To a front: the metrics of all; None where a process did not send its own in time."""

    metrics: Snapshot | None


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What a front does as it is told to, or left alone.

    Attributes:
        retire: Called when another has taken its place.
        stop: Called with the signal that asks the service to end, and for how long what it has may be answered.
        orphaned: Called when the supervisor is gone.
    """

    retire: Callable[[], None]
    stop: Callable[[int, int | None], None]
    orphaned: Callable[[], None]


class Channel:
    """A child's end. Used on its event loop, but for `farewell`.

    Args:
        pipe: This end.
        registry: The child's own metrics.
    """

    def __init__(self, pipe: Pipe, registry: CollectorRegistry) -> None:
        self._pipe = pipe
        self._registry = registry
        self._is_orphan = False
        self._metrics_asked: list[asyncio.Future[Snapshot | None]] = []
        self._reload_asked: list[asyncio.Future[ModelManifest | ReloadRefused]] = []

    def open(self, ready: Ready, lifecycle: Lifecycle | None = None) -> None:
        """Say that this process serves, and begin to listen.

        Args:
            ready: What it says.
            lifecycle: Who does what the supervisor asks; None for a process that it does not tell how to end.
        """
        self._lifecycle = lifecycle
        self._say(ready)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)
        os.set_blocking(self._pipe.fileno(), True)  # libuv made it otherwise: a long message would be read in part

    def stuck(self) -> None:
        """Say that the model does not answer any more."""
        self._say(Stuck())

    def farewell(self) -> None:
        """Leave behind what this process has counted."""
        self._say(Farewell(snapshot(self._registry)))

    async def everyones_metrics(self) -> Snapshot:
        """Return the metrics of all processes together.

        Raises:
            MetricsIncomplete: One of them did not send its own in time.
        """
        if self._is_orphan:
            raise MetricsIncomplete(STOPPING)
        answer: asyncio.Future[Snapshot | None] = asyncio.get_running_loop().create_future()
        self._metrics_asked.append(answer)
        if len(self._metrics_asked) == 1:  # who asks meanwhile gets the same answer
            self._say(AllMetricsRequest())
        try:
            # One that is given up still is in the list: the supervisor is not asked again before it has answered.
            found = await asyncio.wait_for(answer, _ALL_METRICS_SECONDS)
        except TimeoutError:
            found = None
        if found is None:
            raise MetricsIncomplete("a process of the service does not tell its metrics; ask again, or see the log")
        return found

    async def reload(self) -> ModelManifest:
        """Have all processes serve the bundle as it lies there now, and return what that is.

        Raises:
            ReloadRefused: It cannot be served, and what was served before still is.
        """
        if self._is_orphan:
            raise ReloadRefused(STOPPING)
        answer: asyncio.Future[ModelManifest | ReloadRefused] = asyncio.get_running_loop().create_future()
        self._reload_asked.append(answer)  # each asks for itself: the bundle may be another one by now
        self._say(ReloadRequest())
        outcome = await answer
        if isinstance(outcome, ReloadRefused):
            raise outcome
        return outcome

    def _say(self, message: object) -> None:
        """Tell the supervisor; where that is gone, nobody: `_read` learns of it."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send(message)

    def _read(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):  # the latter where it was killed in the middle of a word
            self._end()
            return
        match message:
            case Ping():
                self._say(Pong())
            case MetricsRequest(number):
                self._say(ChildMetrics(number, snapshot(self._registry)))
            case AllMetrics(metrics):
                asking, self._metrics_asked = self._metrics_asked, []
                _hand_out(asking, metrics)
            case Reloaded(outcome):
                _hand_out([self._reload_asked.pop(0)], outcome)  # they are answered in the order in which they asked
            case Retire() if self._lifecycle is not None:
                self._lifecycle.retire()
            case Stop(number, within_seconds) if self._lifecycle is not None:
                self._lifecycle.stop(number, within_seconds)

    def _end(self) -> None:
        """The supervisor is gone."""
        self._is_orphan = True
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        _hand_out(self._metrics_asked, None)
        _hand_out(self._reload_asked, ReloadRefused(STOPPING))
        if self._lifecycle is not None:
            self._lifecycle.orphaned()


def _hand_out(asking: list[asyncio.Future[_T]], answer: _T) -> None:
    for one in asking:
        if not one.done():  # else its client has left
            one.set_result(answer)
