"""Any area, window by window: what patches and slides have in common."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

from app.inference.segmenter import Segmenter
from app.pathology.arrays import ClassMap, ConfidenceMap, Probabilities, RgbImage
from app.pathology.classes import TissueClass
from app.pathology.composition import pixel_counts, present_labels
from app.pathology.geometry import Region, Size
from app.pathology.tiling import Stitcher, Window, pad_to_stride, plan_windows
from app.segmentation.concurrently import all_of
from app.telemetry.metrics import SegmentationMetrics


@dataclass(frozen=True, slots=True)
class SegmentedArea:
    """What is known of an area.

    Attributes:
        class_map: (H, W) uint8.
        confidence: (H, W) uint8, the winning class's probability times 255.
        label_probabilities: (L,) float32, one for each label class.
        labels: The label classes that the area contains.
        fractions: The share of its pixels that each class has; they add up to 1.
    """

    class_map: ClassMap
    confidence: ConfidenceMap
    label_probabilities: Probabilities
    labels: tuple[TissueClass, ...]
    fractions: tuple[float, ...]

    @property
    def size(self) -> Size:
        """The area's size."""
        return Size.of(self.class_map)


async def segment_windows(
    segmenter: Segmenter, size: Size, read: Callable[[Region], Awaitable[RgbImage]], metrics: SegmentationMetrics
) -> SegmentedArea:
    """Segment an area with overlapping windows, a bounded number at once.

    An area contains what any of its windows contains, so each label has the largest of the windows' probabilities.

    Args:
        segmenter: The model.
        size: The area's size.
        read: Gives the (H, W, 3) uint8 pixels of a region of the area.
        metrics: Told of pixels by class.

    Raises:
        InferenceFailed: The model failed on a window.
        ModelNotReady: The model is stopping, or stuck.
    """
    manifest = segmenter.manifest
    places = asyncio.Semaphore(segmenter.window_concurrency)
    stitcher = Stitcher(size)
    counts = np.zeros(len(manifest.classes), np.int64)

    async def run(window: Window) -> Probabilities:
        async with places:
            result = await segmenter.segment(pad_to_stride(await read(window.read), manifest.stride))
        stitcher.add(window, result.class_map, result.confidence)
        counts[:] += pixel_counts(stitcher.class_map[window.keep.slices], len(counts))
        return result.label_probabilities

    windows = plan_windows(size, manifest.window_px, manifest.margin_px, manifest.stride)
    if len(windows) == 1:
        probabilities = await run(windows[0])
    else:
        probabilities = np.stack(await all_of(run(window) for window in windows)).max(axis=0)
    for tissue, count in zip(manifest.classes, counts, strict=True):
        metrics.predicted_pixels.labels(tissue.name).inc(int(count))
    return SegmentedArea(
        class_map=stitcher.class_map,
        confidence=stitcher.confidence,
        label_probabilities=probabilities,
        labels=present_labels(manifest, probabilities),
        fractions=tuple(float(count) / size.pixels for count in counts),
    )
