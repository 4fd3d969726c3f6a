"""What a JPEG 2000 codestream says of itself before it is decoded, and a bound on the parts that it is cut into.

A decoder makes about a kilobyte of each code-block and precinct before it reads a byte of them, and the header alone
says how many there are: 160 bytes could ask for gigabytes. Source: ITU-T T.800, annexes A and B.
"""

import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import UnreadableImage
from app.pathology.geometry import Size

_CODESTREAM = b"\xff\x4f\xff\x51"
"""How one begins (sections A.4.1 and A.5.1)."""
_JP2 = b"\0\0\0\x0cjP  "
"""How a file around one begins (section I.5.1)."""
_SIZ, _COD, _COC, _SOT, _SOD = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93
_KNOWN = frozenset((_SIZ, _COD, _COC, _SOT, *range(0xFF55, 0xFF65), 0xFF50, 0xFF74, 0xFF75, 0xFF77, 0xFF78)) - {
    *(0xFF56, 0xFF5A, 0xFF5B, 0xFF62)
}
"""Segments that OpenJPEG knows (table A.2, and T.801's). Within another it looks for one, and would find what hides."""
_SEGMENT, _SIZES, _BOX = struct.Struct(">HH"), struct.Struct(">H8IH"), struct.Struct(">I4s")
_TRANSFORM_AT = 8
"""Bytes after the marker's begin."""
_MOST_SEGMENTS = 2**16
"""Also of the parts that tiles come in: six resolutions of a thousand tiles are one each."""
_MOST_LEVELS = 32
_MOST_STYLES = 16
_MOST_COMPONENTS = 4
_PIXELS_A_PART, _PARTS_OF_ANY = 24, 1024
"""OpenJPEG's encoder makes a part of 28 pixels, with code-blocks of 16 px a side, precincts of 64 px at the
finest level, half of that at the next and so on, and three channels. Usual ones are four times as large."""
_TILE_PARTS = 16
"""A tile costs as much as so many parts, however empty."""
_LAYERS_A_PART = 16
"""Layers cost hardly anything: 1024 px squared in precincts of 64 px take 0.53 s with one, and 0.59 s with 80."""
_DAMAGED = "the JPEG 2000 image's header is damaged"
_Bounds = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Where each of a row, or column, of tiles begins and ends."""


@dataclass(frozen=True, slots=True)
class _Style:
    """How components are cut (sections A.6.1 and A.6.2): exponents of 2, of blocks, and of precincts from the coarsest.

    There are as many resolutions as `precincts`.
    """

    block: tuple[int, int]
    precincts: tuple[tuple[int, int], ...]


def states_rgb(encoded: bytes) -> bool:
    """Return whether a JPEG 2000 frame says that its components were transformed from RGB, which a decoder undoes.

    So it is in RGB once it is decoded, whatever the header says. Source: section A.6.1, table A.17, and DICOM PS3.5,
    section 8.2.4, which has the transformation with YBR_RCT, YBR_ICT and RGB alone.

    Args:
        encoded: A frame of JPEG 2000, or something else, which says nothing.
    """
    with suppress(UnreadableImage):  # the decoder judges it
        for marker, begin, _ in _segments(encoded):
            if marker == _COD and begin + _TRANSFORM_AT < len(encoded):
                return encoded[begin + _TRANSFORM_AT] == 1
            if marker == _SOT:
                break
    return False


def check_codestream(encoded: bytes, size: Size) -> None:
    """Refuse a JPEG 2000 codestream of another size, or cut into far more than its pixels need.

    Of several styles of coding the costliest counts, as if it held for all tiles and components.

    Raises:
        UnreadableImage: It is, or its headers are damaged or have segments that no decoder knows.
    """
    sizes, layers, styles = b"", 1, set[_Style]()
    for marker, begin, end in _segments(encoded):
        if marker == _SIZ:
            sizes = sizes or encoded[begin + 4 : end]
        elif marker == _COD:
            layers = max(layers, int.from_bytes(encoded[begin + 6 : begin + 8]))
            styles.add(_style(encoded[begin + 4 : end], 5))
        elif marker == _COC:  # of fewer than 257 components, as all that are read
            styles.add(_style(encoded[begin + 5 : end], 1))
        if len(styles) > _MOST_STYLES:
            raise UnreadableImage(f"the JPEG 2000 image has more than {_MOST_STYLES} styles of coding")
    _check_parts(sizes, size, styles, layers)


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Give each segment's marker, where that begins and where the segment ends, of the main and all tiles' headers.

    Raises:
        UnreadableImage: There are too many, or one that OpenJPEG does not know.
    """
    position, tile_part_end = _codestream_at(encoded) + len(_CODESTREAM) // 2, 0
    for _ in range(_MOST_SEGMENTS):
        if position + _SEGMENT.size > len(encoded):
            return
        marker, length = _SEGMENT.unpack_from(encoded, position)
        if marker == _SOD:
            position = max(position + 2, tile_part_end)
            continue
        if marker not in _KNOWN:
            if 0 < tile_part_end <= position:  # the end of the image, or what a decoder stops at too
                return
            raise UnreadableImage("the JPEG 2000 image has a segment that is not known")
        if marker == _SOT:
            part_bytes = int.from_bytes(encoded[position + 6 : position + 10])
            tile_part_end = position + part_bytes if part_bytes else len(encoded)
        yield marker, position, position + 2 + length
        position += 2 + length
    raise UnreadableImage(f"the JPEG 2000 image has more than {_MOST_SEGMENTS} segments")


