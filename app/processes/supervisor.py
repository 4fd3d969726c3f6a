"""The supervisor: starts the engine and the fronts, adds up their metrics, and ends them together.

It serves nothing itself and has one thread, so that it can be forked from at any time.
"""

import gc
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess
from typing import TypeAlias

from prometheus_client import CollectorRegistry

from app.errors import ProcessEnded, StartupError
from app.inference.bundle import read_manifest
from app.inference.exchange import Exchange
from app.inference.remote import RemoteSegmenter
from app.processes.channel import AskAll, Own, Pipe, Ready, Refused
from app.processes.children import Child, Gathering
from app.processes.engine import run_engine
from app.processes.signals import StopSignals
from app.segmentation.admission import Places
from app.server import MARGIN_SECONDS, bind_each, say_where
from app.settings import Layout, Settings
from app.telemetry.metrics import Metrics

_ENGINE_SECONDS = 10.0
"""For the engine to end what runs when nobody waits for it any more."""
_GONE_SECONDS = 5.0
_SLOTS = 64
"""Windows that one front may have with the engine at once; they take memory only once they are used."""

_BeFront: TypeAlias = Callable[[int, Pipe], None]
"""Is the front of an index, in its process."""

_log = logging.getLogger(__name__)
_fork = multiprocessing.get_context("fork")


def serve_with(settings: Settings, layout: Layout) -> None:
    """Run the service as the processes of `layout`, until SIGINT or SIGTERM.

    Raises:
        StartupError: The address, the bundle or the device cannot be used.
        ProcessEnded: A process ended by itself; the others were ended too.
    """
    listeners = bind_each(settings.host, settings.port, layout.fronts)
    with StopSignals() as signals:
        _Supervisor(settings, layout, listeners, signals).run()
    _log.info("stopped")


