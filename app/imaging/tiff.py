"""What a TIFF's tags say before its pixels are decoded: bounds on their work, and which kinds of pixels are read.

The um/px that they state is in `tiff_spacing.py`. Source, where no other is named: TIFF 6.0.
"""

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from app.errors import UnreadableImage, UnsupportedImage
from app.libraries import silence_libraries
from app.pathology.geometry import Size

TIFFS_READ = "send a TIFF with LZW, Deflate or JPEG compression"

_MOST_TAGS = 1000
_MOST_PIECES = 2**16
"""Strips or tiles: a strip for each row of the highest image, or tiles of 16 px over 4096 px squared."""
_MOST_NUMBERS = 2**18
"""In all tags: the most pieces have half as many offsets and lengths, and 16-bit RGB may have a transfer function of
3 x 2**16."""
_PIECES = frozenset((273, 279, 324, 325))
"""Tags of offsets and lengths of strips and tiles; sections 3 and 15."""
_COLOUR_MAP = 320
_KEPT_AS_BYTES = frozenset((1, 2, 7))
"""Types of a tag whose values are not made into numbers; section 2."""
_LENGTHS = frozenset((279, 325))
"""Tags of those alone."""
_SIDES = (256, 257, 322, 323)
"""Tags of the image's width and height, and of its tiles'."""
_MOST_PIXEL_BYTES = 8
"""Four channels of 16 bits."""
_WHOLE_NUMBERS = {1: "u1", 3: "u2", 4: "u4", 6: "u1", 8: "u2", 9: "u4", 16: "u8", 17: "u8"}
"""Types of a tag that libtiff takes for a length, the signed ones too; section 2, and BigTIFF's."""
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_BIG_ENDIAN_BIGTIFF = b"MM\0+"
_BIG = 43
"""The version of a BigTIFF, whose header has 16 bytes and not 8."""

