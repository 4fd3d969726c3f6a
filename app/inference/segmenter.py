"""The Segmenter protocol: what use cases need of a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from app.inference.result import WindowResult
from app.pathology.arrays import RgbImage
from app.pathology.manifest import ModelManifest, Precision
from app.telemetry.metrics import SegmentationMetrics

Device = Literal["cpu", "cuda"]
"""What a model runs on; cuda is an NVIDIA GPU."""
DeviceChoice = Literal["auto", "cpu", "cuda"]
"""The device that is asked for; auto takes a GPU where there is one."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model to run, and on what.

    Attributes:
        bundle: The bundle's folder.
        device: Where to run it.
        precision: One of the bundle's precisions; auto takes the one that suits the device, if it is there.
        cores: CPU cores to use; on a CPU each is a lane.
        max_batch_size: The most windows in a batch; None for 2 on a CPU, 32 on a GPU.
        stall_seconds: How long a batch may take, or ten times what it should where that is more.
    """

    bundle: Path
    device: DeviceChoice = "auto"
    precision: Precision | Literal["auto"] = "auto"
    cores: int = 1
    max_batch_size: int | None = None
    stall_seconds: float = math.inf


class Segmenter(Protocol):
    """A model that answers windows.

    Attributes:
        manifest: What its class indices mean and what it takes.
        device: Where it runs.
        provider: The runtime's name of that.
        window_concurrency: How many windows of one patch are worth submitting at once.
        ready: Whether it answers now.
        late: Whether an answer is overdue.
    """

    manifest: ModelManifest
    device: str
    provider: str
    window_concurrency: int

    @property
    def ready(self) -> bool:
        """Whether it answers now."""
        ...

    @property
    def late(self) -> bool:
        """Whether it has not answered for longer than it should: it may be stuck, or the machine is slow."""
        ...

    async def start(self, metrics: SegmentationMetrics, stalled: Callable[[], None] = ...) -> None:
        """Get ready to answer; call on the event loop that will call `segment`.

        Args:
            metrics: Where to report; whoever runs the model also says there which one it is, and on what.
            stalled: Called once, when the model is stuck and will not be ready any more.
        """
        ...

    async def segment(self, window: RgbImage) -> WindowResult:
        """Return what the model says of (H, W, 3) `window`, whose sides are multiples of the manifest's stride.

        Raises:
            InferenceFailed: The model failed on it.
            OutOfMemory: There is no memory to run it.
            ModelNotReady: It is not started, or closed, or stuck.
        """
        ...

    def give_back(self) -> None:
        """Give memory back that is not used, when nothing is asked; may be called in any thread."""
        ...

    async def close(self) -> None:
        """Answer what is running and stop."""
        ...
