"""One patch, from uploaded bytes to class map, labels and pictures."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TypeVar

from app.imaging import decode as files
from app.inference.segmenter import Segmenter
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.pathology.manifest import ModelManifest
from app.segmentation.budget import PixelBudget
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.slides import dicom
from app.telemetry.metrics import Metrics

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SegmentedPatch(SegmentedArea):
    """What is known of a patch, beside what is known of any area.

    Attributes:
        image: (H, W, 3) uint8, as decoded.
        sha256: Hexadecimal digest of the uploaded bytes.
    """

    image: RgbImage
    sha256: str


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

    @property
    def manifest(self) -> ModelManifest:
        """The model's contract."""
        return self._segmenter.manifest

    @asynccontextmanager
    async def segmented(self, data: bytes) -> AsyncIterator[SegmentedPatch]:
        """Give the segmented image in `data`; its memory is accounted for until the block ends.

        Raises:
            ImageRejected: It does not decode or is too large.
            OutOfMemory: There is no memory to decode it now.
            InferenceFailed: The model failed on it.
            ModelNotReady: The model is stopping.
        """
        size = await self._workers.run(None, partial(_read_size, data, self._max_side_px))
        window_px = self.manifest.window_px
        fits_one_window = max(size.width_px, size.height_px) <= window_px
        async with (self._small if fits_one_window else self._large).hold(size.pixels):
            yield await self._segment(data)

    async def _segment(self, data: bytes) -> SegmentedPatch:
        image, sha256 = await self._workers.run("decode", partial(_read, data, self._max_side_px))

        async def read(region: Region) -> RgbImage:
            return image[region.slices]

        size = Size(image.shape[1], image.shape[0])
        area = await segment_windows(self._segmenter, size, read, self._metrics)
        self._metrics.images.inc()
        known = {field.name: getattr(area, field.name) for field in fields(area)}
        return SegmentedPatch(**known, image=image, sha256=sha256)

    async def encode(self, work: Callable[[], _T]) -> _T:
        """Return what `work`, which makes an answer's bytes of a patch, returns; it runs in a worker thread."""
        return await self._workers.run("encode", work)


def _read_size(data: bytes, max_side_px: int) -> Size:
    return dicom.read_size(data, max_side_px) if dicom.is_dicom(data) else files.read_size(data, max_side_px)


def _read(data: bytes, max_side_px: int) -> tuple[RgbImage, str]:
    image = dicom.decode(data, max_side_px) if dicom.is_dicom(data) else files.decode(data, max_side_px)
    return image, hashlib.sha256(data).hexdigest()
