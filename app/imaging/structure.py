"""What a file's structure says before a decoder looks: its size, and bounds on the work that it may make one do.

A few hundred kilobytes can hold thousands of JPEG scans, each of which decodes the whole image anew, or millions of
empty segments, chunks or strips, of each of which a decoder makes an object. No camera, scanner or export writes such
files.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import UnreadableImage
from app.imaging.jpeg import SCAN, SCAN_BEGINS, jpeg_segments
from app.imaging.tiff import check_parts
from app.pathology.geometry import Size

_MOST_OTHER_CHUNKS = 1000
"""Of a PNG, beside its pixels."""
_MOST_CHUNKS = 100_000
"""Of a PNG. Encoders write 8 KB and more of pixels into each, so that the largest upload has some thousands."""
_MOST_EXIF_BYTES = 2**17
"""A JPEG's segment, in which cameras write it, holds half as much."""
_PLAIN_EXIF_BYTES = 2**12
"""340 tags, which Pillow goes through in a millisecond or two. Previews have more: a worker thread reads those."""
_CHUNK = struct.Struct(">I4s")
_INFLATED_CHUNKS = frozenset((b"zTXt", b"iTXt", b"iCCP"))
"""Of a PNG, beside its pixels."""

_GONE_THROUGH = (b"Exif\0\0", b"MPF\0", b"Photoshop 3.0\0")
"""What begins the segments of a JPEG whose parts Pillow goes through one by one when it opens the file."""
_EXIF = 0xE1
"""What follows 0xFF at the beginning of a JPEG's EXIF; CIPA DC-008, section 4.7.2."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Those of a frame header, which states the size."""
_PLAIN_SCANS = 3
"""One for each channel. (An EXIF preview has its own.)"""
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
            inflated, no crowd of chunks or tags, no scan after scan over the same pixels.
    """

    size: Size
    is_plain: bool


def glance(data: bytes) -> Glance | None:
    """Look at a file before a decoder does; None where it is no PNG or JPEG, or hides its size.

    It takes some milliseconds for the largest file that an encoder writes, and tens of them at most for any other.

    Raises:
        UnreadableImage: It would cost a decoder far more than its pixels: a JPEG, PNG or TIFF of too many parts.
        UnsupportedImage: A TIFF of a form that is not read.
    """
    if data.startswith(b"\x89PNG"):
        return _glance_at_png(data)
    if data.startswith(b"\xff\xd8"):
        return _glance_at_jpeg(data)
    check_parts(data)
    return None


def check_exif(length: int) -> None:
    """Refuse metadata of so many bytes, which may state an orientation and take gigabytes once it is read.

    Raises:
        UnreadableImage: They are too many.
    """
    if length > _MOST_EXIF_BYTES:
        raise UnreadableImage(f"the image's EXIF has more than {_MOST_EXIF_BYTES // 1024} KiB; send it without")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Give each chunk's kind, and where its data begins and ends, up to IEND or the end of the bytes.

    Source: PNG (W3C, third edition), section 5.3.

    Raises:
        UnreadableImage: They are too many.
    """
    position, last = 8, len(data) - 8
    for _ in range(_MOST_CHUNKS):
        if position > last:
            return
        length, kind = _CHUNK.unpack_from(data, position)
        end = position + 8 + length
        yield kind, position + 8, end
        if kind == b"IEND":
            return
        position = end + 4
    raise UnreadableImage(f"the PNG has more than {_MOST_CHUNKS} chunks")


def _glance_at_png(data: bytes) -> Glance | None:
    """Source: PNG (W3C, third edition), sections 5.6 and 11.2.1."""
    chunks, others, is_plain = 0, 0, True
    for kind, begin, end in png_chunks(data):
        chunks += 1
        if kind != b"IDAT":
            others += 1
            exif_bytes = _exif_bytes(data, kind, begin, end)
            check_exif(exif_bytes)
            is_plain = is_plain and kind not in _INFLATED_CHUNKS and exif_bytes <= _PLAIN_EXIF_BYTES
            if others > _MOST_OTHER_CHUNKS:
                raise UnreadableImage(f"the PNG has more than {_MOST_OTHER_CHUNKS} chunks beside its pixels")
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    size = _size(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    return None if size is None else Glance(size, is_plain and chunks <= _MOST_OTHER_CHUNKS)


def _exif_bytes(data: bytes, kind: bytes, begin: int, end: int) -> int:
    """Return how many bytes of EXIF a PNG's chunk holds; Pillow takes uncompressed texts of two names for it too."""
    if kind == b"eXIf" or (kind == b"tEXt" and data.startswith(b"exif\0", begin)):
        return end - begin
    if kind == b"tEXt" and data.startswith(b"Raw profile type exif\0", begin):
        return (end - begin) // 2  # two letters a byte
    return 0


def _glance_at_jpeg(data: bytes) -> Glance | None:
    """Source: ITU-T T.81, section B.2.2."""
    size, exif_bytes, gone_through_bytes = None, 0, 0
    for marker, begin, end in jpeg_segments(data):
        if marker == SCAN:
            break
        if marker in _FRAMES and size is None and begin + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, begin + 5)
            size = _size(width, height)
        elif data.startswith(_GONE_THROUGH, begin + 4):
            gone_through_bytes += end - begin
            if marker == _EXIF and data.startswith(b"Exif\0\0", begin + 4):  # Pillow puts them together
                exif_bytes += end - begin
                check_exif(exif_bytes)
    scans = data.count(SCAN_BEGINS)  # and whatever looks like one, in a preview or behind the end
    return None if size is None else Glance(size, scans <= _PLAIN_SCANS and gone_through_bytes <= _PLAIN_EXIF_BYTES)


def _size(width_px: int, height_px: int) -> Size | None:
    return Size(width_px, height_px) if width_px and height_px else None
