"""What a process serves with: its parts, and where it is between its start and its end."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.access.gate import Access
from app.api.uploads import UploadLimits
from app.inference.segmenter import Segmenter
from app.pathology.manifest import ModelManifest
from app.segmentation.admission import Admission
from app.segmentation.patch import PatchSegmentation
from app.telemetry.merging import Snapshot
from app.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from app.segmentation.sectra.orders import SectraOrders  # it imports an extra's packages


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

    @property
    def is_ready(self) -> bool:
        """Whether the service takes images, as far as this process can tell."""
        if self.phase is not Phase.SERVING:
            return self.phase is Phase.RETIRING
        if self.service is None or not self.service.segmenter.ready or self.service.segmenter.late:
            return False
        return self.access.is_usable


def running_of(app: FastAPI) -> Running:
    """Return what an application serves with: a request's `app`, a scope's, or the server's own."""
    running: Running = app.state.running
    return running