_TAGS = {info.name: number for number, info in TiffTags.TAGS_V2.items()}
_PLANES, _UNCOMPRESSED, _WEBP = 2, 1, 50001
"""Of the tags PlanarConfiguration and Compression."""
_UNSIGNED = 1
_EIGHT_BITS = 2**8
_SAMPLES = {2: "signed integers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}
"""Of the tag SampleFormat: section 19, and libtiff's tiff.h."""


def check_parts(data: bytes) -> None:
    """Refuse a TIFF whose first directory, which alone is read, lists more than an image needs; pass over other files.

    Pillow takes the third byte for the version, libtiff the one that is it; they differ on big-endian BigTIFF.

    Raises:
        UnreadableImage: It has too many parts.
        UnsupportedImage: A big-endian BigTIFF, which Pillow takes for a TIFF of other tags.
    """
    if data.startswith(_BIG_ENDIAN_BIGTIFF):
        raise UnsupportedImage(f"the file is a big-endian BigTIFF, which is not read; {TIFFS_READ}")
    if data[:2] in _BYTE_ORDERS and data[2:4].strip(b"\0") in {b"*", b"+"}:
        for is_big in {data[2:3] == b"+", b"+" in data[2:4]}:
            _check_directory(data, _BYTE_ORDERS[data[:2]], is_big)


def _check_directory(data: bytes, byte_order: str, is_big: bool) -> None:
    """Source: section 2; BigTIFF has 8 bytes where that has 2 or 4."""
    where, count, entry = ("Q", "Q", "HHQ8s") if is_big else ("I", "H", "HHI4s")
    try:
        (begin,) = struct.unpack_from(byte_order + where, data, 8 if is_big else 4)
        (tags,) = struct.unpack_from(byte_order + count, data, min(begin, len(data)))
    except struct.error:  # it is not there: Pillow says so
        return
    if tags > _MOST_TAGS:
        raise UnreadableImage(f"the TIFF has more than {_MOST_TAGS} tags")
    layout = struct.Struct(byte_order + entry)
    begin += struct.calcsize(byte_order + count)
    listed = data[begin : begin + tags * layout.size]
    entries = list(layout.iter_unpack(listed[: len(listed) // layout.size * layout.size]))
    numbers, kept_bytes = 0, 0
    for tag, kind, length, _ in entries:
        if tag in _PIECES and length > _MOST_PIECES:
            raise UnreadableImage(f"the TIFF has more than {_MOST_PIECES} strips or tiles")
        if kind in _KEPT_AS_BYTES:
            kept_bytes += length
        if kind not in _KEPT_AS_BYTES or tag == _COLOUR_MAP:
            numbers += length
    if numbers > _MOST_NUMBERS:
        raise UnreadableImage(f"the TIFF has more than {_MOST_NUMBERS} numbers in its tags")
    if kept_bytes > len(data):  # of tags over the same bytes, each would have its own copy
        raise UnreadableImage("the TIFF's tags state more bytes than it has")
    _check_lengths(data, byte_order, entries)


def _check_lengths(data: bytes, byte_order: str, entries: list[tuple[int, int, int, bytes]]) -> None:
    """Refuse strips or tiles that overlap, of which each is decoded, but for as many bytes as pixels may have.

    Some writers store one blank tile for all. Of a tag that is there twice the smaller number counts.
    """
    sides: dict[int, int] = {}
    encoded_bytes = 0
    for tag, kind, length, value in entries:
        if tag in _LENGTHS:
            lengths = _whole_numbers(data, byte_order, kind, length, value)
            encoded_bytes += int(np.minimum(lengths, len(data)).sum())
        elif tag in _SIDES:
            for side in _whole_numbers(data, byte_order, kind, 1, value).tolist():
                sides[tag] = min(side, sides.get(tag, side))
    width, height, *tile = (sides.get(tag, 0) for tag in _SIDES)
    across, down = (-(-side // (step or 1)) * (step or 1) for side, step in zip((width, height), tile, strict=True))
    if encoded_bytes > len(data) + _MOST_PIXEL_BYTES * across * down:
        raise UnreadableImage("the TIFF's strips or tiles overlap")


def _whole_numbers(data: bytes, byte_order: str, kind: int, count: int, value: bytes) -> NDArray[np.uint64]:
    """Return what a tag has of them, in its own `value` or where that says; none of another type."""
    layout = np.dtype(byte_order + _WHOLE_NUMBERS.get(kind, "u8"))
    if count * layout.itemsize > len(value):
        begin = int.from_bytes(value, "little" if byte_order == "<" else "big")
        value = data[begin : begin + count * layout.itemsize]
    held = min(count, len(value) // layout.itemsize) if kind in _WHOLE_NUMBERS else 0
    return np.frombuffer(value, layout, held).astype(np.uint64)


def tags_of(file: BinaryIO) -> Mapping[int, Any]:
    """Return the tags of a TIFF's first image, also of one that Pillow does not take for one that it could open.

    Args:
        file: At its beginning.

    Raises:
        Exception: Whatever Pillow raises on damaged bytes.
    """
    silence_libraries()
    begin = file.read(8)
    byte_order = begin[:2]
    if _BIG in begin[2:4]:  # Pillow looks for it in the third byte alone, where a big-endian file does not have it
        begin = b"II+\0" + begin[4:] + file.read(8)
    tags = ImageFileDirectory_v2(begin, byte_order)
    file.seek(tags.next)
    tags.load(file)
    return tags


def check_kind(tags: Mapping[int, Any]) -> None:
    """Refuse a TIFF whose pixels are of a kind that is not read; sections 4 (BitsPerSample) and 19 (SampleFormat).

    Raises:
        UnsupportedImage: They are.
        UnreadableImage: The tags say nothing of the pixels: some are text.
    """
    if any(isinstance(bit, str | bytes) for bit in tag_values(tags, "BitsPerSample")):  # any words of it would hold it
        raise UnreadableImage("the TIFF's BitsPerSample is no number")
    bits, formats = tag_values(tags, "BitsPerSample"), set(tag_values(tags, "SampleFormat")) - {_UNSIGNED}
    if bits and formats:
        samples = _SAMPLES.get(min(formats), "numbers of an undefined kind")
        raise UnsupportedImage(
            f"the TIFF has {samples} of {bits[0]} bits a channel; send unsigned integers of 8 or 16 bits"
        )
    if set(bits) - {1, 8, 16} or (1 in bits and len(bits) > 1):
        raise UnsupportedImage(f"the TIFF has {bits[0]} bits a channel; send 8 or 16")
    if tag_values(tags, "Compression") == (_WEBP,):
        raise UnsupportedImage(f"the TIFF has WebP compression, which is not read; {TIFFS_READ}")
    in_planes = tag_values(tags, "PlanarConfiguration") == (_PLANES,) and len(bits) > 1
    if in_planes and 16 in bits and tag_values(tags, "Compression") == (_UNCOMPRESSED,):  # Pillow takes them for bytes
        raise UnsupportedImage(
            "the TIFF has 16 bits a channel in planes, uncompressed; send it pixel by pixel, or as LZW"
        )


def narrow_colours(tags: Mapping[int, Any]) -> bytes | None:
    """Return a palette's colours where its writer took them for 8 bits: all red ones, green ones and blue ones.

    They should have 16 (section 5, ColorMap). Of one whose colours are all below 256, which would all be black,
    libtiff's readers take them as they are.

    Returns:
        Bytes; None of any other palette.
    """
    colours = tag_values(tags, "ColorMap")
    return bytes(colours) if colours and max(colours) < _EIGHT_BITS else None


def stored_size(tags: Mapping[int, Any]) -> Size:
    """Return the size of the pixels as they are stored, whatever orientation the tags state.

    Pillow gives the size of the upright picture: of orientations 5 to 8 (section 8) with its sides exchanged.
    """
    return Size(*tag_values(tags, "ImageWidth"), *tag_values(tags, "ImageLength"))


def tag_values(tags: Mapping[int, Any], name: str) -> tuple[Any, ...]:
    """Return all values of a tag, by Pillow's name of it; none where it is absent."""
    value = tags.get(_TAGS[name], ())
    return value if isinstance(value, tuple) else (value,)
