"""A segmenter without a model: it tells tissue by colour, so every pixel's answer is known beforehand.

Beside it, a clock that stands, work that is held up, and a caller that holds a place of the service's.

A pixel's class depends on that pixel alone: red above 200 and blue below 100 is normal, green above red is stroma,
blue above red is tumor, the rest is background. It answers as a real one does, a window at a time.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from fastapi.testclient import TestClient

from app.errors import InferenceFailed, ModelNotReady
from app.inference.result import WindowResult
from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import ModelManifest
from app.telemetry.metrics import SegmentationMetrics

POISON = (1, 2, 3)
"""A window whose first pixel has this colour makes the segmenter fail."""


def manifest(window_px: int = 64, margin_px: int = 8, stride: int = 32) -> ModelManifest:
    return ModelManifest(
        name="colours",
        version="1.0",
        classes=WSSS4LUAD,
        label_thresholds=(0.5, 0.5, 0.5),
        stride=stride,
        window_px=window_px,
        margin_px=margin_px,
        sha256="0" * 64,
        golden_sha256="0" * 64,
        opset=20,
    )


def classes_of(image: RgbImage) -> ClassMap:
    """Return the class map that the segmenter finds in (H, W, 3) `image`."""
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    class_map = np.full(image.shape[:2], 3, np.uint8)
    class_map[blue > red] = 0
    class_map[green > red] = 1
    class_map[(red > 200) & (blue < 100)] = 2
    return class_map


class ColourSegmenter:
    """Answers windows by colour.

    Args:
        known: The manifest to answer under.
        gate: When given, no window is answered before it is set.
    """

    device = "cpu"
    provider = "ColourProvider"
    window_concurrency = 4
    late = False

    def __init__(self, known: ModelManifest | None = None, gate: asyncio.Event | None = None) -> None:
        self.manifest = known or manifest()
        self.gate = gate
        self.windows: list[tuple[int, ...]] = []
        self.ready = False

    async def start(self, metrics: SegmentationMetrics, stalled: Callable[[], None] = lambda: None) -> None:
        self.ready = True

    async def close(self) -> None:
        self.ready = False

    async def segment(self, window: RgbImage) -> WindowResult:
        if not self.ready:
            raise ModelNotReady("the service is stopping")
        self.windows.append(window.shape)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        if tuple(window[0, 0]) == POISON:
            raise InferenceFailed("the model failed on this image")
        class_map = classes_of(window)
        present = [float((class_map == index).mean() > 0.01) for index in range(3)]
        return WindowResult(class_map, np.full_like(class_map, 200), np.array(present, np.float32))


class Clock:
    """Tells the time that it is set to.

    Args:
        now: At first.
    """

    def __init__(self, now: float = 0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Held:
    """Work that goes on in its thread until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        try:
            assert self.let_go.wait(10)
        finally:
            self.ended.set()


@contextmanager
def a_place_taken(client: TestClient) -> Iterator[None]:
    """Hold one of the places that the service has for images."""
    place = client.app.state.running.service.admission.admit(1)
    client.portal.call(place.__enter__)
    try:
        yield
    finally:
        client.portal.call(place.__exit__, None, None, None)
