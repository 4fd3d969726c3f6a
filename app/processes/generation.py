"""The processes that serve one model, from their beginning to their end. A reload makes the next of them."""

import gc
import signal
import socket
import time
from dataclasses import dataclass
from functools import partial

from app.access.gate import Access
from app.connections.balancing import Balance
from app.pathology.manifest import ModelManifest
from app.processes.channel import Pipe
from app.processes.children import Begin, Child
from app.processes.layout import Layout
from app.processes.sources import OwnModel, SegmenterOf, SharedEngine
from app.segmentation.admission import Places
from app.server import MARGIN_SECONDS, RETIRED_SECONDS
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Shared:
    """What all generations share.

    Attributes:
        settings: How to run.
        layout: As which processes.
        listeners: One for each front, which outlive it: a connection that no front has taken yet is the next one's.
        places: Where the fronts count their images.
        access: Who may ask, how often over all fronts, and where it is written down.
        begin: Starts a process.
    """

    settings: Settings
    layout: Layout
    listeners: list[socket.socket]
    places: Places
    access: Access
    begin: Begin


class Generation:
    """The processes of one model. The supervisor attends to them; here is what they are, and how they come and go.

    Args:
        shared: What it shares with those before and after it.
        number: Which one it is, from 0.
        taken: Groups of the places that others have; see `Places`.
    """

    def __init__(self, shared: Shared, number: int, taken: set[int]) -> None:
        self.group = shared.places.free_group(taken)
        self.fronts: list[Child] = []
        self._shared = shared
        suffix = f" of generation {number}" if number else ""
        # Not a method: the collector, told by `gc.freeze` to leave this alone, would never find a cycle of references.
        self._begin: Begin = lambda name, be: shared.begin(f"{name}{suffix}", be)
        of = (shared.settings, shared.listeners, self._begin)
        self._source: SharedEngine | OwnModel = SharedEngine(*of) if shared.layout.shared_engine else OwnModel(*of)
        self._balance: Balance | None = None
        self._leave_by: float | None = None

    def start(self) -> None:
        """Start its first process; `go_on` and `is_ready` say how that goes on.

        Raises:
            StartupError: The bundle or the device cannot be used; no process was started.
            OSError: The system lacks what a process takes.
        """
        self._source.start()
        # While that loads the model: what the fronts need is imported here once, and they share its memory.
        import app.processes.front  # noqa: F401, PLC0415

    @property
    def children(self) -> list[Child]:
        """All of its processes."""
        return [child for child in (self._source.child, *self.fronts) if child is not None]

    @property
    def is_ready(self) -> bool:
        """Whether it serves, with all of its processes."""
        return bool(self.fronts) and all(front.ready for front in self.fronts) and self.fault is None

    @property
    def refusal(self) -> str | None:
        """Why it cannot start, in one line."""
        return next((child.refused for child in self.children if child.refused is not None), None)

    @property
    def fault(self) -> str | None:
        """What is wrong with one of its processes, while all should serve."""
        return next((fault for child in self.children if (fault := child.fault) is not None), None)

    @property
    def manifest(self) -> ModelManifest:
        """The contract of what is served, once it is."""
        ready = self.fronts[0].ready
        assert ready is not None  # noqa: S101  by the caller's word
        return ready.facts.manifest

    def go_on(self) -> None:
        """Start the fronts once there is a model for them.

        Raises:
            StartupError, OSError: As `start` does; some of them may have been started.
        """
        if not self.fronts and (segmenter_of := self._source.segmenters()) is not None:
            self._fork_fronts(segmenter_of)

    def _fork_fronts(self, segmenter_of: SegmenterOf) -> None:
        gc.collect()
        gc.freeze()  # what all fronts share is not looked at by their collectors, whose marks would unshare it
        count = len(self._shared.listeners)
        self._balance = Balance(count) if count > 1 else None
        try:
            for index in range(count):
                self.fronts.append(self._begin(f"front {index}", partial(self._be_front, index, segmenter_of)))
        finally:
            if self._balance is not None:
                self._balance.close()
        self._source.close()

    def _be_front(self, index: int, segmenter_of: SegmenterOf, pipe: Pipe) -> None:
        from app.processes.front import run_front  # noqa: PLC0415

        segmenter = segmenter_of(index)
        for other, listener in enumerate(self._shared.listeners):
            if other != index:
                listener.close()
        shared = self._shared
        places = shared.places.seen_by(index, self.group)
        balancer = None
        if self._balance is not None:
            balancer = self._balance.seen_by(index)
            self._balance.close()
        run_front(shared.settings, segmenter, places, shared.access, shared.listeners[index], balancer, pipe)

    def retire(self) -> None:
        """Another has its place: it answers what it has, and ends."""
        for front in self.fronts:
            front.retire()
        self._expect_end(RETIRED_SECONDS)

    def stop(self, number: int) -> None:
        """End as this signal asks to; a further one may ask for more haste."""
        for front in self.fronts:
            front.stop(number)
        self._expect_end(self._shared.settings.shutdown_grace if number == signal.SIGTERM else 0.0)

    def stop_soon(self) -> None:
        """End, and wait for no slow client: nobody else is served before all of it is gone."""
        for front in self.fronts:
            front.stop(signal.SIGINT, MARGIN_SECONDS)
        self._expect_end(0.0, request_seconds=0.0)

    def _expect_end(self, grace_seconds: float, request_seconds: float | None = None) -> None:
        """Have all of it end; the engine does once its fronts have.

        Args:
            grace_seconds: For how long it takes requests more.
            request_seconds: For how long one may take; None for as long as the settings say.
        """
        for child in self.children:
            if child.ready is None:
                child.give_up()
        self._source.close()
        for_requests = self._shared.settings.request_timeout if request_seconds is None else request_seconds
        leave_by = time.monotonic() + grace_seconds + for_requests + 2 * MARGIN_SECONDS
        self._leave_by = leave_by if self._leave_by is None else min(leave_by, self._leave_by)

    def seconds_left(self) -> float | None:
        """Return for how long it may still be there; None where it serves, or no more can be done to end it."""
        if self._leave_by is None or all(child.killed or child.ended for child in self.children):
            return None
        return max(0.0, self._leave_by - time.monotonic())

    def is_gone(self) -> bool:
        """Go on to end one that was told to, and return whether all of it has."""
        if self._leave_by is None:
            return False
        if self.seconds_left() == 0:
            for child in self.children:
                child.kill("does not end")
        gone = all(child.ended for child in self.children)
        if gone:
            for child in self.children:
                child.bury()
            self._shared.places.clear(self.group)
        return gone
