"""Bounds on what a file's structure may make a decoder do, looked at before a decoder is.

A few hundred kilobytes can hold thousands of JPEG scans, each of which decodes the whole image anew, or millions of
empty segments that are walked one by one. No camera, scanner or export writes such files.
"""

from app.errors import UnreadableImage

_MOST_SEGMENTS = 1000
"""Segments before a JPEG's first scan, and chunks of a PNG beside its pixels."""
_MOST_SCANS = 100
"""Scans of a progressive JPEG; libjpeg's own encoder writes about ten."""

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")


def looks_like_an_accepted_format(data: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, TIFF, BMP or WebP file."""
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


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
    position, others = 8, 0
    while position + 8 <= len(data):
        if data[position + 4 : position + 8] != b"IDAT":
            others += 1
        if others > _MOST_SEGMENTS:
            raise UnreadableImage(f"the PNG has more than {_MOST_SEGMENTS} chunks beside its pixels")
        position += 12 + int.from_bytes(data[position : position + 4])
