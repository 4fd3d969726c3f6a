"""What is posted: real tissue, CC0, since how long a file takes to decode depends on what it shows."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from app.pathology.arrays import RgbImage
from benchmarks.serving.servers import ROOT

PATCH_PX = 224
BIG_PX = 4096
_CROP = ROOT / "examples" / "patches" / "cmu1-skin-1.png"
_FROM_PX = 16
_SLIDE = ROOT / "examples" / "slides" / "cmu1-skin.jpg"
_SLIDE_BOX = (600, 300, 600 + 512, 300 + 512)
_JPEG_QUALITY = 90
_BOUNDARY = "patch-boundary-7d1c0e"


@dataclass(frozen=True, slots=True)
class Upload:
    """A body to post.

    Attributes:
        file: Where it lies.
        media_type: What it is declared as.
        images: How many images it holds.
    """

    file: Path
    media_type: str
    images: int = 1


def patch() -> RgbImage:
    """Return (224, 224, 3) uint8 of dense tissue."""
    with Image.open(_CROP) as image:
        end = _FROM_PX + PATCH_PX
        return np.array(image.convert("RGB").crop((_FROM_PX, _FROM_PX, end, end)))


def big_patch() -> RgbImage:
    """Return (4096, 4096, 3) uint8: a crop of tissue and its mirror images, edge to edge."""
    with Image.open(_SLIDE) as image:
        crop = np.array(image.convert("RGB").crop(_SLIDE_BOX))
    wide = np.concatenate([crop, crop[:, ::-1]], axis=1)
    cell = np.concatenate([wide, wide[::-1]], axis=0)
    times = BIG_PX // cell.shape[0]
    return np.tile(cell, (times, times, 1))


def write_png(folder: Path, name: str, image: RgbImage) -> Upload:
    """Write a PNG as Pillow does by default."""
    return _written(folder / f"{name}.png", _encoded(image, "PNG"), "image/png")


def write_jpeg(folder: Path, name: str, image: RgbImage) -> Upload:
    """Write a JPEG of quality 90."""
    return _written(folder / f"{name}.jpg", _encoded(image, "JPEG", quality=_JPEG_QUALITY), "image/jpeg")


def write_form(folder: Path, upload: Upload, copies: int) -> Upload:
    """Write a form with a file `copies` times, as RFC 7578 has it."""
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{upload.file.name}"\r\n'
        f"Content-Type: {upload.media_type}\r\n\r\n"
    )
    part = head.encode() + upload.file.read_bytes() + b"\r\n"
    body = copies * part + f"--{_BOUNDARY}--\r\n".encode()
    media_type = f"multipart/form-data; boundary={_BOUNDARY}"
    return _written(folder / f"{upload.file.name}-{copies}.form", body, media_type, copies)


def _written(file: Path, content: bytes, media_type: str, images: int = 1) -> Upload:
    file.write_bytes(content)
    return Upload(file, media_type, images)


def _encoded(image: RgbImage, name: str, **options: int) -> bytes:
    file = BytesIO()
    Image.fromarray(image).save(file, name, **options)
    return file.getvalue()
