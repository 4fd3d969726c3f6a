"""An upload as the model is to see it: what it will weigh, and its pixels once there is room for them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from app.imaging import decode as files
from app.imaging.appearance import appearance
from app.imaging.plausibility import InputWarning, rules_for
from app.imaging.resampling import resample_image
from app.imaging.structure import glance
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size
from app.pathology.manifest import ModelManifest
from app.segmentation.scale import FileKind, Scale, check_seen, plan_scale
from app.slides import dicom

SMALL_PIXELS = 2**17
"""Decoded in 4 ms, and painted in a quarter."""
_SMALL_FILE_BYTES = 2**20
"""So many pixels of 16-bit RGBA, uncompressed: a file of more has something else in it."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of an upload before it is decoded; a glance may be wrong.

    Attributes:
        pixels: How many it will have, as it is and as the model sees it.
        is_small: Whether to hand it to a thread would cost more than it gains: it is read in a few ms.
    """

    pixels: int
    is_small: bool


@dataclass(frozen=True, slots=True)
class ReadUpload:
    """An upload that is decoded.

    Attributes:
        image: (H, W, 3) uint8.
        seen: The same as the model sees it; `image` itself where that is how.
        sha256: Digest of the file's bytes.
        scale: The size of `seen`.
        warnings: What is odd about `seen`.
    """

    image: RgbImage
    seen: RgbImage
    sha256: str
    scale: Scale
    warnings: tuple[InputWarning, ...]


@dataclass(slots=True)
class Upload:
    """An image file as it came.

    Attributes:
        data: Its bytes.
        mpp: Its pixel spacing in um/px, as whoever sent it states; None leaves that to its DICOM header or its TIFF's
            tags, if it has such.
        expected: What is known of it already, by a glance or better.
    """

    data: bytes
    mpp: float | None = None
    expected: Expected | None = None


class Reader:
    """Reads uploads for a model.

    `measure` and `read` take time, and raise ImageRejected where the upload does not decode, is too large, or would be
    at the model's pixel spacing.

    Args:
        manifest: The model's contract.
        max_side_px: The longest side of an upload, as it is and as the model sees it.
    """

    def __init__(self, manifest: ModelManifest, max_side_px: int) -> None:
        self._model_um_per_px = manifest.um_per_px
        self._max_side_px = max_side_px
        self._rules = rules_for(manifest.stain)

    def glance(self, upload: Upload) -> Expected | None:
        """Return what the file's structure tells, at next to no cost where an encoder wrote it; None where it does not.

        Raises:
            ImageRejected: See `app.imaging.structure.glance`.
        """
        data = upload.data
        glanced = None if dicom.is_dicom(data) else glance(data)
        if glanced is None:
            return None
        size = glanced.size
        scale = plan_scale(upload.mpp, None, self._model_um_per_px, size, "file")
        if max(size.longest_px, scale.seen(size).longest_px) > self._max_side_px:
            return None
        pixels = _pixels(size, scale)
        is_small = glanced.is_plain and pixels <= SMALL_PIXELS and len(data) <= _SMALL_FILE_BYTES
        return Expected(pixels, is_small)

    def measure(self, upload: Upload) -> Expected:
        """Return what its header tells; no pixel is decoded."""
        with self._opened(upload) as (file, scale):
            return Expected(_pixels(file.size, scale), is_small=False)

    def read(self, upload: Upload, most_pixels: int) -> ReadUpload | Expected:
        """Return the image; or what its header tells, where that is more than `most_pixels`."""
        with self._opened(upload) as (file, scale):
            if (pixels := _pixels(file.size, scale)) > most_pixels:
                return Expected(pixels, is_small=False)
            image = file.pixels()
        del file  # an instance holds its encoded pixels
        size = Size.of(image)
        wanted = scale.seen(size)
        seen = image if wanted == size else resample_image(image, wanted)
        warnings = self._rules.of_patch(appearance(seen))
        return ReadUpload(image, seen, hashlib.sha256(upload.data).hexdigest(), scale, warnings)

    @contextmanager
    def _opened(self, upload: Upload) -> Iterator[tuple[files.OpenedFile | dicom.OpenedInstance, Scale]]:
        """Give the upload between its header and its pixels, and the scale at which the model will see it."""
        if dicom.is_dicom(upload.data):
            instance = dicom.opened(upload.data, self._max_side_px)
            yield instance, self._scale(instance, upload.mpp, "dicom")
        else:
            with files.opened(upload.data, self._max_side_px) as file:
                yield file, self._scale(file, upload.mpp, "file")

    def _scale(self, file: files.OpenedFile | dicom.OpenedInstance, mpp: float | None, kind: FileKind) -> Scale:
        stated = file.um_per_px() if mpp is None else None
        scale = plan_scale(mpp, stated, self._model_um_per_px, file.size, kind)
        check_seen(scale, file.size, self._max_side_px)
        return scale


def _pixels(size: Size, scale: Scale) -> int:
    seen = scale.seen(size)
    return size.pixels if seen == size else size.pixels + seen.pixels
