"""What a process serves with: its parts, and where it is between its start and its end."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Literal, TypeAlias

from fastapi import FastAPI

from app.access.gate import Access
from app.api.uploads import UploadLimits
from app.inference.segmenter import Segmenter
from app.pathology.manifest import ModelManifest
from app.segmentation.admission import Admission
from app.segmentation.patch import PatchSegmentation
from app.segmentation.workers import Workers
from app.telemetry.merging import Snapshot
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.segmentation.sectra.orders import SectraOrders  # it imports an extra's packages


Reason: TypeAlias = Literal[
    "starting",
    "stopping",
    "model-late",
    "model-stuck",
    "model-stopped",
    "workers-late",
    "keys-unavailable",
    "audit-unavailable",
]
"""Why the service takes no images, for programs. Whoever asks is told it, so it says nothing of files or callers."""

_WORDS: dict[Reason, str] = {
    "starting": "the model has not started yet",
    "stopping": "the service stops",
    "model-late": "the model takes much longer than it should; it is stuck, or something else uses the machine",
    "model-stuck": "the model does not answer any more; the service ends, and has to be started anew",
    "model-stopped": "the model has stopped; the service ends, and has to be started anew",
    "workers-late": "each thread that decodes has been at one image for longer than a request may take",
}

_log = logging.getLogger(__name__)


class Phase(Enum):
    """What a process says of itself and of its connections."""

    SERVING = auto()
    LEAVING = auto()
    """It ends soon: not ready, and no connection is kept for another request."""
    RETIRING = auto()
    """It ends soon and another serves: the service is ready, and no connection is kept for another request."""


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that take images, once the model has started."""

    segmenter: Segmenter
    patches: PatchSegmentation
    workers: Workers
    admission: Admission
    metrics: Metrics
    limits: UploadLimits
    request_timeout_seconds: float


@dataclass(slots=True)
class Running:
    """What the composition root put together, and what has become of it.

    Attributes:
        metrics: Where this process reports.
        access: Who may ask.
        reload: Has the service take the bundle as it lies there now.
        everyones_metrics: Gives the metrics of all processes together.
        phase: Between start and end.
        stalled: Whether the model does not answer any more.
        service: None until the model has started.
        sectra: None until then too, and where Sectra's orders are not taken.
    """

    metrics: Metrics
    access: Access
    reload: Callable[[], Awaitable[ModelManifest]]
    everyones_metrics: Callable[[], Awaitable[Snapshot]]
    phase: Phase = Phase.SERVING
    stalled: bool = False
    service: Service | None = None
    sectra: "SectraOrders | None" = None
    _told: Reason | None = field(default=None, init=False)

    def told_readiness(self) -> Reason | None:
        """Tell the log once of each change of readiness, and return why the service takes no images, or None."""
        reason, words = self._hindrance() or (None, "")
        if reason in (self._told, "starting") or self.phase is Phase.RETIRING:
            return reason
        self._told = reason
        if reason is None:
            _log.info("ready again")
        else:
            level = logging.INFO if reason == "stopping" else logging.WARNING  # somebody asked it to
            _log.log(level, "not ready: %s", words, extra={"reason": reason})
        return reason

    def _hindrance(self) -> tuple[Reason, str] | None:
        """Return why the service takes no images, and what is wrong in words for the log alone."""
        if self.phase is Phase.RETIRING:  # another takes its place
            return None
        reason = self._reason_of_its_own()
        if reason is not None:
            return reason, _WORDS[reason]
        if self.access.keys is not None and (trouble := self.access.keys.trouble):
            return "keys-unavailable", trouble
        if self.access.audit is not None and (trouble := self.access.audit.trouble):
            return "audit-unavailable", trouble
        return None

    def _reason_of_its_own(self) -> Reason | None:
        """Return what lies with the service or its model, not with the files that it needs."""
        if self.phase is Phase.LEAVING:
            return "stopping"
        if self.service is None:
            return "starting"
        if self.stalled:
            return "model-stuck"
        if not self.service.segmenter.ready:
            return "model-stopped"
        if self.service.segmenter.late:
            return "model-late"
        is_late = self.service.workers.busy_seconds > self.service.request_timeout_seconds
        return "workers-late" if is_late else None


def running_of(app: FastAPI) -> Running:
    """Return what an application serves with: a request's `app`, a scope's, or the server's own."""
    running: Running = app.state.running
    return running
