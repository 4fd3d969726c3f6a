"""What a TIFF's directory may list, and how long its strips and tiles may be together, before a decoder sees them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from app.errors import UnreadableImage
from app.imaging.decode import decode
from app.imaging.structure import glance
from tests.pictures import LONG, SHORT, encoded, noise, plain, tiff_of, tiles_over


def directory(byte_order: str, entries: dict[int, tuple[int, int]], *, is_big: bool) -> bytes:
    """A TIFF's beginning: a directory whose tags are of a type and a count."""
    mark = (b"II" if byte_order == "<" else b"MM") + struct.pack(byte_order + "H", 43 if is_big else 42)
    where, count, entry = ("HHQ", "Q", "HHQQ") if is_big else ("I", "H", "HHII")
    begin = struct.pack(byte_order + where, *((8, 0, 16) if is_big else (8,)))
    listed = b"".join(struct.pack(byte_order + entry, tag, *said, 0) for tag, said in entries.items())
    return mark + begin + struct.pack(byte_order + count, len(entries)) + listed


@pytest.mark.parametrize(("byte_order", "is_big"), [("<", False), ("<", True), (">", False)])
@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({273: (LONG, 2**16 + 1)}, "more than 65536 strips or tiles"),
        ({325: (1, 2**16 + 1)}, "more than 65536 strips or tiles"),
        ({282: (5, 2**17), 283: (5, 2**17 + 1)}, "more than 262144 numbers in its tags"),
        ({320: (1, 2**18 + 1)}, "more than 262144 numbers in its tags"),
        (dict.fromkeys(range(1001), (SHORT, 1)), "more than 1000 tags"),
        ({270: (2, 200)}, "state more bytes than it has"),
        ({700: (1, 200)}, "state more bytes than it has"),
        ({40_000: (7, 60), 40_001: (7, 60), 40_002: (1, 60), 40_003: (2, 60)}, "state more bytes than it has"),
    ],
)
def test_a_tiff_that_lists_more_than_an_image_needs_is_refused(byte_order, is_big, entries, said):
    with pytest.raises(UnreadableImage, match=said):
        glance(directory(byte_order, entries, is_big=is_big))


GREY_TILE = bytes((7,)) * 16 * 16 * 3
GREY_JPEG = encoded(plain((7, 7, 7), 16, 16), "JPEG", quality=100, keep_rgb=True)


@pytest.mark.parametrize(("byte_order", "is_big"), [("<", False), ("<", True), (">", False)])
def test_a_tiff_of_as_much_as_images_need_is_left_to_the_decoder(byte_order, is_big):
    entries = {273: (LONG, 2**16), 279: (1, 2**16), 270: (2, 2**20), 34675: (7, 2**20), 700: (1, 2**20)}
    assert glance(directory(byte_order, entries, is_big=is_big) + bytes(4 * 2**20)) is None


@pytest.mark.parametrize(("compression", "tile"), [(1, GREY_TILE), (8, zlib.compress(GREY_TILE)), (7, GREY_JPEG)])
@pytest.mark.parametrize("size", [16, 40, 512])
def test_a_tile_that_a_tiff_stores_once_for_many_places_is_decoded(compression, tile, size):
    assert np.array_equal(decode(tiles_over(size, tile, compression), size), plain((7, 7, 7), size, size))


@pytest.mark.parametrize(
    "lengths",
    [b"", struct.pack("<I", 2**32 - 1) * 1024, struct.pack("<I", 0) + struct.pack("<I", 2**31 - 1) * 1023],
    ids=["as it is", "beyond the file", "some"],
)
def test_tiles_over_the_same_bytes_are_not_longer_than_their_pixels_could_be(lengths):
    """Empty blocks of Deflate (RFC 1951, section 3.2.4), which libtiff goes through anew for each tile."""
    begin, *rest = zlib.compress(GREY_TILE)[:2], zlib.compress(GREY_TILE)[2:]
    long = begin + b"\0\0\0\xff\xff" * 20_000 + rest[0]
    assert decode(tiles_over(16, long, 8), 16).shape == (16, 16, 3)
    with pytest.raises(UnreadableImage, match="strips or tiles overlap"):
        glance(tiles_over(512, long, 8, lengths=lengths))


@pytest.mark.parametrize(("byte_order", "is_big"), [("<", False), ("<", True), (">", False)])
@pytest.mark.parametrize(("kind", "length_bytes"), [(SHORT, 2), (LONG, 4), (16, 8), (17, 8), (9, 4)])
@pytest.mark.parametrize("tag", [279, 325])
def test_lengths_count_in_whatever_form_they_are(byte_order, is_big, kind, length_bytes, tag):
    begin = directory(byte_order, {256: (LONG, 1), 257: (LONG, 1), tag: (kind, 1000)}, is_big=is_big)
    where = (
        begin[:-8] + struct.pack("<Q", len(begin)) if is_big else begin[:-4] + struct.pack(byte_order + "I", len(begin))
    )
    fits = (300).to_bytes(length_bytes, "little" if byte_order == "<" else "big")
    assert glance((where + fits * 1000).ljust(300_000, b"\0")) is None
    with pytest.raises(UnreadableImage, match="strips or tiles overlap"):
        glance((where + fits * 1000).ljust(299_999, b"\0"))


@pytest.mark.parametrize("sides", [(1, 2**31), (2**31, 1)])
def test_of_a_size_that_a_tiff_states_twice_the_smaller_counts(sides):
    listed = [(tag, LONG, 1, side) for side in sides for tag in (256, 257)]
    begin = 8 + 2 + 12 * 5
    lengths = struct.pack("<HHII", 279, LONG, 1000, begin) + struct.pack("<I", 300) * 1000
    data = b"II*\0\x08\0\0\0\5\0" + b"".join(struct.pack("<HHII", *entry) for entry in listed) + lengths
    with pytest.raises(UnreadableImage, match="strips or tiles overlap"):
        glance(data)


def test_a_strip_of_a_wrong_length_is_decoded_where_none_is_needed():
    pixels = noise(8, 8)[..., 0]
    data = tiff_of({279: (LONG, 1, 2**32 - 1)}, pixels.tobytes())
    assert np.array_equal(decode(data, 8)[..., 0], pixels)


def test_a_tiff_of_a_strip_a_row_is_decoded():
    rows = np.arange(8 * 200, dtype=np.uint32).astype(np.uint8).reshape(200, 8)
    offsets = struct.pack("<200I", *range(8, 8 + rows.size, 8))
    entries = {257: (LONG, 1, 200), 273: (LONG, 200, 8 + rows.size), 278: (LONG, 1, 1)}
    data = tiff_of({**entries, 279: (LONG, 1, 8)}, rows.tobytes() + offsets)
    assert np.array_equal(decode(data, 200)[..., 0], rows)


@pytest.mark.parametrize("data", [b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II+\0\x08\0\0\0" + b"\xff" * 8, b"II", b"MM"])
def test_a_tiff_without_its_directory_is_left_to_the_decoder(data):
    assert glance(data) is None


def test_the_directories_that_a_tiffs_own_leads_to_are_not_read(monkeypatch):
    read: list[int] = []
    monkeypatch.setattr(Image.Exif, "get_ifd", lambda _, tag: read.append(tag))
    leads = {34665: (LONG, 1, 8), 34853: (LONG, 1, 8), 40965: (LONG, 1, 8)}
    assert decode(tiff_of({**leads, 274: (SHORT, 1, 6)}), 8).shape == (8, 8, 3)
    assert read == []
