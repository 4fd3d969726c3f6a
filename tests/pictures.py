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


def tiles_over(size: int, tile: bytes, compression: int, *, side: int = 16, lengths: bytes = b"") -> bytes:
    """A TIFF of `size` px squared, RGB, all of whose tiles of `side` px are the same bytes (TIFF 6.0, section 15).

    Args:
        size: In px.
        tile: Compressed.
        compression: By the number that the tag of it has.
        side: In px.
        lengths: Another number for each tile, 4 bytes each.
    """
    count = (-(-size // side)) ** 2
    lengths = lengths or struct.pack("<I", len(tile)) * count
    data = tile + bytes(len(tile) % 2)
    at = 8 + len(data)
    entries = {256: (LONG, 1, size), 257: (LONG, 1, size), 258: (SHORT, 3, at + 8 * count), 277: (SHORT, 1, 3)}
    entries |= {259: (SHORT, 1, compression), 262: (SHORT, 1, 2), 322: (LONG, 1, side), 323: (LONG, 1, side)}
    places = (at, at + 4 * count) if count > 1 else (8, len(tile))
    entries |= {324: (LONG, count, places[0]), 325: (LONG, count, places[1])}
    data += struct.pack("<I", 8) * count + lengths + struct.pack("<3H", 8, 8, 8)
    file = tiff_of(entries, data)
    return without_tags(file, 8 + len(data), (273, 278, 279))


def without_tags(tiff: bytes, at: int, left_out: tuple[int, ...]) -> bytes:
    """A little-endian TIFF whose directory, which is its end, lacks some tags."""
    (count,) = struct.unpack_from("<H", tiff, at)
    entries = [tiff[at + 2 + 12 * number :][:12] for number in range(count)]
    kept = [entry for entry in entries if struct.unpack_from("<H", entry)[0] not in left_out]
    return tiff[:at] + struct.pack("<H", len(kept)) + b"".join(kept) + bytes(4)


def run_length_bmp(size: tuple[int, int], codes: bytes) -> bytes:
    """A BMP of RLE8, grey, of these codes."""
    begin = 14 + 40 + 1024
    palette = b"".join(bytes((grey, grey, grey, 0)) for grey in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(codes), 2835, 2835, 256, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(codes), 0, 0, begin) + header + palette + codes


def codestream_of(
    side: int,
    levels: int = 0,
    *,
    precinct: int = 15,
    block: int = 4,
    tile: int = 0,
    layers: int = 1,
    channels: int = 3,
    main: bytes = b"",
    tiles: bytes = b"",
) -> bytes:
    """A JPEG 2000 codestream of `side` px squared and no pixels, cut as it is told (ITU-T T.800, annex A).

    Args:
        side: In px.
        levels: Of decomposition.
        precinct: Exponent of 2 of their sides at each level.
        block: The same of code-blocks, less 2.
        tile: Their side in px; 0 for one tile.
        layers: Of quality.
        channels: Of the image.
        main: Segments at the end of the main header.
        tiles: The same of a tile's header.
    """
    sides = struct.pack(">9IH", 0, side, side, 0, 0, tile or side, tile or side, 0, 0, channels)[2:]
    style = struct.pack(">BBHB", 1, 0, layers, channels == 3) + coding_style(levels, precinct, block)
    quantization = b"\x40" + bytes((64,)) * (1 + 3 * levels)
    header = jpeg_2000_segment(0xFF51, sides + b"\7\1\1" * channels) + jpeg_2000_segment(0xFF52, style)
    header += jpeg_2000_segment(0xFF5C, quantization) + main
    first = jpeg_2000_segment(0xFF90, struct.pack(">HIBB", 0, 12 + len(tiles) + 2 + 64, 0, 1))
    return b"\xff\x4f" + header + first + tiles + b"\xff\x93" + bytes(64) + b"\xff\xd9"


def coding_style(levels: int, precinct: int, block: int) -> bytes:
    """What a style of coding is from the number of levels on."""
    return struct.pack("BBBBB", levels, block, block, 0, 1) + bytes((precinct | precinct << 4,)) * (levels + 1)


def jpeg_2000_segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, 2 + len(content)) + content


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    image.load()
    return image


def from_base64(picture: dict[str, Any]) -> Image.Image:
    return opened(base64.b64decode(picture["base64"], validate=True))
