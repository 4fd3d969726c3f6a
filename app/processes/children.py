"""The supervisor's children as it sees them: how one begins, what it says, what it is told, and how it ends."""

import logging
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from typing import TypeAlias

from app.pathology.manifest import ModelManifest
from app.processes.channel import Ping, Pipe, Ready, Retire, Stop
from app.processes.signals import StopSignals
from app.telemetry.merging import Snapshot

_MOST_UNANSWERED = 10
"""Pings without an answer, one a second, after which an event loop is not slow but hangs."""
_LAST_SECONDS = 5.0
"""How long the system may take to end a killed process, on a busy machine too; one held in a driver does not end."""

Be: TypeAlias = Callable[[Pipe], None]
"""Does a process's whole work, within it, until it ends; the pipe leads to the supervisor."""

_log = logging.getLogger(__name__)
_fork = multiprocessing.get_context("fork")


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
        exit_code: The exit status of one that has ended; negative where a signal ended it.
        unanswered: Pings since it last answered one.
        killed: Whether the supervisor has killed it.
        gone_by: When a killed one must have ended, in seconds of the monotonic clock.
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
        """Release an ended child's handles, and log a bad exit.

        Not of one that was killed, nor of one that never was ready: the generation reports that.
        """
        if self.exit_code and not self.killed and self.ready is not None:
            _log.error("the process %s did not end well (%s)", self.name, self.how_ended)
        self.process.close()
        self.pipe.close()


Begin: TypeAlias = Callable[[str, Be], Child]
"""Starts a process of this name."""


def begin(name: str, be: Be, siblings: Sequence[Child], signals: StopSignals) -> Child:
    """Fork a process.

    Args:
        name: Its name.
        be: What it is for.
        siblings: Those that are there, of whose pipes it must not hold the supervisor's ends.
        signals: The supervisor's.

    Raises:
        OSError: The system has no room for it.
    """
    ours, theirs = multiprocessing.Pipe()
    not_its = [ours, *(sibling.pipe for sibling in siblings)]
    process = _fork.Process(target=_become, args=(be, not_its, theirs, signals), name=name)
    process.start()
    theirs.close()
    return Child(name, process, ours)


def _become(be: Be, not_its: Sequence[Pipe], pipe: Pipe, signals: StopSignals) -> None:
    """In the child: let go of what is the supervisor's, and be what it is for."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to hand on
    signals.leave_to_parent()
    for other in not_its:
        other.close()
    try:
        be(pipe)
    finally:
        logging.shutdown()  # multiprocessing ends a process without it
