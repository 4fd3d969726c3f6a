"""The processes that serve one model: fronts, and the engine where they share one. A reload makes the next of them."""

import gc
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from app.access.gate import Access
from app.connections.balancing import Balance
from app.errors import InvalidBundle, StartupError
from app.inference.bundle import find_precision, read_manifest
from app.inference.cores import Cores
from app.inference.exchange import Exchange
from app.inference.remote import RemoteSegmenter
from app.inference.segmenter import Segmenter
from app.pathology.manifest import ModelManifest, Precision
from app.processes.channel import Pipe, Refused, Tried
from app.processes.children import Child
from app.processes.engine import run_engine
from app.processes.layout import Layout
from app.segmentation.admission import Places
from app.server import MARGIN_SECONDS, RETIRED_SECONDS
from app.settings import Settings

if TYPE_CHECKING:
    from app.inference.model import BatchedSegmenter

_SLOTS = 64
"""Windows that one front may have with the engine at once; they take memory only once they are used."""

_TRIAL_SECONDS = 300
"""For loading a model, which takes a second; then the system ends who does."""

_BeFront: TypeAlias = Callable[[int, Pipe], None]
"""Is the front of an index, in its process."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all generations share.

    Attributes:
        settings: How to run.
        layout: As which processes.
        listeners: One for each front, which outlive it: a connection that no front has taken yet is the next one's.
        places: Where the fronts count their images.
        access: Who may ask, how often over all fronts, and where it is written down.
        begin: Starts a process of this name that is what it is told to be.
    """

    settings: Settings
    layout: Layout
    listeners: list[socket.socket]
    places: Places
    access: Access
    begin: Callable[[str, Callable[[Pipe], None]], Child]


