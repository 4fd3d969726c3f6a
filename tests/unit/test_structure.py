"""What a file says of itself at a glance, before a decoder looks, and what is not shown to one."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.errors import UnreadableImage
from app.imaging.decode import decode, opened
from app.imaging.jpeg import jpeg_segments
from app.imaging.structure import glance, png_chunks
from app.pathology.geometry import Size
from tests.pictures import (
    AFTER_HEADER,
    BEFORE_END,
    SHORT,
    encoded,
    exif,
    noise,
    png_chunk,
    with_chunk,
)


def saved(kind: str, **options: object) -> bytes:
    file = BytesIO()
    Image.fromarray(noise(31, 17)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("data", [saved("PNG"), saved("JPEG"), saved("JPEG", quality=10, subsampling=2)])
def test_size_and_plainness_of_common_files(data):
    found = glance(data)
    assert found is not None
    assert found.size == Size(31, 17)
    assert found.is_plain


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"\xff\xd8\xff", saved("TIFF"), saved("BMP"), saved("JPEG")[:100]])
def test_what_shows_no_size(data):
    assert glance(data) is None


@pytest.mark.parametrize("side", [16, 20])
def test_a_size_of_nothing_is_none(side):
    data = bytearray(encoded(noise(5, 5)))
    data[side : side + 4] = bytes(4)
    assert glance(bytes(data)) is None


def test_a_png_with_text_or_a_profile_to_inflate_is_not_plain():
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 1000, zip=True)
    for data in (saved("PNG", pnginfo=text), saved("PNG", icc_profile=b"p" * 200)):
        found = glance(data)
        assert found is not None
        assert not found.is_plain


def test_a_jpeg_of_many_scans_is_not_plain():
    found = glance(saved("JPEG", progressive=True))
    assert found is not None
    assert found.size == Size(31, 17)
    assert not found.is_plain


def directory_of(length: int) -> bytes:
    """EXIF of so many bytes: tags of a number, and nothing behind them."""
    tags = (length - 14) // 12
    listed = b"".join(struct.pack("<HHII", number, SHORT, 1, 1) for number in range(1000, 1000 + tags))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + listed).ljust(length, b"\0")


def segment_of(marker: int, begin: bytes, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(begin) + len(data)) + begin + data


RAW_EXIF = b"Raw profile type exif\0"


@pytest.mark.parametrize(
    "with_metadata",
    [
        lambda data: with_chunk(saved("PNG"), b"eXIf", data),
        lambda data: with_chunk(saved("PNG"), b"eXIf", data, at=BEFORE_END),
        lambda data: with_chunk(saved("PNG"), b"tEXt", b"exif\0" + data),
        lambda data: with_chunk(saved("PNG"), b"tEXt", RAW_EXIF + b"\nexif\n0\n" + data.hex().encode()),
        lambda data: with_segments(segment_of(0xE1, b"Exif\0\0", data)),
        lambda data: with_segments(segment_of(0xE1, b"Exif\0\0", data[:2000]) * (len(data) // 2000)),
        lambda data: with_segments(segment_of(0xE2, b"MPF\0", data)),
        lambda data: with_segments(segment_of(0xED, b"Photoshop 3.0\0", data)),
    ],
    ids=["PNG", "PNG, last", "PNG, text", "PNG, letters", "JPEG", "JPEG, in parts", "JPEG, several", "Photoshop"],
)
def test_a_file_whose_metadata_is_a_crowd_of_tags_is_not_plain(with_metadata):
    for length, is_plain in ((4000, True), (6000, False)):
        found = glance(with_metadata(directory_of(length)))
        assert found is not None
        assert found.is_plain is is_plain


def in_pieces(png: bytes, piece_bytes: int) -> bytes:
    """A PNG whose pixels lie in chunks of so many bytes."""
    pixels = b"".join(png[begin:end] for kind, begin, end in png_chunks(png) if kind == b"IDAT")
    pieces = [pixels[at : at + piece_bytes] for at in range(0, len(pixels), piece_bytes)]
    return png[:AFTER_HEADER] + b"".join(png_chunk(b"IDAT", piece) for piece in pieces) + png_chunk(b"IEND", b"")


def test_a_png_in_the_usual_pieces_is_plain_and_one_in_a_crowd_of_them_is_not():
    image = noise(200, 200)
    for piece_bytes, is_plain in ((8192, True), (100, False)):
        data = in_pieces(encoded(image), piece_bytes)
        found = glance(data)
        assert found is not None
        assert (found.size, found.is_plain) == (Size(200, 200), is_plain)
        assert np.array_equal(decode(data, 200), image)


def test_a_png_of_more_chunks_than_an_encoder_writes_is_refused_whatever_they_are():
    data = encoded(noise(8, 8))
    with pytest.raises(UnreadableImage, match="the PNG has more than 100000 chunks"):
        glance(data[:AFTER_HEADER] + png_chunk(b"IDAT", b"") * 100_000 + data[AFTER_HEADER:])


def test_chunks_behind_the_end_do_not_count():
    assert glance(encoded(noise(8, 8)) + png_chunk(b"abCd", b"") * 2000) is not None


COMMENT = b"\xff\xfe\0\2"


def with_segments(segments: bytes) -> bytes:
    data = encoded(noise(8, 8), "JPEG")
    return data[:2] + segments + data[2:]


def test_a_marker_that_has_no_segment_hides_none_behind_it():
    with pytest.raises(UnreadableImage, match="more than 1000 segments before its pixels"):
        glance(with_segments(b"\xff\xd9" + COMMENT * 1001))


def test_a_jpegs_stray_bytes_are_passed_over_and_not_too_many_of_them():
    assert glance(with_segments(COMMENT + bytes(60_000))) is not None
    with pytest.raises(UnreadableImage, match="more than 64 KiB between its segments"):
        glance(with_segments((COMMENT + bytes(33_000)) * 2))


def test_a_jpegs_segments_lead_over_its_scans_to_its_end():
    data = encoded(noise(8, 8), "JPEG", progressive=True)
    segments = list(jpeg_segments(data))
    assert [begin for marker, begin, _ in segments if marker == 0xDA] == [
        at for at in range(len(data)) if data.startswith(b"\xff\xda", at)
    ]
    assert segments[-1] == (0xD9, len(data) - 2, len(data))


def test_what_a_phone_puts_behind_a_jpegs_end_is_no_scan():
    """A film, as of a motion photo, in which 0xFF is followed by anything."""
    photo = encoded(noise(8, 8), "JPEG", progressive=True)
    film = noise(64, 64).tobytes() + photo[photo.index(b"\xff\xda") :] * 101
    assert np.array_equal(decode(photo + film, 8), decode(photo, 8))
    found = glance(photo + film)
    assert found is not None
    assert found.size == Size(8, 8)


@pytest.mark.parametrize("photo", [saved("JPEG"), saved("JPEG", progressive=True)])
def test_a_jpeg_with_something_behind_its_end_is_not_plain(photo):
    found = glance(photo + b"\xff\xda" * 101)
    assert found is not None
    assert not found.is_plain


WHOLE = encoded(noise(8, 8), "JPEG", progressive=True)
SCANS = WHOLE[WHOLE.rindex(b"\xff\xda") : -2] * 101
IMAGE_END = WHOLE[-2:]


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-2] + SCANS + IMAGE_END,
        WHOLE[:-2] + SCANS + IMAGE_END + bytes(10),
        WHOLE[:-2] + SCANS,
        WHOLE[:2] + IMAGE_END + WHOLE[2:-2] + SCANS + IMAGE_END,
        WHOLE[:-2] + b"\xff\xfe\0\4" + IMAGE_END + SCANS + IMAGE_END,
        WHOLE[:-2] + b"\xff\x01" + SCANS + IMAGE_END,
        WHOLE[:-2] + COMMENT * 1000 + SCANS + IMAGE_END,
        WHOLE[:-2] + b"\xff" * 1000 + SCANS + IMAGE_END,
    ],
    ids=["plainly", "and more", "no end", "an end first", "an end in a comment", "TEM", "comments", "fill"],
)
def test_scans_that_a_decoder_would_go_through_count_wherever_an_end_seems_to_be(data):
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode(data, 8)


def test_more_exif_than_a_camera_writes_is_refused_where_it_would_be_read():
    image, more = noise(8, 8), exif(6).tobytes() + bytes(2**17)
    segments = [more[6:][at : at + 60_000] for at in range(0, len(more), 60_000)]
    jpeg = with_segments(b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(s)) + b"Exif\0\0" + s for s in segments))
    text = RAW_EXIF + b"\nexif\n0\n" + more.hex().encode()
    files = [jpeg, encoded(image, "WEBP", lossless=True, exif=more)]
    for at in (AFTER_HEADER, BEFORE_END):
        files += (with_chunk(encoded(image), b"eXIf", more[6:], at), with_chunk(encoded(image), b"tEXt", text, at))
    for data in files:
        with pytest.raises(UnreadableImage, match="EXIF has more than 128 KiB"), opened(data, 8):
            pytest.fail("a decoder would see it")


def test_compressed_exif_behind_the_pixels_is_refused_once_it_is_known():
    text = RAW_EXIF + b"\0" + zlib.compress(b"\nexif\n0\n" + bytes(2**17).hex().encode())
    with pytest.raises(UnreadableImage, match="EXIF has more than 128 KiB"):
        decode(with_chunk(encoded(noise(8, 8)), b"zTXt", text, at=BEFORE_END), 8)
