"""Bounds on what a file's structure may make a decoder do, looked at before a decoder is.

A few hundred kilobytes can hold thousands of JPEG scans, each of which decodes the whole image anew, or millions of
empty segments that are walked one by one. No camera, scanner or export writes such files.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import UnreadableImage
from app.pathology.geometry import Size

_MOST_SEGMENTS = 1000
"""Segments before a JPEG's first scan, and chunks of a PNG beside its pixels."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG's frame header, which states its size."""
_INFLATED_CHUNKS = frozenset((b"zTXt", b"iTXt", b"iCCP"))
"""Of a PNG, beside its pixels."""
_PLAIN_SCANS = 3
"""One for each channel. (An EXIF preview has its own.)"""
_MOST_SCANS = 100
"""Scans of a progressive JPEG; libjpeg's own encoder writes about ten."""

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")


def looks_like_an_accepted_format(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, TIFF, BMP or WebP file."""
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


@dataclass(frozen=True, slots=True)
class Glance:
    """What the bytes of a PNG or a JPEG say of it at a glance. It is for planning: a decoder may find otherwise.

    Attributes:
        size: What the header states.
        is_plain: Whether it holds nothing that could take longer than its pixels: no text or profile that would be
            inflated, no scan after scan over the same pixels.
    """

    size: Size
    is_plain: bool


def glance(data: bytes) -> Glance | None:
    """Look at a file; None where it is no PNG or JPEG, or hides its size."""
    if data.startswith(b"\x89PNG"):
        return _glance_at_png(data)
    return _glance_at_jpeg(data) if data.startswith(b"\xff\xd8") else None


def _glance_at_png(data: bytes) -> Glance | None:
    """Source: PNG (W3C, third edition), sections 5.6 and 11.2.1."""
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    size = _size(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    return None if size is None else Glance(size, _INFLATED_CHUNKS.isdisjoint(_chunk_kinds(data)))


def _chunk_kinds(data: bytes) -> Iterator[bytes]:
    position = 8
    while position + 8 <= len(data):
        yield data[position + 4 : position + 8]
        position += 12 + int.from_bytes(data[position : position + 4])


def _glance_at_jpeg(data: bytes) -> Glance | None:
    """Source: ITU-T T.81, sections B.1.1.4 and B.2.2."""
    position = 2
    for _ in range(_MOST_SEGMENTS):
        if data[position : position + 1] != b"\xff" or len(data) < position + 9:
            return None
        marker = data[position + 1]
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", data[position + 5 : position + 9])
            size = _size(width, height)
            return None if size is None else Glance(size, data.count(b"\xff\xda") <= _PLAIN_SCANS)
        position += 1 if marker == 0xFF else 2 + max(2, int.from_bytes(data[position + 2 : position + 4]))
    return None


def _size(width_px: int, height_px: int) -> Size | None:
    return Size(width_px, height_px) if width_px and height_px else None


def check_structure(data: bytes) -> None:
    """Refuse a JPEG or PNG whose structure costs far more than its pixels.

    Raises:
        UnreadableImage: It has too many segments, chunks or scans.
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG"):
        _check_png(data)


def _check_jpeg(data: bytes) -> None:
    position, segments = 2, 0
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != b"\xda":
        segments += 1
        if segments > _MOST_SEGMENTS:
            raise UnreadableImage(f"the JPEG has more than {_MOST_SEGMENTS} segments before its pixels")
        if data[position + 1 : position + 2] == b"\xff":  # a fill byte
            position += 1
        else:
            position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4]))
    # Within a scan 0xFF is always followed by 0x00 or a restart marker, so this counts scans (and an EXIF preview's).
    if data.count(b"\xff\xda") > _MOST_SCANS:
        raise UnreadableImage(f"the JPEG has more than {_MOST_SCANS} scans")


def _check_png(data: bytes) -> None:
    others = 0
    for kind in _chunk_kinds(data):
        others += kind != b"IDAT"
        if others > _MOST_SEGMENTS:
            raise UnreadableImage(f"the PNG has more than {_MOST_SEGMENTS} chunks beside its pixels")