class Generation:
    """The processes of one model. The supervisor attends to them; here is what they are, and how they come and go.

    Args:
        shared: What it shares with those before and after it.
        number: Which one it is, from 0.
        taken: Groups of the places that others have; see `Places`.
    """

    def __init__(self, shared: Shared, number: int, taken: set[int]) -> None:
        self.group = shared.places.free_group(taken)
        self.engine: Child | None = None
        self._trial: Child | None = None
        self.fronts: list[Child] = []
        self._shared = shared
        self._suffix = f" of generation {number}" if number else ""
        self._exchanges: list[Exchange] = []
        self._balance: Balance | None = None
        self._leave_by: float | None = None

    def start(self) -> None:
        """Start its processes; `go_on` and `is_ready` say how that goes on.

        Raises:
            StartupError: The bundle or the device cannot be used; no process was started.
            OSError: The system lacks what a process takes; some of them may have been started.
        """
        shared = self._shared
        if shared.layout.shared_engine:
            manifest = read_manifest(shared.settings.bundle)
            self._exchanges = [Exchange(manifest, _SLOTS) for _ in shared.listeners]
            self.engine = shared.begin(f"engine{self._suffix}", self._be_engine)
            # While the model loads: what the fronts need is imported here once, and they share its memory.
            import app.processes.front  # noqa: PLC0415
        else:
            import app.inference.model  # noqa: PLC0415  once, for the trial and for what comes after it
            import app.processes.front  # noqa: F401, PLC0415  likewise

            self._trial = shared.begin(f"model trial{self._suffix}", self._be_trial)

    @property
    def children(self) -> list[Child]:
        """All of its processes."""
        return [child for child in (self.engine, self._trial, *self.fronts) if child is not None]

    @property
    def is_ready(self) -> bool:
        """Whether it serves."""
        return bool(self.fronts) and all(front.ready for front in self.fronts)

    @property
    def refusal(self) -> str | None:
        """Why it cannot start, in one line."""
        return next((child.refused for child in self.children if child.refused is not None), None)

    @property
    def fault(self) -> str | None:
        """What is wrong with one of its processes, while all should serve."""
        faults = (child.fault for child in self.children if child is not self._trial or child.exit_code != 0)
        return next((fault for fault in faults if fault is not None), None)

    @property
    def manifest(self) -> ModelManifest:
        """The contract of what is served, once it is."""
        ready = self.fronts[0].ready
        assert ready is not None  # noqa: S101  by the caller's word
        return ready.facts.manifest

    def go_on(self) -> None:
        """Start the fronts once the engine, which has to tell them about its model, is there, or the trial is over.

        Raises:
            StartupError, OSError: As `start` does.
        """
        if self._trial is not None and self._trial.exit_code == 0 and (tried := self._trial.tried) is not None:
            self._trial.bury()
            self._trial = None
            self._fork_fronts(self._front_with_model(tried))
        if self.engine is not None and self.engine.ready is not None and not self.fronts:
            facts = self.engine.ready.facts
            # They were made before it loaded.
            if not all(exchange.fits(facts.manifest) for exchange in self._exchanges):
                raise InvalidBundle(f"{self._shared.settings.bundle}: was changed while it was loaded; try again")

            def be(index: int, pipe: Pipe) -> None:
                self._be_front(index, RemoteSegmenter(facts, self._exchanges[index]), pipe)

            self._fork_fronts(be)

    def _front_with_model(self, tried: ModelManifest) -> _BeFront:
        """Load the model that was tried, or its variant that was, before forking: its memory is shared."""
        shared = self._shared
        if read_manifest(find_precision(shared.settings.bundle, tried.precision)) != tried:
            raise InvalidBundle(f"{shared.settings.bundle}: was changed while it was tried; try again")
        segmenter = self._load(tried.precision)
        cores = Cores(shared.settings.cores, len(shared.listeners))

        def be(index: int, pipe: Pipe) -> None:
            self._be_front(index, segmenter.sharing(cores.seen_by(index)), pipe)

        return be

    def _load(self, precision: Precision | Literal["auto"]) -> "BatchedSegmenter":
        from app.inference.model import load_segmenter  # noqa: PLC0415

        # To ask for a GPU here would be to start CUDA.
        return load_segmenter(replace(self._shared.settings.model, device="cpu", precision=precision))

    def _fork_fronts(self, be: _BeFront) -> None:
        gc.collect()
        gc.freeze()  # what all fronts share is not looked at by their collectors, whose marks would unshare it
        count = len(self._shared.listeners)
        self._balance = Balance(count) if count > 1 else None
        try:
            for index in range(count):
                self.fronts.append(self._shared.begin(f"front {index}{self._suffix}", partial(be, index)))
        finally:
            if self._balance is not None:
                self._balance.close()
        self._close_exchanges()

    def _be_trial(self, pipe: Pipe) -> None:
        """Load the model and end: a graph that ends its process, or holds it up, must not do so to the supervisor."""
        for listener in self._shared.listeners:
            listener.close()
        signal.alarm(_TRIAL_SECONDS)  # also where nobody waits for it any more
        try:
            segmenter = self._load(self._shared.settings.model.precision)
        except StartupError as error:
            pipe.send(Refused(str(error)))
        else:
            pipe.send(Tried(segmenter.manifest))

    def _be_engine(self, pipe: Pipe) -> None:
        for listener in self._shared.listeners:
            listener.close()
        for exchange in self._exchanges:
            exchange.front_end.close()
        run_engine(self._shared.settings, self._exchanges, pipe)

    def _be_front(self, index: int, segmenter: Segmenter, pipe: Pipe) -> None:
        from app.processes.front import run_front  # noqa: PLC0415

        for other, listener in enumerate(self._shared.listeners):
            if other != index:
                listener.close()
        for other, exchange in enumerate(self._exchanges):
            exchange.engine_end.close()
            if other != index:
                exchange.front_end.close()
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
        self._close_exchanges()
        for_requests = self._shared.settings.request_timeout if request_seconds is None else request_seconds
        leave_by = time.monotonic() + grace_seconds + for_requests + 2 * MARGIN_SECONDS
        self._leave_by = leave_by if self._leave_by is None else min(leave_by, self._leave_by)

    def _close_exchanges(self) -> None:
        for exchange in self._exchanges:
            exchange.close()

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
