"""The Segmenter protocol: what use cases need of a model."""

from typing import Protocol

from app.inference.result import WindowResult
from app.pathology.arrays import RgbImage
from app.pathology.manifest import ModelManifest


class Segmenter(Protocol):
    """A model that answers windows.

    Attributes:
        manifest: What its class indices mean and what it takes.
        device: Where it runs.
        provider: The runtime's name of that.
        window_concurrency: How many windows of one patch are worth submitting at once.
        ready: Whether it answers now.
    """

    manifest: ModelManifest
    device: str
    provider: str
    window_concurrency: int

    @property
    def ready(self) -> bool:
        """Whether it answers now."""
        ...

    async def start(self) -> None:
        """Get ready to answer; call on the event loop that will call `segment`."""
        ...

    async def segment(self, window: RgbImage) -> WindowResult:
        """Return what the model says of (H, W, 3) `window`, whose sides are multiples of the manifest's stride.

        Raises:
            InferenceFailed: The model failed on it.
            ModelNotReady: It is not started, or closed.
        """
        ...

    async def close(self) -> None:
        """Answer what is running and stop."""
        ...
