"""One patch, from uploaded bytes to class map, labels and pictures."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeVar

from app.imaging import decode as files
from app.imaging.plausibility import WARNING_CODES, InputWarning, appearance, input_warnings
from app.imaging.resampling import resample_image, resample_map
from app.inference.segmenter import Segmenter
from app.pathology.arrays import RgbImage
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Region, Size
from app.pathology.manifest import ModelManifest
from app.segmentation.budget import PixelBudget
from app.segmentation.scale import Scale, check_seen, plan_scale
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.slides import dicom
from app.telemetry.metrics import Metrics

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SegmentedPatch(SegmentedArea):
    """What is known of a patch, beside what is known of any area.

    Attributes:
        image: (H, W, 3) uint8, as decoded; every map is of its size, whatever the model saw.
        sha256: Hexadecimal digest of the uploaded bytes.
        scale: The size at which the model saw it.
        warnings: What makes what the model saw unlike H&E tissue.
    """

    image: RgbImage
    sha256: str
    scale: Scale
    warnings: tuple[InputWarning, ...]


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
        for code in WARNING_CODES:
            metrics.warnings.labels(code)  # at 0 from the start: a rate sees the first one
        self._max_side_px = limits.side_px
        # Patches of one window have a quarter to themselves, so that they never queue behind a crowd of large ones.
        self._small = PixelBudget(limits.pixels_at_once // 4)
        self._large = PixelBudget(limits.pixels_at_once - limits.pixels_at_once // 4)

    @property
    def manifest(self) -> ModelManifest:
        """The model's contract."""
        return self._segmenter.manifest

    @asynccontextmanager
    async def segmented(self, data: bytes, mpp: float | None = None) -> AsyncIterator[SegmentedPatch]:
        """Give the segmented image in `data`; its memory is accounted for until the block ends.

        Args:
            data: An image file.
            mpp: Its pixel spacing in um/px; None leaves that to its DICOM header, if it has one.

        Raises:
            ImageRejected: It does not decode, or is too large, or would be at the model's pixel spacing.
            OutOfMemory: There is no memory to decode it now.
            InferenceFailed: The model failed on it.
            ModelNotReady: The model is stopping.
        """
        measure = partial(_measure, data, mpp, self.manifest.um_per_px, self._max_side_px)
        size, scale = await self._workers.run(None, measure)
        seen = scale.seen(size)
        longest_px = max(size.width_px, size.height_px, seen.width_px, seen.height_px)
        budget = self._small if longest_px <= self.manifest.window_px else self._large
        async with budget.hold(size.pixels if seen == size else size.pixels + seen.pixels):
            yield await self._segment(data, scale)

    async def _segment(self, data: bytes, scale: Scale) -> SegmentedPatch:
        image, seen, sha256 = await self._workers.run("decode", partial(_read, data, self._max_side_px, scale))
        warnings = await self._workers.run(None, lambda: input_warnings(appearance(seen)))

        async def read(region: Region) -> RgbImage:
            return seen[region.slices]

        area = await segment_windows(self._segmenter, _size_of(seen), read, self._metrics)
        self._metrics.images.inc()
        for warning in warnings:
            self._metrics.warnings.labels(warning.code).inc()
        if seen is not image:
            area = await self._workers.run(None, partial(_brought_to, _size_of(image), area, self.manifest))
        known = {field.name: getattr(area, field.name) for field in fields(area)}
        return SegmentedPatch(**known, image=image, sha256=sha256, scale=scale, warnings=warnings)

    async def encode(self, work: Callable[[], _T]) -> _T:
        """Return what `work`, which makes an answer's bytes of a patch, returns; it runs in a worker thread."""
        return await self._workers.run("encode", work)


def _measure(data: bytes, mpp: float | None, model_um_per_px: float | None, max_side_px: int) -> tuple[Size, Scale]:
    if dicom.is_dicom(data):
        size, in_header = dicom.read_extent(data, max_side_px)
    else:
        size, in_header = files.read_size(data, max_side_px), None
    scale = plan_scale(mpp, in_header, model_um_per_px, size)
    check_seen(scale, size, max_side_px)
    return size, scale


def _read(data: bytes, max_side_px: int, scale: Scale) -> tuple[RgbImage, RgbImage, str]:
    """Return the image, the same as the model sees it, and the digest of `data`."""
    image = dicom.decode(data, max_side_px) if dicom.is_dicom(data) else files.decode(data, max_side_px)
    size = _size_of(image)
    seen = scale.seen(size)
    return image, image if seen == size else resample_image(image, seen), hashlib.sha256(data).hexdigest()


def _size_of(image: RgbImage) -> Size:
    return Size(image.shape[1], image.shape[0])


def _brought_to(size: Size, area: SegmentedArea, manifest: ModelManifest) -> SegmentedArea:
    """Return what is known of an area with maps of `size`, and the fractions that those have."""
    class_map = resample_map(area.class_map, size)
    return replace(
        area,
        class_map=class_map,
        confidence=resample_map(area.confidence, size),
        fractions=tuple(count / size.pixels for count in pixel_counts(class_map, len(manifest.classes))),
    )
