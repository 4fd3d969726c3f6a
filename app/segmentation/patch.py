"""One patch, from uploaded bytes to class map, labels and pictures."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial

from app.errors import OutOfMemory, no_memory_to
from app.imaging.paint import paint_mask
from app.imaging.plausibility import WARNING_CODES, InputWarning
from app.imaging.resampling import resample_map
from app.inference.segmenter import Segmenter
from app.interop.provenance import Conditions, picture_text
from app.pathology.arrays import RgbImage
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Region, Size
from app.pathology.manifest import ModelManifest
from app.segmentation.admission import Admission
from app.segmentation.budget import PixelBudget
from app.segmentation.reading import SMALL_PIXELS, Expected, Reader, ReadUpload, Upload
from app.segmentation.scale import Scale
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.telemetry.metrics import SegmentationMetrics

_QUICK_SECONDS = 0.0005
"""For a glance at an upload: a hundred times what one at a patch as encoders write it takes."""


@dataclass(frozen=True, slots=True)
class SegmentedPatch(SegmentedArea):
    """What is known of a patch, beside what is known of any area.

    Attributes:
        image: (H, W, 3) uint8, as decoded; every map is of its size, whatever the model saw.
        sha256: Hexadecimal digest of the uploaded bytes.
        scale: The size at which the model saw it.
        warnings: What makes what the model saw unlike what it knows.
    """

    image: RgbImage
    sha256: str
    scale: Scale
    warnings: tuple[InputWarning, ...]

    @property
    def conditions(self) -> Conditions:
        """How the model saw it, as saved results say that."""
        return Conditions(self.scale.um_per_px, self.scale.factor, tuple(warning.code for warning in self.warnings))


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
        metrics: Told of images and pixels, and of how long an image waits to be decoded.
        limits: What a patch, and all patches at once, may cost.
        admission: The service's door, which also counts pixels; None where nobody waits at one.

    Attributes:
        limits: The same.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        workers: Workers,
        metrics: SegmentationMetrics,
        limits: PatchLimits,
        admission: Admission | None = None,
    ) -> None:
        self.limits = limits
        self._weigh = admission.weigh if admission is not None else nullcontext
        self._segmenter = segmenter
        self._mask_text = picture_text(segmenter.manifest)
        self._reader = Reader(segmenter.manifest, limits.side_px)
        self._workers = workers
        self._glancing = asyncio.Lock()
        self._metrics = metrics
        for code in WARNING_CODES:
            metrics.warnings.labels(code)  # at 0 from the start: a rate sees the first one
        # Small patches have a quarter to themselves, so that they never queue behind a crowd of large ones.
        self._small = PixelBudget(limits.pixels_at_once // 4)
        self._large = PixelBudget(limits.pixels_at_once - limits.pixels_at_once // 4)

    @property
    def manifest(self) -> ModelManifest:
        """The model's contract."""
        return self._segmenter.manifest

    @asynccontextmanager
    async def segmented(self, upload: Upload) -> AsyncIterator[SegmentedPatch]:
        """Give the segmented image in `upload`; its memory is accounted for until the block ends.

        Args:
            upload: An image file. It takes note of its size, which is not looked for again where it found no place.

        Raises:
            ImageRejected: It does not decode, or is too large, or would be at the model's pixel spacing.
            QueueFull: The service has too many pixels to see to.
            OutOfMemory: There is no memory for it now.
            InferenceFailed: The model failed on it.
            ModelNotReady: The model is stopping, or stuck.
        """
        try:
            upload.expected = upload.expected or await self._expected(upload)
            while True:
                pixels = upload.expected.pixels
                budget = self._small if pixels <= 2 * self.manifest.window_px**2 else self._large
                with self._weigh(pixels):
                    asked = time.perf_counter()
                    async with budget.hold(pixels):
                        self._metrics.stage_duration.labels("wait").observe(time.perf_counter() - asked)
                        read = partial(self._reader.read, upload, pixels)
                        found = await self._workers.run("decode", read, is_small=upload.expected.is_small)
                        if isinstance(found, ReadUpload):
                            yield await self._segment(found)
                            return
                upload.expected = found  # the first look at its header was wrong, the decoder's is not
        except MemoryError:  # of any step, or of what the block makes of the patch
            raise OutOfMemory(no_memory_to("segment this image")) from None

    async def _expected(self, upload: Upload) -> Expected:
        """Return what an upload will weigh. Of glances that are not quick the event loop has one a turn."""
        async with self._glancing:
            begun = time.perf_counter()
            try:
                glanced = self._reader.glance(upload)
            finally:
                if time.perf_counter() - begun > _QUICK_SECONDS:
                    await asyncio.sleep(0)  # those behind it in the queue, and whatever else is due, have theirs
        if glanced is not None:
            return glanced
        return await self._workers.run(None, partial(self._reader.measure, upload))

    async def _segment(self, found: ReadUpload) -> SegmentedPatch:
        image, seen = found.image, found.seen

        async def read(region: Region) -> RgbImage:
            return seen[region.slices]

        area = await segment_windows(self._segmenter, Size.of(seen), read, self._metrics)
        self._metrics.images.inc()
        for warning in found.warnings:
            self._metrics.warnings.labels(warning.code).inc()
        if seen is not image:
            area = await self._workers.run(None, partial(_brought_to, Size.of(image), area, self.manifest))
        known = {field.name: getattr(area, field.name) for field in fields(area)}
        return SegmentedPatch(**known, image=image, sha256=found.sha256, scale=found.scale, warnings=found.warnings)

    async def encode_mask(self, patch: SegmentedPatch) -> bytes:
        """Return the patch's mask as PNG, for an answer that states beside it how the model saw the patch."""
        paint = partial(paint_mask, patch.class_map, self.manifest.classes, self._mask_text)
        return await self._workers.run("encode", paint, is_small=patch.size.pixels <= SMALL_PIXELS)


def _brought_to(size: Size, area: SegmentedArea, manifest: ModelManifest) -> SegmentedArea:
    """Return what is known of an area with maps of `size`, and the fractions that those have."""
    class_map = resample_map(area.class_map, size)
    return replace(
        area,
        class_map=class_map,
        confidence=resample_map(area.confidence, size),
        fractions=tuple(count / size.pixels for count in pixel_counts(class_map, len(manifest.classes))),
    )