def _codestream_at(encoded: bytes) -> int:
    """Return where it begins: at once, or in its box of a JP2 file (section I.4)."""
    position = 0
    while encoded.startswith(_JP2) and position + 8 <= len(encoded):
        length, kind = _BOX.unpack_from(encoded, position)
        header = 8
        if length == 1:
            header, length = 16, int.from_bytes(encoded[position + 8 : position + 16])
        if kind == b"jp2c":
            position += header
            break
        if length < header:
            break
        position += length
    if not encoded.startswith(_CODESTREAM, position):
        raise UnreadableImage("the image is not in JPEG 2000, or damaged at its beginning")
    return position


def _style(coded: bytes, at: int) -> _Style:
    """Return what a style's first byte, and tables A.15 and A.20 from byte `at` on, say."""
    levels = coded[at] if len(coded) >= at + 5 else _MOST_LEVELS + 1
    sizes = coded[at + 5 : at + 6 + levels] if coded[:1] and coded[0] & 1 else b"\xff" * (levels + 1)
    if levels > _MOST_LEVELS or len(sizes) <= levels:
        raise UnreadableImage(_DAMAGED)
    return _Style((coded[at + 1] + 2, coded[at + 2] + 2), tuple((size & 15, size >> 4) for size in sizes))


def _check_parts(sizes: bytes, size: Size, styles: Collection[_Style], layers: int) -> None:
    """Check an image whose SIZ segment holds `sizes`; table A.9, and section B.3, equations B-5 to B-10."""
    if len(sizes) < _SIZES.size or not styles:
        raise UnreadableImage(_DAMAGED)
    _, right, bottom, left, top, width, height, tile_left, tile_top, components = _SIZES.unpack_from(sizes)
    steps = sizes[_SIZES.size :]
    is_whole = tile_left <= left < tile_left + width and tile_top <= top < tile_top + height
    if not is_whole or components > _MOST_COMPONENTS or len(steps) < 3 * components or 0 in steps[1::3] + steps[2::3]:
        raise UnreadableImage(_DAMAGED)
    if (right - left, bottom - top) != (size.width_px, size.height_px):
        raise UnreadableImage(f"the JPEG 2000 image is not of {size}")
    across, down = -(-(right - tile_left) // width), -(-(bottom - tile_top) // height)
    parts = across * down * _TILE_PARTS
    columns, rows = _tiles(left, right, tile_left, width, across), _tiles(top, bottom, tile_top, height, down)
    for component in range(components):
        places = _shrunk(columns, steps[3 * component + 1]), _shrunk(rows, steps[3 * component + 2])
        parts += max(_parts(style, layers, *places) for style in styles)
    if parts > size.pixels // _PIXELS_A_PART + _PARTS_OF_ANY:
        raise UnreadableImage(
            "the JPEG 2000 image is cut into far more tiles, blocks or packets than its pixels need;"
            " encode it with larger tiles and precincts"
        )


def _tiles(begin: int, end: int, first: int, side: int, count: int) -> _Bounds:
    """Return where the tiles of a row or column begin and end; equations B-7 to B-10."""
    begins = first + side * np.arange(count, dtype=np.int64)
    return np.maximum(begins, begin), np.minimum(begins + side, end)


def _shrunk(bounds: _Bounds, step: int, shift: int = 0) -> _Bounds:
    """Return `bounds`, moved by `shift`, where one of `step` samples is left; equations B-12, B-14 and B-15."""
    begins, ends = (-((shift - bound) // step) for bound in bounds)
    return begins, ends


def _parts(style: _Style, layers: int, columns: _Bounds, rows: _Bounds) -> int:
    """Return how many packets, precincts of a band and code-blocks the tiles of a component have; sections B.5 to B.7.

    Tiles are a grid, and so is what each is cut into: the sum over tiles is that over columns times that over rows.
    """
    parts, levels = 0, len(style.precincts) - 1
    for resolution, precinct in enumerate(style.precincts):
        step = 2 ** (levels - resolution)
        bands = ((0, 0),) if resolution == 0 else ((1, 0), (0, 1), (1, 1))
        # Bands are half as large as the resolution that they make, and so are precincts in them.
        halved = 0 if resolution == 0 else 1
        block = [min(side, max(0, whole - halved)) for side, whole in zip(style.block, precinct, strict=True)]
        precincts = _cells(_shrunk(columns, step), precinct[0]) * _cells(_shrunk(rows, step), precinct[1])
        parts += precincts * (len(bands) + -(-layers // _LAYERS_A_PART))
        for right, below in bands:
            across = _cells(_shrunk(columns, step << halved, right * step), block[0])
            parts += across * _cells(_shrunk(rows, step << halved, below * step), block[1])
    return parts


def _cells(bounds: _Bounds, exponent: int) -> int:
    """Return how many cells of a grid of 2**exponent, which begins at 0, the ranges touch."""
    begins, ends = bounds
    return int(np.sum(-(-ends >> exponent) - (begins >> exponent), where=ends > begins))
