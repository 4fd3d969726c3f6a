"""PNG files of one block of pixels, put together and taken apart. Source: PNG (W3C, third edition), sections 5 and 11.

What a chunk says of colours and text is Pillow's to read; here are only the bytes between the header and the end.
"""

import struct

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from app.imaging.structure import png_chunks
from app.pathology.geometry import Size

GREY, RGB, PALETTE, RGB_AND_OPACITY = 0, 2, 3, 6
"""Colour types."""
_UP = 2
"""The filter that takes from each byte the one above; section 9.2."""
_COMPRESSION = 1
"""libdeflate's level. At higher ones it takes most of an answer's time, for files that are hardly smaller."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def indexed_png(indices: NDArray[np.uint8], palette: bytes, text: bytes = b"") -> bytes:
    """Return a palette PNG of (H, W) uint8 `indices`; `palette` is red, green and blue of each, 8 bits each.

    Up to four colours take 2 bits a pixel, a quarter of the time and two thirds of the bytes; more of them take 8.
    `text` is chunks of it, as `text_chunk` makes them.
    """
    height, width = indices.shape
    is_narrow = len(palette) <= 4 * 3
    values = _four_a_byte(indices) if is_narrow else indices
    rows = np.zeros((height, 1 + values.shape[1]), np.uint8)  # a filter of 0: indices are no quantities
    rows[:, 1:] = values
    return png_file(Size(width, height), 2 if is_narrow else 8, PALETTE, _compressed(rows), palette, text)


def picture_png(pixels: NDArray[np.uint8], text: bytes = b"") -> bytes:
    """Return an RGB PNG of (H, W, 3), or a greyscale one of (H, W), uint8 `pixels`; each row less the one above.

    `text` is chunks of it, as `text_chunk` makes them.
    """
    height, width = pixels.shape[:2]
    values = pixels.reshape(height, -1)
    rows = np.empty((height, 1 + values.shape[1]), np.uint8)
    rows[:, 0] = _UP
    rows[0, 1:] = values[0]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    return png_file(Size(width, height), 8, GREY if pixels.ndim == 2 else RGB, _compressed(rows), text=text)


def png_file(
    size: Size,
    depth: int,
    colour_type: int,
    zlib_stream: bytes | bytearray,
    palette: bytes = b"",
    text: bytes = b"",
) -> bytes:
    """Return a PNG.

    Args:
        size: The image's.
        depth: Bits a channel, or an index.
        colour_type: One of those above.
        zlib_stream: The rows, each behind the byte of its filter.
        palette: Red, green and blue of each index, 8 bits each.
        text: Chunks of text.
    """
    header = struct.pack(">IIBBBBB", size.width_px, size.height_px, depth, colour_type, 0, 0, 0)
    colours = _chunk(b"PLTE", palette) if palette else b""
    pixels, end = _chunk(b"IDAT", zlib_stream), _chunk(b"IEND", b"")
    return b"".join((_SIGNATURE, _chunk(b"IHDR", header), colours, text, pixels, end))


def text_chunk(keyword: str, text: str) -> bytes:
    """Return a chunk of text in any letters (iTXt, section 11.3.3), not compressed and of no stated language.

    Args:
        keyword: One of those that the section names.
        text: What it says.
    """
    return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode())


def zlib_stream_at(data: bytes, position: int) -> bytes | None:
    """Return what the pixels' chunks hold, from the first one's data at `position` on, if nothing but the end follows.

    Their checksums are left to whoever inflates the stream, which has its own.
    """
    parts: list[bytes] = []
    for kind, begin, end in png_chunks(data):
        if kind == b"IDAT":
            if not parts and begin != position:
                return None
            parts.append(data[begin:end])
        elif parts:
            return b"".join(parts) if kind == b"IEND" and begin == end else None
    return None


def _four_a_byte(indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, ceil(W / 4)) uint8, the leftmost index in the highest two bits."""
    height, width = indices.shape
    whole = np.zeros((height, -(-width // 4) * 4), np.uint8) if width % 4 else indices
    if width % 4:
        whole[:, :width] = indices
    fours = np.ascontiguousarray(whole).view("<u4")
    # One product brings the four indices, which lie 8 bits apart, side by side into the highest byte.
    return ((fours * np.uint32(1 << 30 | 1 << 20 | 1 << 10 | 1)) >> 24).astype(np.uint8)


def _compressed(rows: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.deflate_encode(rows, _COMPRESSION))  # type: ignore[arg-type]  # it takes any buffer


def _chunk(kind: bytes, data: bytes | bytearray) -> bytes:
    checksum = imagecodecs.deflate_crc32(data, imagecodecs.deflate_crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))
