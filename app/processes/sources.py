"""Where the fronts of one generation have their model from: an engine has it for all of them, or each has it itself.

Either way another process loads the model first, so that a graph which ends it or holds it up spares the supervisor.
"""

import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from app.errors import InvalidBundle, StartupError
from app.inference.bundle import find_precision, read_manifest
from app.inference.cores import Cores
from app.inference.exchange import Exchange
from app.inference.remote import EngineFacts, RemoteSegmenter
from app.inference.segmenter import Segmenter
from app.pathology.manifest import Precision
from app.processes.channel import Pipe, Refused, Tried
from app.processes.children import Begin, Child
from app.processes.engine import run_engine
from app.settings import Settings

if TYPE_CHECKING:
    from app.inference.model import BatchedSegmenter

_SLOTS = 64
"""Windows that one front may have with the engine at once; they take memory only once they are used."""

_TRIAL_SECONDS = 330
"""After which the system ends a trial: longer than a supervisor waits for it, who says so, if there is one still."""

SegmenterOf: TypeAlias = Callable[[int], Segmenter]
"""Makes the segmenter of the front of an index, in its process."""


class SharedEngine:
    """A process that has the model, and what it shares with each front.

    Args:
        settings: How to run.
        listeners: One for each front.
        begin: Starts a process.

    Attributes:
        child: The engine, once it was started.
    """

    def __init__(self, settings: Settings, listeners: Sequence[socket.socket], begin: Begin) -> None:
        self.child: Child | None = None
        self._settings = settings
        self._listeners = listeners
        self._begin = begin
        self._exchanges: list[Exchange] = []

    def start(self) -> None:
        """Start the engine.

        Raises:
            StartupError: The bundle cannot be used; no process was started.
            OSError: The system lacks what it takes.
        """
        manifest = read_manifest(self._settings.bundle)
        self._exchanges = [Exchange(manifest, _SLOTS) for _ in self._listeners]
        self.child = self._begin("engine", self._be)

    def segmenters(self) -> SegmenterOf | None:
        """Return the fronts' segmenters once the engine is there, which has to tell them about its model; else None.

        Raises:
            InvalidBundle: It loaded another model than the exchanges are for.
        """
        if self.child is None or self.child.ready is None:
            return None
        facts = self.child.ready.facts
        # They were made before it loaded.
        if not all(exchange.fits(facts.manifest) for exchange in self._exchanges):
            raise InvalidBundle(f"{self._settings.bundle}: was changed while it was loaded; try again")
        return partial(self._segmenter, facts)

    def close(self) -> None:
        """Let go of what the engine shares with the fronts: held here, it would hide that one of them has ended."""
        for exchange in self._exchanges:
            exchange.close()

    def _be(self, pipe: Pipe) -> None:
        for listener in self._listeners:
            listener.close()
        for exchange in self._exchanges:
            exchange.front_end.close()
        run_engine(self._settings, self._exchanges, pipe)

    def _segmenter(self, facts: EngineFacts, index: int) -> Segmenter:
        for other, exchange in enumerate(self._exchanges):
            exchange.engine_end.close()
            if other != index:
                exchange.front_end.close()
        return RemoteSegmenter(facts, self._exchanges[index])


class OwnModel:
    """A model that each front has itself: tried in another process, then loaded here, so that its memory is shared.

    Args:
        settings: How to run.
        listeners: One for each front.
        begin: Starts a process.

    Attributes:
        child: The trial, from its start until it has ended well.
    """

    def __init__(self, settings: Settings, listeners: Sequence[socket.socket], begin: Begin) -> None:
        self.child: Child | None = None
        self._settings = settings
        self._listeners = listeners
        self._begin = begin

    def start(self) -> None:
        """Start the trial.

        Raises:
            OSError: The system has no room for it.
        """
        import app.inference.model  # noqa: F401, PLC0415  once, for the trial and for what comes after it

        self.child = self._begin("model trial", self._be_trial)

    def segmenters(self) -> SegmenterOf | None:
        """Return the fronts' segmenters once the trial is over, of the model that was tried, or its variant that was.

        Raises:
            StartupError: It cannot be loaded, or is another one by now.
        """
        trial = self.child
        if trial is None or trial.exit_code != 0 or (tried := trial.tried) is None:
            return None
        trial.bury()
        self.child = None
        if read_manifest(find_precision(self._settings.bundle, tried.precision)) != tried:
            raise InvalidBundle(f"{self._settings.bundle}: was changed while it was tried; try again")
        segmenter = self._load(tried.precision)
        cores = Cores(self._settings.cores, len(self._listeners))
        return lambda index: segmenter.sharing(cores.seen_by(index))

    def close(self) -> None:
        """Let go of nothing: there is no process that the fronts share it with."""

    def _be_trial(self, pipe: Pipe) -> None:
        for listener in self._listeners:
            listener.close()
        signal.alarm(_TRIAL_SECONDS)  # also where nobody waits for it any more
        try:
            segmenter = self._load(self._settings.model.precision)
        except StartupError as error:
            pipe.send(Refused(str(error)))
        else:
            pipe.send(Tried(segmenter.manifest))

    def _load(self, precision: Precision | Literal["auto"]) -> "BatchedSegmenter":
        from app.inference.model import load_segmenter  # noqa: PLC0415

        # To ask for a GPU here would be to start CUDA.
        return load_segmenter(replace(self._settings.model, device="cpu", precision=precision))
