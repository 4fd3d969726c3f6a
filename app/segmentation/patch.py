"""One patch, from uploaded bytes to class map, labels and pictures."""

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeVar

from app.imaging import decode as files
from app.imaging.paint import paint_mask
from app.imaging.plausibility import WARNING_CODES, InputWarning, appearance, input_warnings
from app.imaging.resampling import resample_image, resample_map
from app.imaging.structure import Glance, glance
from app.inference.segmenter import Segmenter
from app.interop.provenance import Conditions, picture_text
from app.pathology.arrays import RgbImage
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Region, Size
from app.pathology.manifest import ModelManifest
from app.segmentation.admission import Admission
from app.segmentation.budget import PixelBudget
from app.segmentation.scale import Scale, check_seen, plan_scale
from app.segmentation.windows import SegmentedArea, segment_windows
from app.segmentation.workers import Workers
from app.slides import dicom
from app.telemetry.metrics import SegmentationMetrics

_T = TypeVar("_T")

_SMALL_PIXELS = 2**17
"""Decoded in 4 ms, and painted in a quarter."""
_SMALL_FILE_BYTES = 2**20
"""So many pixels of 16-bit RGBA, uncompressed: a file of more has something else in it."""
_SMALL_ANSWER_BYTES = 2**18
"""Put together in some 0.3 ms."""


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
        metrics: Told of images and pixels.
        limits: What a patch, and all patches at once, may cost.
        admission: The service's door, which also counts pixels; None where nobody waits at one.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        workers: Workers,
        metrics: SegmentationMetrics,
        limits: PatchLimits,
        admission: Admission | None = None,
    ) -> None:
        self._weigh = admission.weigh if admission is not None else nullcontext
        self._segmenter = segmenter
        self._mask_text = picture_text(segmenter.manifest)
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
            mpp: Its pixel spacing in um/px; None leaves that to its DICOM header or its TIFF's tags, if it has such.

        Raises:
            ImageRejected: It does not decode, or is too large, or would be at the model's pixel spacing.
            QueueFull: The service has too many pixels to see to.
            OutOfMemory: There is no memory for it now.
            InferenceFailed: The model failed on it.
            ModelNotReady: The model is stopping.
        """
        model_um_per_px = self.manifest.um_per_px
        seen_at_once = None if dicom.is_dicom(data) else glance(data)
        needed = _pixels_stated(seen_at_once, mpp, model_um_per_px, self._max_side_px)
        is_small = (
            seen_at_once is not None
            and seen_at_once.is_plain
            and (needed or 0) <= _SMALL_PIXELS
            and len(data) <= _SMALL_FILE_BYTES
        )
        if needed is None:
            measure = partial(_measured, data, mpp, model_um_per_px, self._max_side_px)
            needed = (await self._workers.run(None, measure)).pixels
        while True:
            budget = self._small if needed <= 2 * self.manifest.window_px**2 else self._large
            with self._weigh(needed):
                async with budget.hold(needed):
                    read = partial(_read, data, mpp, model_um_per_px, self._max_side_px, needed)
                    found = await self._workers.run("decode", read, is_small=is_small)
                    if isinstance(found, _Read):
                        yield await self._segment(found)
                        return
            needed = found.pixels  # the first look at its header was wrong, the decoder's is not

    async def _segment(self, found: "_Read") -> SegmentedPatch:
        image, seen = found.image, found.seen

        async def read(region: Region) -> RgbImage:
            return seen[region.slices]

        area = await segment_windows(self._segmenter, _size_of(seen), read, self._metrics)
        self._metrics.images.inc()
        for warning in found.warnings:
            self._metrics.warnings.labels(warning.code).inc()
        if seen is not image:
            area = await self._workers.run(None, partial(_brought_to, _size_of(image), area, self.manifest))
        known = {field.name: getattr(area, field.name) for field in fields(area)}
        return SegmentedPatch(**known, image=image, sha256=found.sha256, scale=found.scale, warnings=found.warnings)

    async def encode(self, work: Callable[[], _T]) -> _T:
        """Return what `work`, which makes an answer's bytes of a patch, returns; it runs in a worker thread."""
        return await self._workers.run("encode", work)

    async def put_together(self, work: Callable[[], _T], size_bytes: int) -> _T:
        """Return what `work` returns, an answer of about so many bytes; in a worker thread unless they are few."""
        return work() if size_bytes <= _SMALL_ANSWER_BYTES else await self._workers.run(None, work)

    async def encode_mask(self, patch: SegmentedPatch) -> bytes:
        """Return the patch's mask as PNG, for an answer that states beside it how the model saw the patch."""
        paint = partial(paint_mask, patch.class_map, self.manifest.classes, self._mask_text)
        return await self._workers.run("encode", paint, is_small=patch.size.pixels <= _SMALL_PIXELS)


