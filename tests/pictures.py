"""Images for tests, files of them that no library writes, and reading the ones that come back."""

import base64
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from app.pathology.arrays import RgbImage

RED, GREEN, BLUE, WHITE, ORANGE = (180, 20, 20), (20, 180, 20), (20, 20, 180), (255, 255, 255), (243, 152, 0)


def plain(color: tuple[int, int, int], width: int, height: int) -> RgbImage:
    return np.full((height, width, 3), color, np.uint8)


def noise(width: int, height: int, seed: int = 0) -> RgbImage:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def quarters(width: int, height: int) -> RgbImage:
    """Tumor top left, stroma top right, normal bottom left, background bottom right, for the colour segmenter."""
    image = plain(WHITE, width, height)
    image[: height // 2, : width // 2] = BLUE
    image[: height // 2, width // 2 :] = GREEN
    image[height // 2 :, : width // 2] = ORANGE
    return image


def encoded(image: np.ndarray | Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, file_format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return metadata that states an orientation alone (CIPA DC-008, section 4.6.5)."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


AFTER_HEADER, BEFORE_END = 33, -12
"""Places of a PNG for another chunk."""


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes, at: int = AFTER_HEADER) -> bytes:
    return png[:at] + png_chunk(kind, data) + png[at:]


def png_of(
    size: tuple[int, int], depth: int, colour_type: int, rows: bytes, *chunks: bytes, interlaced: bool = False
) -> bytes:
    """A PNG that says of itself what it is told to (W3C, third edition, section 11).

    Args:
        size: Width and height, in px.
        depth: Bits a channel.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA.
        rows: Before compression, each behind the byte of its filter.
        chunks: What comes before them.
        interlaced: By Adam7.
    """
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, interlaced)
    parts = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows, 1)), png_chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def unfiltered(pixels: np.ndarray) -> bytes:
    """Return a PNG's rows of (H, W) or (H, W, channels) uint8 or uint16, without a filter."""
    return b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)


SHORT, LONG = 3, 4


def tiff_of(entries: Mapping[int, tuple[int, int, int]], pixels: bytes = bytes(64), following: int = 0) -> bytes:
    """A little-endian TIFF of one strip, whose directory has these entries: type, count and value, filed by their tag.

    Where they do not say otherwise, it is 8x8 px, grey, 8 bits (TIFF 6.0, section 4).

    Args:
        entries: Of the directory.
        pixels: The strip, from byte 8 on.
        following: Where the next directory lies.
    """
    plainly = {256: (LONG, 1, 8), 257: (LONG, 1, 8), 258: (SHORT, 1, 8), 259: (SHORT, 1, 1), 262: (SHORT, 1, 1)}
    plainly |= {273: (LONG, 1, 8), 277: (SHORT, 1, 1), 278: (LONG, 1, 8), 279: (LONG, 1, len(pixels))}
    directory = sorted({**plainly, **entries}.items())
    text = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(directory))
    text += b"".join(struct.pack("<HHII", number, *entry) for number, entry in directory)
    return text + struct.pack("<I", following)


def grey_tiff(size: tuple[int, int], bits: int, pixels: bytes, *, counts_from_white: bool = False) -> bytes:
    width, height = size
    entries = {256: (LONG, 1, width), 257: (LONG, 1, height), 258: (SHORT, 1, bits), 278: (LONG, 1, height)}
    return tiff_of({**entries, 262: (SHORT, 1, 0 if counts_from_white else 1)}, pixels)


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    image.load()
    return image


def from_base64(picture: dict[str, Any]) -> Image.Image:
    return opened(base64.b64decode(picture["base64"], validate=True))
