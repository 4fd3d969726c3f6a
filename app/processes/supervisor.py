"""The supervisor: starts the processes, watches over them, adds up their metrics, and ends them or puts others there.

It serves nothing itself and has one thread, so that it can be forked from at any time.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import NoReturn

from app.access_settings import access_of
from app.errors import STOPPING, ProcessEnded, ReloadRefused, StartupError, TesseraError
from app.pathology.manifest import ModelManifest
from app.processes.channel import (
    AllMetricsRequest,
    ChildMetrics,
    Farewell,
    Pong,
    Ready,
    Refused,
    Reloaded,
    ReloadRequest,
    Stuck,
    Tried,
)
from app.processes.children import Be, Child, begin
from app.processes.gathering import Gathering
from app.processes.generation import Generation, Shared
from app.processes.layout import Layout
from app.processes.signals import StopSignals
from app.segmentation.admission import Places
from app.server import bind_each, end_at_once, say_where
from app.settings import Settings

_PING_SECONDS = 1.0
_MOST_GENERATIONS = 3
"""The one that serves, the one that comes, and one that still answers what it has."""
_READY_SECONDS = 300.0
"""For which a start waits, and a reload, and others behind it: who loads a model may also hang, as may a driver."""

_log = logging.getLogger(__name__)


def serve_with(settings: Settings, layout: Layout) -> None:
    """Run the service as the processes of `layout`, until SIGINT or SIGTERM.

    Raises:
        StartupError: The address, the bundle or the device cannot be used.
        ProcessEnded: A process ended by itself, or its model got stuck; the others were ended too.
    """
    listeners = bind_each(settings.host, settings.port, layout.fronts)
    with StopSignals() as signals:
        _Supervisor(settings, layout, listeners, signals).run()
    _log.info("stopped")


class _Supervisor:
    def __init__(
        self, settings: Settings, layout: Layout, listeners: list[socket.socket], signals: StopSignals
    ) -> None:
        places = Places(layout.fronts, groups=_MOST_GENERATIONS)
        access = access_of(settings, settings.host)
        self._shared = Shared(settings, layout, listeners, places, access, self._begin)
        self._signals = signals
        self._gathering = Gathering()
        self._generations: list[Generation] = []
        self._serving: Generation | None = None
        self._made = 0
        self._reload_asked: list[Child] = []
        self._is_ending = False
        self._next_ping = time.monotonic()

    @property
    def _children(self) -> list[Child]:
        return [child for generation in self._generations for child in generation.children]

    @property
    def _fault(self) -> str | None:
        """What ends the service that nobody asked to end."""
        return self._serving.fault if self._serving is not None and not self._signals.received else None

    @property
    def _is_over(self) -> bool:
        return bool(self._signals.received) or self._fault is not None

    def run(self) -> None:
        """Start all, watch over them, and end them when one ends or a signal comes.

        Raises:
            StartupError: They cannot serve.
            ProcessEnded: One ended by itself, or its model got stuck.
        """
        reason: TesseraError | None = None
        try:
            self._serve()
        except (StartupError, ProcessEnded) as error:
            reason = error
            raise
        finally:
            self._end(reason)

    def _serve(self) -> None:
        if self._begin_to_serve():
            say_where(self._shared.listeners[0], self._shared.access.certificate)
        while not self._is_over:
            self._attend()
            has_place = len(self._generations) < _MOST_GENERATIONS
            if self._reload_asked or (self._signals.reload_asked and has_place):
                self._reload()
        if (fault := self._fault) is not None:
            raise ProcessEnded(f"{fault}, and all with it")

    def _begin_to_serve(self) -> bool:
        """Put a new generation in the place of the one that serves; return False where all ended first.

        Raises:
            StartupError: It cannot serve; it ends, and what served still does.
            ProcessEnded: Likewise, but it could not say why.
        """
        self._shared.access.look_again()  # what is forked now must not believe a key that was revoked meanwhile
        coming = Generation(self._shared, self._made, {other.group for other in self._generations})
        self._made += 1
        self._generations.append(coming)
        due = time.monotonic() + _READY_SECONDS
        try:
            _grow(coming.start)
            while not coming.is_ready and not self._is_over:
                if coming.refusal is not None:
                    raise StartupError(coming.refusal)
                if coming.fault is not None:
                    raise ProcessEnded(coming.fault)
                if time.monotonic() > due:
                    waited_for = ", ".join(child.name for child in coming.children if child.ready is None)
                    raise ProcessEnded(f"not ready within {_READY_SECONDS:g} s: {waited_for}")
                self._attend()
                _grow(coming.go_on)
        except (StartupError, ProcessEnded):
            coming.retire()
            raise
        if self._is_over:
            return False
        before, self._serving = self._serving, coming
        if before is not None:
            before.retire()
        return True

    def _reload(self) -> None:
        """Serve the bundle as it lies there now, if it can be; tell those who asked."""
        asked, self._reload_asked = self._reload_asked, []
        try:
            if len(self._generations) == _MOST_GENERATIONS:  # a signal, which nobody can be told of, is kept for later
                raise ReloadRefused("two models are still answering what they have; try again in a minute")
            self._signals.reload_asked = False
            has_begun = self._begin_to_serve()
        except (StartupError, ProcessEnded, ReloadRefused) as error:
            outcome: ModelManifest | ReloadRefused = ReloadRefused(f"{error}; what was served before still is")
            _log.error("not reloaded: %s", outcome)
        else:
            if not has_begun or self._serving is None:
                outcome = ReloadRefused(STOPPING)
            else:
                outcome = manifest = self._serving.manifest
                known = {"model": manifest.name, "version": manifest.version, "sha256": manifest.sha256}
                _log.info("reloaded", extra=known)
        for front in asked:
            front.send(Reloaded(outcome))

    def _begin(self, name: str, be: Be) -> Child:
        return begin(name, be, self._children, self._signals)

    def _attend(self) -> None:
        """Wait for what comes next, and see to it."""
        pipes = {child.pipe: child for child in self._children if not child.silent}
        sentinels = {child.process.sentinel: child for child in self._children if not child.ended}
        waits = [self._gathering.seconds_left(), *(generation.seconds_left() for generation in self._generations)]
        until_ping = max(0.0, self._next_ping - time.monotonic())
        seconds = min([until_ping, *(wait for wait in waits if wait is not None)])
        came = wait([*pipes, *sentinels, self._signals.fileno()], seconds)
        for child in [pipes[pipe] for pipe in came if pipe in pipes]:
            self._hear(child)
            while not child.silent and child.pipe.poll():  # all that came while this process had something else to do
                self._hear(child)
        for child in [sentinels[sentinel] for sentinel in came if sentinel in sentinels]:
            while not child.silent:  # what it said last
                self._hear(child)
            child.end()
            if not child.left:
                self._gathering.keep(child, child.last)
        self._signals.take()
        self._gathering.end_if_due()
        if time.monotonic() >= self._next_ping:
            self._next_ping = time.monotonic() + _PING_SECONDS
            for child in self._children:
                child.ping()
        self._generations = [generation for generation in self._generations if not generation.is_gone()]

    def _hear(self, child: Child) -> None:
        match child.receive():
            case Ready() as ready:
                child.ready = ready
            case Tried(manifest):
                child.tried = manifest
            case Refused(reason):
                child.refused = reason
            case Pong():
                child.unanswered = 0
            case Stuck():
                child.stuck = True
            case ReloadRequest() if self._is_ending:
                child.send(Reloaded(ReloadRefused(STOPPING)))
            case ReloadRequest():
                self._reload_asked.append(child)
            case AllMetricsRequest():
                self._gathering.begin(child, self._children)
            case ChildMetrics(number, metrics):
                self._gathering.add(child, number, metrics)
            case Farewell(metrics):
                self._gathering.keep(child, metrics)

    def _end(self, reason: TesseraError | None) -> None:
        """End all of them; they answer first what they have, or of that what takes seconds.

        Args:
            reason: What ends the service that nobody asked to end.
        """
        self._is_ending = True
        if reason is not None and self._serving is not None:
            _log.error("ending: %s", reason)  # said again at the end, which may be seconds away or not come
        for front in self._reload_asked:
            front.send(Reloaded(ReloadRefused(STOPPING)))
        for listener in self._shared.listeners:
            listener.close()
        told = len(self._signals.received)
        number = self._signals.received[0] if told else signal.SIGINT
        for generation in self._generations:
            if reason is None:
                generation.stop(number)
            else:
                generation.stop_soon()
        while self._generations:
            self._attend()
            for number in self._signals.received[told:]:  # a second Ctrl-C: do not wait for what is under way
                for generation in self._generations:
                    generation.stop(number)
            told = len(self._signals.received)
            there = [child for child in self._children if not child.ended]
            if there and all(child.lasts for child in there):
                self._leave_behind(there, reason)

    def _leave_behind(self, there: list[Child], reason: TesseraError | None) -> NoReturn:
        """End without those that nobody can end: Python would wait for them as it ends, and for them alone."""
        if reason is not None:
            _log.critical("%s", reason)
        _log.critical("killed, and still there: %s", ", ".join(child.name for child in there))
        end_at_once()


def _grow(step: Callable[[], None]) -> None:
    """Do what begins processes.

    Raises:
        ProcessEnded: The system has no room for another.
    """
    try:
        step()
    except (OSError, MemoryError) as error:
        reason = str(error) or "out of memory"  # of which the system's own error says nothing
        raise ProcessEnded(f"the system has no room for another process ({reason})") from error
