"""The pixels of the commonest files, faster than by Pillow and the same: docs/decisions/0012.

Pillow has read the header before and stays the reference. Whatever is not plainly whole and plain is left to it, and so
is what to say of a file that does not decode.
"""

import struct
from collections.abc import Callable

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

from app.imaging import png
from app.imaging.jpeg import END, SCAN, jpeg_segments
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

_NOT_PLAIN = frozenset(
    ("interlace", "transparency", "loop", "exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp")
)
"""What Pillow notes of a PNG's chunks that decides on pixels, frames or orientation."""
_COLOUR_TYPES = {"L": png.GREY, "RGB": png.RGB, "RGBA": png.RGB_AND_OPACITY}
"""Of Pillow's names for one, three and four channels of 8 bits."""
_STORED_BYTES = 65_535
"""In a block that is not compressed; RFC 1951, section 3.2.4."""

_SEGMENTS = frozenset((0xC0, 0xC1, 0xC2, 0xC4, SCAN, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE))
"""Baseline and progressive frames of Huffman codes, their tables and scans, notes; ITU-T T.81, table B.1."""


def common_pixels(data: bytes, image: ImageFile.ImageFile) -> RgbImage | None:
    """Return what Pillow would make of a common file that is whole; None where it is to be asked.

    Args:
        data: The file's bytes.
        image: The same, opened by Pillow and not loaded, of an orientation of 1 or none.

    Returns:
        (H, W, 3) uint8, or None.
    """
    decoder = _DECODERS.get(image.format or "")
    if decoder is None or image.mode not in _COLOUR_TYPES or len(image.tile) != 1:
        return None
    try:
        pixels = decoder(data, image)
    except RuntimeError:  # what the codecs raise for damaged data: Pillow says whether it decodes, and what is wrong
        return None
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return None
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 4:
        return np.ascontiguousarray(pixels[..., :3]) if (pixels[..., 3] == 255).all() else None
    return pixels


def _png_pixels(data: bytes, image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    tile = image.tile[0]
    if tile.codec_name != "zip" or tile.args != image.mode or not _NOT_PLAIN.isdisjoint(image.info):
        return None
    compressed = png.zlib_stream_at(data, tile.offset)
    if compressed is None:
        return None
    # Inflating takes most of the time, and libpng's own zlib twice as long for it; libpng then undoes the filters.
    length = image.height * (1 + image.width * len(image.getbands()))
    rows = imagecodecs.zlibng_decode(compressed, out=length)
    if len(rows) != length:
        return None
    stored = _stored(rows, checksum=compressed[-4:])
    file = png.png_file(Size(*image.size), 8, _COLOUR_TYPES[image.mode], stored)
    return imagecodecs.png_decode(file)


def _stored(data: bytes | bytearray, checksum: bytes) -> bytes:
    """Return a zlib stream of `data`, uncompressed; RFC 1950 and 1951."""
    parts: list[bytes | memoryview] = [b"\x78\x01"]
    view = memoryview(data)
    for start in range(0, len(data), _STORED_BYTES):
        block = view[start : start + _STORED_BYTES]
        is_last = start + _STORED_BYTES >= len(data)
        parts += struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block
    return b"".join((*parts, checksum))


def _jpeg_pixels(data: bytes, image: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    # The same libjpeg-turbo makes the same pixels; but at the end of a truncated file, where Pillow refuses, this one
    # goes on as if the rest were grey. So the file's segments must lead to its end.
    is_plain = image.tile[0].codec_name == "jpeg" and _leads_to_its_end(data)
    return imagecodecs.jpeg8_decode(data) if is_plain else None


def _leads_to_its_end(data: bytes) -> bool:
    following: int | None = 2
    for marker, begin, end in jpeg_segments(data):
        if following not in {None, begin}:
            return False
        if marker == END:
            return end == len(data)
        if marker not in _SEGMENTS:
            return False
        following = None if marker == SCAN else end
    return False


_DECODERS: dict[str, Callable[[bytes, ImageFile.ImageFile], NDArray[np.uint8] | None]] = {
    "PNG": _png_pixels,
    "JPEG": _jpeg_pixels,
}
