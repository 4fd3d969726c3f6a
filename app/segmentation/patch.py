"""One patch, from uploaded bytes to class map, labels and pictures."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.imaging.decode import decode, read_size
from app.imaging.paint import paint_mask, paint_overlay
from app.imaging.stitching import Stitcher
from app.imaging.tiling import Window, pad_to_stride, plan_windows
from app.inference.segmenter import Segmenter
from app.pathology.arrays import ClassMap, ConfidenceMap, Probabilities, RgbImage
from app.pathology.classes import TissueClass
from app.pathology.composition import pixel_counts, present_labels
from app.pathology.geometry import Size
from app.segmentation.budget import PixelBudget
from app.segmentation.concurrently import all_of
from app.segmentation.workers import Workers
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class SegmentedPatch:
    """What is known of a patch.

    Attributes:
        image: (H, W, 3) uint8, as decoded.
        sha256: Hexadecimal digest of the uploaded bytes.
        class_map: (H, W) uint8.
        confidence: (H, W) uint8, the winning class's probability times 255.
        label_probabilities: (L,) float32, one for each label class.
        labels: The label classes that the patch contains.
        fractions: The share of its pixels that each class has; they add up to 1.
    """

    image: RgbImage
    sha256: str
    class_map: ClassMap
    confidence: ConfidenceMap
    label_probabilities: Probabilities
    labels: tuple[TissueClass, ...]
    fractions: tuple[float, ...]

    @property
    def size(self) -> Size:
        """The patch's size."""
        return Size(self.class_map.shape[1], self.class_map.shape[0])


@dataclass(frozen=True, slots=True)
class PatchLimits:
    """What patches may cost.

    Attributes:
        side_px: Longest side of a patch.
        pixels_at_once: Pixels of all the patches that are decoded at one time.
    """

    side_px: int
    pixels_at_once: int


class PatchSegmentation:
    """Segments patches with a model.

    Args:
        segmenter: The model.
        workers: Threads for decoding and painting.
        metrics: Told of images and pixels.
        limits: What a patch, and all patches at once, may cost.
    """

    def __init__(self, segmenter: Segmenter, workers: Workers, metrics: Metrics, limits: PatchLimits) -> None:
        self._segmenter = segmenter
        self._workers = workers
        self._metrics = metrics
        self._max_side_px = limits.side_px
        # Patches of one window have a quarter to themselves, so that they never queue behind a crowd of large ones.
        self._small = PixelBudget(limits.pixels_at_once // 4)
        self._large = PixelBudget(limits.pixels_at_once - limits.pixels_at_once // 4)

    @asynccontextmanager
    async def segmented(self, data: bytes) -> AsyncIterator[SegmentedPatch]:
        """Give the segmented image in `data`; its memory is accounted for until the block ends.

        Raises:
            ImageRejected: It does not decode or is too large.
            OutOfMemory: There is no memory to decode it now.
            InferenceFailed: The model failed on it.
            ModelNotReady: The model is stopping.
        """
        size = await self._workers.run(None, partial(read_size, data, self._max_side_px))
        window_px = self._segmenter.manifest.window_px
        fits_one_window = max(size.width_px, size.height_px) <= window_px
        async with (self._small if fits_one_window else self._large).hold(size.pixels):
            yield await self._segment(data)

    async def _segment(self, data: bytes) -> SegmentedPatch:
        image, sha256 = await self._workers.run("decode", partial(_read, data, self._max_side_px))
        size = Size(image.shape[1], image.shape[0])
        manifest = self._segmenter.manifest
        windows = plan_windows(size, manifest.window_px, manifest.margin_px)
        stitcher = Stitcher(size)
        counts = np.zeros(len(manifest.classes), np.int64)
        probabilities = await self._run_windows(image, windows, stitcher, counts)
        self._metrics.images.inc()
        for tissue, count in zip(manifest.classes, counts, strict=True):
            self._metrics.predicted_pixels.labels(tissue.name).inc(int(count))
        return SegmentedPatch(
            image=image,
            sha256=sha256,
            class_map=stitcher.class_map,
            confidence=stitcher.confidence,
            label_probabilities=probabilities,
            labels=present_labels(manifest, probabilities),
            fractions=tuple(float(count) / size.pixels for count in counts),
        )

    async def mask(self, patch: SegmentedPatch) -> bytes:
        """Return the patch's mask as a palette PNG."""
        return await self._workers.run("encode", partial(paint_mask, patch.class_map, self._segmenter.manifest.classes))

    async def overlay(self, patch: SegmentedPatch, opacity: float) -> bytes:
        """Return the mask blended over the patch as an RGB PNG; `opacity` is 0 to 1."""
        classes = self._segmenter.manifest.classes
        return await self._workers.run("encode", partial(paint_overlay, patch.image, patch.class_map, classes, opacity))

    async def _run_windows(
        self, image: RgbImage, windows: list[Window], stitcher: Stitcher, counts: NDArray[np.int64]
    ) -> Probabilities:
        """Run each window, a bounded number at once, into `stitcher`; add its pixels by class to `counts`.

        Returns the label probabilities of the patch: a patch contains what any of its windows contains, so each
        label has the largest of the windows' probabilities.
        """
        places = asyncio.Semaphore(self._segmenter.window_concurrency)
        stride = self._segmenter.manifest.stride

        async def run(window: Window) -> Probabilities:
            async with places:
                pixels = pad_to_stride(image[window.read.slices], stride)
                result = await self._segmenter.segment(pixels)
            stitcher.add(window, result.class_map, result.confidence)
            counts[:] += pixel_counts(stitcher.class_map[window.keep.slices], len(counts))
            return result.label_probabilities

        if len(windows) == 1:
            return await run(windows[0])
        largest: Probabilities = np.stack(await all_of(run(window) for window in windows)).max(axis=0)
        return largest


def _read(data: bytes, max_side_px: int) -> tuple[RgbImage, str]:
    return decode(data, max_side_px), hashlib.sha256(data).hexdigest()
