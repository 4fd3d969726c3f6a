"""The metrics of all processes, gathered as those of one service."""

import logging
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from app.processes.channel import AllMetrics, MetricsRequest
from app.processes.children import Child
from app.telemetry.merging import Snapshot, lasting, merged, snapshot

_GATHERING_SECONDS = 5.0
"""How long to wait for the children. One that is alive answers within milliseconds; Prometheus waits ten seconds."""

_log = logging.getLogger(__name__)


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
        self._deadline = time.monotonic() + _GATHERING_SECONDS
        for child in self._children:
            child.send(MetricsRequest(self._number))

    def add(self, child: Child, number: int, metrics: Snapshot) -> None:
        """Take what a child sent."""
        child.last = metrics
        if self._asking and number == self._number:  # not that of a child which was late
            self._found[child] = metrics

    def keep(self, child: Child, metrics: Snapshot) -> None:
        """Take what a child leaves behind; of one that could say no farewell, what it sent last."""
        child.left = True
        self._departed = merged([self._departed, lasting(metrics)])
        if self._asking:
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
            front.send(AllMetrics(metrics))
        self._asking, self._children, self._found = [], (), {}  # else a child that leaves would stay in memory
