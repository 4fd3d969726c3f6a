"""The supervisor's children as it sees them: what they say, and the metrics that it gathers from all of them."""

import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from app.pathology.manifest import ModelManifest
from app.processes.channel import AskOne, Everyones, Ping, Pipe, Ready, Retire, Stop
from app.telemetry.merging import Snapshot, lasting, merged, snapshot

_GATHERING_SECONDS = 5.0
"""A process that is alive answers within milliseconds; Prometheus waits for ten seconds."""
_MOST_UNANSWERED = 10
"""Pings, one a second: an event loop that has not come round for so long is not slow, it stands."""
_LAST_SECONDS = 5.0
"""In which the system ends a process that is killed, also on a busy machine; one that waits in a driver it does not."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Child:
    """A process and the supervisor's end of its pipe.

    Attributes:
        ready: What it said when it was.
        tried: The contract of the model that it loaded to try it.
        refused: Why it cannot start.
        stuck: Whether its model is.
        left: Whether it has said farewell.
        silent: Whether it will say nothing more.
        ended: Whether it has.
        exit_code: With which status, negative where a signal ended it.
        unanswered: Pings since it last answered one.
        killed: Whether it was ended.
        gone_by: When it must have ended that was killed, in seconds of the monotonic clock.
        last: The metrics that it sent last.
    """

    name: str
    process: ForkProcess
    pipe: Pipe
    ready: Ready | None = None
    tried: ModelManifest | None = None
    refused: str | None = None
    stuck: bool = False
    left: bool = False
    silent: bool = False
    ended: bool = False
    exit_code: int | None = None
    unanswered: int = 0
    killed: bool = False
    gone_by: float = math.inf
    last: Snapshot = field(default_factory=list)

    @property
    def fault(self) -> str | None:
        """What is wrong with one that should serve."""
        if self.stuck:
            return f"the model of the process {self.name} does not answer any more"
        if self.ended:
            return f"the process {self.name} ended by itself ({self.how_ended})"
        if self.lasts:
            return f"the process {self.name} does not answer, nor end though it was killed"
        return None

    @property
    def lasts(self) -> bool:
        """Whether it is there long after it was killed: it is held in the system, and nobody can end it."""
        return not self.ended and time.monotonic() >= self.gone_by

    @property
    def how_ended(self) -> str:
        """What it ended with, in words."""
        code = self.exit_code or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def send(self, message: object) -> None:
        """Send a message; to one that has ended, in vain, and its end is noticed by itself."""
        if self.ended:
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(message)

    def receive(self) -> object:
        """Return its next message, waited for; None when there will be no more."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):  # the latter where it was killed in the middle of a word
            self.silent = True
            return None

    def ping(self) -> None:
        """Ask whether it is there; one that has not answered for long is ended."""
        if self.ready is None or self.left or self.ended:
            return
        if self.unanswered >= _MOST_UNANSWERED:
            self.kill(f"has not answered for {self.unanswered} s")
            return
        self.unanswered += 1
        self.send(Ping())

    def retire(self) -> None:
        """Tell it that another has taken its place."""
        self.send(Retire())

    def stop(self, number: int, within_seconds: int | None = None) -> None:
        """Tell it to end as a signal asks to; see `Stop`."""
        self.send(Stop(number, within_seconds))

    def kill(self, why: str) -> None:
        """End it now, and say why."""
        if not self.ended and not self.killed:
            self.give_up()
            _log.error("the process %s %s, and is killed", self.name, why)

    def give_up(self) -> None:
        """End it now."""
        if not self.ended and not self.killed:
            self.killed = True
            self.gone_by = time.monotonic() + _LAST_SECONDS
            self.process.kill()

    def end(self) -> None:
        """Note that it has ended."""
        self.process.join()
        self.ended = True
        self.exit_code = self.process.exitcode

    def bury(self) -> None:
        """Let go of one that has ended, and was to; of one that never was ready, its generation says what is wrong."""
        if self.exit_code and not self.killed and self.ready is not None:
            _log.error("the process %s did not end well (%s)", self.name, self.how_ended)
        self.process.close()
        self.pipe.close()


class Gathering:
    """Collects the metrics of all children when a front asks; whoever asks meanwhile gets the same answer.

    What a child that has left had counted stays counted, so that no total ever falls.
    """

    def __init__(self) -> None:
        self._children: Sequence[Child] = ()
        self._asking: list[Child] = []
        self._found: dict[Child, Snapshot] = {}
        self._departed: Snapshot = []
        self._departed_before: Snapshot = []
        self._number = 0
        self._deadline = 0.0
        # The supervisor's own: its memory and time are the service's, and its start is, whenever another model came.
        self._own = CollectorRegistry()
        ProcessCollector(registry=self._own)

    def begin(self, front: Child, children: Sequence[Child]) -> None:
        """Ask each of `children` that serves for its metrics, for `front`."""
        self._asking.append(front)
        if len(self._asking) > 1:
            return
        self._children = [child for child in children if child.ready is not None and not child.left]
        self._departed_before = self._departed
        self._number += 1
        self._found = {}
        self._deadline = time.monotonic() + _GATHERING_SECONDS
        for child in self._children:
            child.send(AskOne(self._number))

    def add(self, child: Child, number: int, metrics: Snapshot) -> None:
        """Take what a child sent."""
        child.last = metrics
        if number == self._number:  # not that of a child which was late before
            self._found[child] = metrics

    def keep(self, child: Child, metrics: Snapshot) -> None:
        """Take what a child leaves behind; of one that could say no farewell, what it sent last."""
        child.left = True
        self._departed = merged([self._departed, lasting(metrics)])
        self._found.setdefault(child, metrics)

    def seconds_left(self) -> float | None:
        """Return how long to wait for what is missing; None when nothing is."""
        return max(0.0, self._deadline - time.monotonic()) if self._asking else None

    def end_if_due(self) -> None:
        """Answer those who asked, once all is there; once it cannot come any more, without metrics."""
        if not self._asking:
            return
        missing = [child for child in self._children if child not in self._found]
        if missing and self.seconds_left():
            return
        if missing:
            _log.error("no metrics from: %s", ", ".join(child.name for child in missing))
        found = [self._found[child] for child in self._children if child in self._found]
        metrics = None if missing else merged([snapshot(self._own), *found, self._departed_before])
        for front in self._asking:
            front.send(Everyones(metrics))
        self._asking = []