class _Supervisor:
    def __init__(
        self, settings: Settings, layout: Layout, listeners: list[socket.socket], signals: StopSignals
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._listeners = listeners
        self._signals = signals
        self._engine: Child | None = None
        self._fronts: list[Child] = []
        self._refused: str | None = None
        self._gathering = Gathering()
        self._exchanges: list[Exchange] = []
        self._places = Places(len(listeners))

    @property
    def _children(self) -> list[Child]:
        return [*([self._engine] if self._engine else []), *self._fronts]

    def run(self) -> None:
        """Start all, watch over them, and end them when one ends or a signal comes."""
        try:
            if self._start():
                self._attend_until(lambda: False)
            lost = [child for child in self._children if child.ended]
        finally:
            self._end()
        if self._refused is not None:
            raise StartupError(self._refused)
        if lost:
            raise ProcessEnded(f"the process {lost[0].name} ended by itself ({_how(lost[0].process)}), and all with it")

    def _start(self) -> bool:
        """Start all; return False where a signal, or the end of one, came first."""
        be_front = self._with_engine() if self._layout.shared_engine else self._with_own_models()
        if be_front is None:
            return False
        gc.freeze()  # what all fronts share is not looked at by their collectors, whose marks would unshare it
        for index in range(len(self._listeners)):
            self._fronts.append(self._begin(f"front {index}", partial(be_front, index)))
        for end in (end for exchange in self._exchanges for end in exchange.ends):
            end.close()  # one that closes must be seen at the other
        if not self._attend_until(lambda: all(front.ready for front in self._fronts)):
            return False
        say_where(self._listeners[0])
        for listener in self._listeners:
            listener.close()
        return True

    def _with_own_models(self) -> _BeFront:
        """Load the model before forking: its memory is shared. Of all fronts' lanes, as many run as are cores."""
        from app.inference.model import load_segmenter  # noqa: PLC0415
        from app.processes.front import run_front  # noqa: PLC0415

        settings, metrics = self._settings, Metrics(CollectorRegistry())
        choice = replace(settings.model, device="cpu")  # to ask for a GPU here would be to start CUDA before forking
        segmenter = load_segmenter(choice, metrics, turns=_fork.Semaphore(settings.cores))

        def be(index: int, pipe: Pipe) -> None:
            self._keep_one(index)
            run_front(settings, segmenter, metrics, self._places.seen_by(index), self._listeners[index], pipe)

        return be

    def _with_engine(self) -> _BeFront | None:
        """Start the engine; None where it does not come up."""
        manifest = read_manifest(self._settings.bundle)
        self._exchanges = [Exchange(manifest, _SLOTS) for _ in self._listeners]
        self._engine = engine = self._begin("engine", self._be_engine)
        # While the model loads: what the fronts need is imported here once, and they share its memory.
        from app.processes.front import run_front  # noqa: PLC0415

        self._attend_until(lambda: engine.ready is not None)
        if engine.ready is None or engine.ready.facts is None:
            return None
        facts = engine.ready.facts

        def be(index: int, pipe: Pipe) -> None:
            self._keep_one(index)
            metrics = Metrics(CollectorRegistry())
            segmenter = RemoteSegmenter(facts, self._exchanges[index], metrics)
            run_front(self._settings, segmenter, metrics, self._places.seen_by(index), self._listeners[index], pipe)

        return be

    def _begin(self, name: str, be: Callable[[Pipe], None]) -> Child:
        ours, theirs = multiprocessing.Pipe()
        process = _fork.Process(target=self._become, args=(be, ours, theirs), name=name)
        process.start()
        theirs.close()
        return Child(name, process, ours)

    def _become(self, be: Callable[[Pipe], None], ours: Pipe, theirs: Pipe) -> None:
        """In the child: let go of what is the supervisor's, and be what it is for."""
        os.setpgid(0, 0)  # a terminal's Ctrl-C is the supervisor's to hand on
        self._signals.release()
        for pipe in (ours, *(child.pipe for child in self._children)):
            pipe.close()
        be(theirs)

    def _be_engine(self, pipe: Pipe) -> None:
        for listener in self._listeners:
            listener.close()
        for exchange in self._exchanges:
            exchange.front_end.close()
        run_engine(self._settings, self._exchanges, pipe)

    def _keep_one(self, index: int) -> None:
        """In a front: let go of what is the others'."""
        for other, listener in enumerate(self._listeners):
            if other != index:
                listener.close()
        for other, exchange in enumerate(self._exchanges):
            exchange.engine_end.close()
            if other != index:
                exchange.front_end.close()

    def _attend_until(self, done: Callable[[], bool]) -> bool:
        """Attend to the children until `done`; return False where a signal, or the end of one of them, came first."""
        while not done():
            if self._signals.received or self._refused is not None or any(child.ended for child in self._children):
                return False
            self._attend(None)
        return True

    def _attend(self, seconds: float | None) -> None:
        """Wait for what comes next, at most so long, and see to it."""
        pipes = {child.pipe: child for child in self._children if not child.silent}
        sentinels = {child.process.sentinel: child for child in self._children if not child.ended}
        waits = [left for left in (seconds, self._gathering.seconds_left()) if left is not None]
        came = wait([*pipes, *sentinels, self._signals.fileno()], min(waits, default=None))
        for child in [pipes[pipe] for pipe in came if pipe in pipes]:
            self._hear(child)
        for child in [sentinels[sentinel] for sentinel in came if sentinel in sentinels]:
            while not child.silent:  # what it said last
                self._hear(child)
            child.ended = True
        self._signals.take()
        self._gathering.end_if_due()

    def _hear(self, child: Child) -> None:
        match child.receive():
            case Ready() as ready:
                child.ready = ready
            case Refused(reason):
                self._refused = reason
            case AskAll():
                self._gathering.begin(child, self._children)
            case Own() as own:
                self._gathering.add(child, own)

    def _end(self) -> None:
        """End the fronts, which answer first what they have, then the engine."""
        for front in self._fronts:
            front.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._settings.request_timeout + 2 * MARGIN_SECONDS
        told = len(self._signals.received)
        while not all(front.ended for front in self._fronts) and (left := deadline - time.monotonic()) > 0:
            self._attend(left)
            for number in self._signals.received[told:]:  # a second Ctrl-C: do not wait for what is under way
                for front in self._fronts:
                    front.signal(number)
            told = len(self._signals.received)
        if self._engine is not None:
            self._engine.pipe.close()
            self._engine.process.join(_ENGINE_SECONDS)
        for child in self._children:
            if child.ended:  # its pipes close a moment before it is gone
                child.process.join(_GONE_SECONDS)
            if child.process.is_alive():
                _log.error("the process %s does not end, and is killed", child.name)
                child.process.kill()
            child.process.join()


def _how(process: ForkProcess) -> str:
    code = process.exitcode or 0
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
