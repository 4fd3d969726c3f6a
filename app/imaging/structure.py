"""What a file's structure says before a decoder looks: its size, and bounds on the work that it may make one do.

A few hundred kilobytes can hold thousands of JPEG scans, each of which decodes the whole image anew, or millions of
empty segments, chunks or strips, of each of which a decoder makes an object. No camera, scanner or export writes such
files.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.errors import UnreadableImage, UnsupportedImage
from app.pathology.geometry import Size

_MOST_SEGMENTS = 1000
"""Segments before a JPEG's first scan, chunks of a PNG beside its pixels, and tags of a TIFF."""
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

_MOST_PIECES = 2**16
"""Strips or tiles of a TIFF: a strip for each row of the highest image, or tiles of 16 px over 4096 px squared."""
_MOST_NUMBERS = 2**18
"""In all tags of a TIFF: the most pieces have half as many offsets and lengths, and 16-bit RGB may have a transfer
function of 3 x 2**16."""
_PIECES = frozenset((273, 279, 324, 325))
"""Tags of offsets and lengths of strips and tiles; TIFF 6.0, sections 3 and 15."""
_COLOUR_MAP = 320
_KEPT_AS_BYTES = frozenset((1, 2, 7))
"""Types of a tag whose values are not made into numbers; TIFF 6.0, section 2."""
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}

TIFFS_READ = "send a TIFF with LZW, Deflate or JPEG compression"
_BIG_ENDIAN_BIGTIFF = b"MM\0+"
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
        UnsupportedImage: A big-endian BigTIFF, which Pillow takes for a TIFF of other tags.
    """
    if data.startswith(_BIG_ENDIAN_BIGTIFF):
        raise UnsupportedImage(f"the file is a big-endian BigTIFF, which is not read; {TIFFS_READ}")
    if data.startswith(b"\x89PNG"):
        return _glance_at_png(data)
    if data.startswith(b"\xff\xd8"):
        return _glance_at_jpeg(data)
    if data[:2] in _BYTE_ORDERS and data[2:4].strip(b"\0") in {b"*", b"+"}:
        _check_tiff(data)
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
    scans = data.count(b"\xff\xda")  # where a scan goes on 0xFF is followed by something else
    if scans > _MOST_SCANS:
        raise UnreadableImage(f"the JPEG has more than {_MOST_SCANS} scans")
    return None if size is None else Glance(size, scans <= _PLAIN_SCANS and gone_through_bytes <= _PLAIN_EXIF_BYTES)


def _size(width_px: int, height_px: int) -> Size | None:
    return Size(width_px, height_px) if width_px and height_px else None


def _check_tiff(data: bytes) -> None:
    """Refuse a TIFF whose first directory, which alone is read, lists more than an image needs.

    Pillow takes the third byte for the version, libtiff the one that is it; they differ on big-endian BigTIFF.
    """
    for is_big in {data[2:3] == b"+", b"+" in data[2:4]}:
        _check_directory(data, _BYTE_ORDERS[data[:2]], is_big)


def _check_directory(data: bytes, byte_order: str, is_big: bool) -> None:
    """Source: TIFF 6.0, section 2; BigTIFF has 8 bytes where that has 2 or 4."""
    where, count, entry = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    try:
        (begin,) = struct.unpack_from(byte_order + where, data, 8 if is_big else 4)
        (tags,) = struct.unpack_from(byte_order + count, data, min(begin, len(data)))
    except struct.error:  # it is not there: Pillow says so
        return
    if tags > _MOST_SEGMENTS:
        raise UnreadableImage(f"the TIFF has more than {_MOST_SEGMENTS} tags")
    layout = struct.Struct(byte_order + entry)
    begin += struct.calcsize(byte_order + count)
    listed = data[begin : begin + tags * layout.size]
    numbers, kept_bytes = 0, 0
    for tag, kind, length in layout.iter_unpack(listed[: len(listed) // layout.size * layout.size]):
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
