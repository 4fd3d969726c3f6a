"""The supervisor's children as it sees them: what they say, and the metrics that it gathers from all of them."""

import logging
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkProcess

from app.processes.channel import AskOne, Everyones, Own, Pipe, Ready
from app.telemetry.merging import merged

_GATHERING_SECONDS = 5.0
"""A process that is alive answers within milliseconds; Prometheus waits for ten seconds."""

_log = logging.getLogger(__name__)


@dataclass
class Child:
    """A process and the supervisor's end of its pipe.

    Attributes:
        ready: What it said when it was.
        silent: Whether it will say nothing more.
        ended: Whether it has.
    """

    name: str
    process: ForkProcess
    pipe: Pipe
    ready: Ready | None = None
    silent: bool = False
    ended: bool = False

    def send(self, message: object) -> None:
        """Send a message; to one that has just ended, in vain: its end is noticed by itself."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(message)

    def receive(self) -> object:
        """Return its next message, waited for; None when there will be no more."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.silent = True
            return None

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if not self.ended and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Gathering:
    """Collects the metrics of all children when a front asks; whoever asks meanwhile gets the same answer."""

    def __init__(self) -> None:
        self._children: Sequence[Child] = ()
        self._asking: list[Child] = []
        self._found: dict[str, Own] = {}
        self._number = 0
        self._deadline = 0.0

    def begin(self, front: Child, children: Sequence[Child]) -> None:
        """Ask each of `children` for its metrics, for `front`."""
        self._asking.append(front)
        if len(self._asking) > 1:
            return
        self._children = children
        self._number += 1
        self._found = {}
        self._deadline = time.monotonic() + _GATHERING_SECONDS
        for child in self._children:
            child.send(AskOne(self._number))

    def add(self, child: Child, own: Own) -> None:
        """Take what a child sent."""
        if own.number == self._number:  # not that of a child which was late before
            self._found[child.name] = own

    def seconds_left(self) -> float | None:
        """Return how long to wait for what is missing; None when nothing is."""
        return max(0.0, self._deadline - time.monotonic()) if self._asking else None

    def end_if_due(self) -> None:
        """Answer those who asked, once all is there; once it cannot come any more, without metrics."""
        if not self._asking:
            return
        missing = [child.name for child in self._children if child.name not in self._found]
        if missing and not any(child.ended for child in self._children) and self.seconds_left():
            return
        if missing:
            _log.error("no metrics from: %s", ", ".join(missing))
        metrics = None if missing else merged(own.metrics for own in self._found.values())
        for front in self._asking:
            front.send(Everyones(metrics))
        self._asking = []
