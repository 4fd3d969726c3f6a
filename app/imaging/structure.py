"""What a file's structure says before a decoder looks: its size, and bounds on the work that it may make one do.

A few hundred kilobytes can hold thousands of JPEG scans, each of which decodes the whole image anew, or millions of
empty segments, chunks or strips, of each of which a decoder makes an object. No camera, scanner or export writes such
files.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import UnreadableImage
from app.imaging.tiff import check_parts
from app.pathology.geometry import Size

_MOST_SEGMENTS = 1000
"""Segments before a JPEG's first scan, and chunks of a PNG beside its pixels."""
_MOST_CHUNKS = 100_000
"""Of a PNG. Encoders write 8 KB and more of pixels into each, so that the largest upload has some thousands."""
_MOST_STRAY_BYTES = 2**16
"""Between a JPEG's segments, where none should be. Pillow goes through them one by one."""
_MOST_EXIF_BYTES = 2**17
"""A JPEG's segment, in which cameras write it, holds half as much."""
_PLAIN_EXIF_BYTES = 2**12
"""340 tags, which Pillow goes through in a millisecond or two. Previews have more: a worker thread reads those."""
_CHUNK = struct.Struct(">I4s")
_INFLATED_CHUNKS = frozenset((b"zTXt", b"iTXt", b"iCCP"))
"""Of a PNG, beside its pixels."""

_GONE_THROUGH = (b"Exif\0\0", b"MPF\0", b"Photoshop 3.0\0")
"""What begins the segments of a JPEG whose parts Pillow goes through one by one when it opens the file."""
_LEAST_MARKER, _EXIF, SCAN, END, _FILL = 0xC0, 0xE1, 0xDA, 0xD9, 0xFF
"""What follows 0xFF in a JPEG; ITU-T T.81, table B.1, and CIPA DC-008, section 4.7.2."""
_LAST_END = 2**24
"""Bytes within which a JPEG's end is looked for, in 0.1 s at most. A phone's photo of 4096 px has 3 to 10 MB."""
_SCAN_BEGINS = bytes((_FILL, SCAN))
"""Within a scan 0xFF is followed by something else."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Those of a frame header, which states the size."""
_BARE = frozenset((0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
"""Those that Pillow takes for markers without a segment, and what is no marker."""
_AFTER_A_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""The next marker: within a scan 0xFF is followed by 0x00 or is a restart."""
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


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Give each segment's marker, where that begins, and where the segment ends: a scan's before its pixels.

    Up to the first scan these are the segments that Pillow sees, which goes over stray bytes. Source: ITU-T T.81,
    section B.1.1.

    Raises:
        UnreadableImage: There is too much before the first scan.
    """
    position, stray, has_pixels = 2, 0, False
    for _ in range(_MOST_SEGMENTS + 1):
        begin = data.find(b"\xff", position)
        if begin != position:
            stray += (begin if begin >= 0 else len(data)) - position
            if stray > _MOST_STRAY_BYTES and not has_pixels:
                raise UnreadableImage(f"the JPEG has more than {_MOST_STRAY_BYTES // 1024} KiB between its segments")
        if begin < 0 or begin + 2 > len(data):
            return
        marker = data[begin + 1]
        if 0 < marker < _LEAST_MARKER:
            return
        if marker == _FILL:
            position = begin + 1
        elif marker in _BARE:
            position = begin + 2
        else:
            position = begin + 2 + max(2, int.from_bytes(data[begin + 2 : begin + 4]))
        yield marker, begin, position
        if marker == SCAN:
            has_pixels = True
            following = _AFTER_A_SCAN.search(data, position)
            position = len(data) if following is None else following.start()
    if not has_pixels:
        raise UnreadableImage(f"the JPEG has more than {_MOST_SEGMENTS} segments before its pixels")


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
            if others > _MOST_SEGMENTS:
                raise UnreadableImage(f"the PNG has more than {_MOST_SEGMENTS} chunks beside its pixels")
    if data[12:16] != b"IHDR" or len(data) < 24:
        return None
    size = _size(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]))
    return None if size is None else Glance(size, is_plain and chunks <= _MOST_SEGMENTS)


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
    scans = data.count(_SCAN_BEGINS)  # and whatever looks like one, in a preview or behind the end
    return None if size is None else Glance(size, scans <= _PLAIN_SCANS and gone_through_bytes <= _PLAIN_EXIF_BYTES)


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of more scans than encoders write; pass over other files. It takes 0.1 s at most.

    Raises:
        UnreadableImage: It has too many.
    """
    is_jpeg = data.startswith(b"\xff\xd8")
    if is_jpeg and data.count(_SCAN_BEGINS) > _MOST_SCANS and _decoded_scans(data) > _MOST_SCANS:
        raise UnreadableImage(f"the JPEG has more than {_MOST_SCANS} scans")


def _decoded_scans(data: bytes) -> int:
    """Return how many scans a decoder goes through at most: those before the end of the image.

    Behind it phones put previews and films, where chance writes a scan's marker every 64 KiB. Where the segments do not
    lead to an end, all of the file counts. An end before the first scan is none: Pillow goes over it.
    """
    scans = 0
    for marker, _, _ in jpeg_segments(data[:_LAST_END]):
        scans += marker == SCAN
        if marker == END and scans:
            return scans
    return data.count(_SCAN_BEGINS)


def _size(width_px: int, height_px: int) -> Size | None:
    return Size(width_px, height_px) if width_px and height_px else None