@dataclass(frozen=True, slots=True)
class _Measured:
    """An image that is not decoded yet.

    Attributes:
        scale: The size at which the model will see it.
        pixels: How many it will have, as it is and as the model sees it.
    """

    scale: Scale
    pixels: int


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that is.

    Attributes:
        image: (H, W, 3) uint8.
        seen: The same as the model sees it; `image` itself where that is how.
        sha256: Digest of the file's bytes.
        scale: The size of `seen`.
        warnings: What is unlike H&E in it.
    """

    image: RgbImage
    seen: RgbImage
    sha256: str
    scale: Scale
    warnings: tuple[InputWarning, ...]


def _pixels_stated(
    seen_at_once: Glance | None, mpp: float | None, model_um_per_px: float | None, max_side_px: int
) -> int | None:
    """Return what `_measured` will say, perhaps wrongly; None where a glance does not tell."""
    if seen_at_once is None or max(seen_at_once.size.width_px, seen_at_once.size.height_px) > max_side_px:
        return None
    size = seen_at_once.size
    scale = plan_scale(mpp, None, model_um_per_px, size, "file")
    seen = scale.seen(size)
    return None if max(seen.width_px, seen.height_px) > max_side_px else _pixels(size, scale)


def _measured(data: bytes, mpp: float | None, model_um_per_px: float | None, max_side_px: int) -> _Measured:
    if dicom.is_dicom(data):
        size, in_header = dicom.read_extent(data, max_side_px)
        return _measure(size, plan_scale(mpp, in_header, model_um_per_px, size, "dicom"), max_side_px)
    with files.opened(data, max_side_px) as file:
        return _measured_file(file, mpp, model_um_per_px, max_side_px)


def _measured_file(
    file: files.OpenedFile, mpp: float | None, model_um_per_px: float | None, max_side_px: int
) -> _Measured:
    in_file = file.um_per_px() if mpp is None else None
    return _measure(file.size, plan_scale(mpp, in_file, model_um_per_px, file.size, "file"), max_side_px)


def _measure(size: Size, scale: Scale, max_side_px: int) -> _Measured:
    check_seen(scale, size, max_side_px)
    return _Measured(scale, _pixels(size, scale))


def _pixels(size: Size, scale: Scale) -> int:
    seen = scale.seen(size)
    return size.pixels if seen == size else size.pixels + seen.pixels


def _read(
    data: bytes, mpp: float | None, model_um_per_px: float | None, max_side_px: int, most_pixels: int
) -> _Read | _Measured:
    """Return the image in `data`, or only its measure where it has more than `most_pixels`."""
    if dicom.is_dicom(data):
        measured = _measured(data, mpp, model_um_per_px, max_side_px)
        if measured.pixels > most_pixels:
            return measured
        image = dicom.decode(data, max_side_px)
    else:
        with files.opened(data, max_side_px) as file:
            measured = _measured_file(file, mpp, model_um_per_px, max_side_px)
            if measured.pixels > most_pixels:
                return measured
            image = file.pixels()
    size = _size_of(image)
    wanted = measured.scale.seen(size)
    seen = image if wanted == size else resample_image(image, wanted)
    warnings = input_warnings(appearance(seen))
    return _Read(image, seen, hashlib.sha256(data).hexdigest(), measured.scale, warnings)


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
