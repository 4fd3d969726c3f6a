"""A JPEG's segments: bounds on how many there are, and what they say of colours. Source: ITU-T T.81, annex B."""

import re
from collections.abc import Iterator
from contextlib import suppress

from app.errors import UnreadableImage

_MOST_SEGMENTS = 1000
"""Before the first scan."""
_MOST_STRAY_BYTES = 2**16
"""Between a JPEG's segments, where none should be. Pillow goes through them one by one."""
_LEAST_MARKER, SCAN, END, _FILL = 0xC0, 0xDA, 0xD9, 0xFF
"""What follows 0xFF in a JPEG; ITU-T T.81, table B.1."""
_LAST_END = 2**24
"""Bytes within which a JPEG's end is looked for, in 0.1 s at most. A phone's photo of 4096 px has 3 to 10 MB."""
SCAN_BEGINS = bytes((_FILL, SCAN))
"""Within a scan 0xFF is followed by something else."""
_BARE = frozenset((0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
"""Those that Pillow takes for markers without a segment, and what is no marker."""
_AFTER_A_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
"""The next marker: within a scan 0xFF is followed by 0x00 or is a restart."""
_MOST_SCANS = 100
"""Scans of a progressive JPEG; libjpeg's own encoder writes about ten."""
_APP0, _APP14 = 0xE0, 0xEE
_ADOBE_TRANSFORM_AT = 15
"""Bytes after the marker's begin."""


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


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of more scans than encoders write; pass over other files. It takes 0.1 s at most.

    Raises:
        UnreadableImage: It has too many.
    """
    is_jpeg = data.startswith(b"\xff\xd8")
    if is_jpeg and data.count(SCAN_BEGINS) > _MOST_SCANS and _decoded_scans(data) > _MOST_SCANS:
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
    return data.count(SCAN_BEGINS)


def states_ycc(encoded: bytes) -> bool:
    """Return whether a JPEG says of its three channels that they are YCbCr, by JFIF's or Adobe's marker.

    Where both are, JFIF's counts, which knows no other colours. Source: ITU-T T.871 (JFIF), section 10.1, and ITU-T
    T.872, section 6.5.3, where Adobe's transform 1 is YCbCr and 0 none.

    Args:
        encoded: A JPEG, or something else, which says nothing.
    """
    if not encoded.startswith(b"\xff\xd8"):
        return False
    by_adobe = False
    with suppress(UnreadableImage):  # of too many segments, which the decoder judges
        for marker, begin, end in jpeg_segments(encoded):
            if marker == SCAN:
                break
            if marker == _APP0 and encoded.startswith(b"JFIF\0", begin + 4):
                return True
            if marker == _APP14 and end > begin + _ADOBE_TRANSFORM_AT and encoded.startswith(b"Adobe", begin + 4):
                by_adobe = encoded[begin + _ADOBE_TRANSFORM_AT : begin + _ADOBE_TRANSFORM_AT + 1] == b"\1"
    return by_adobe
