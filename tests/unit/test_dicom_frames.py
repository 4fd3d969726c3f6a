"""What the frames of a DICOM image may cost: each of them, and all that a table of offsets may make of a few bytes."""

import struct

import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate, encapsulate_extended

from app.errors import UnreadableImage
from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import file_of, jpeg_of, over_one_another, rle_of, secondary_capture, whole_slide
from tests.pictures import codestream_of, encoded, noise, plain

LIMIT = 4096


def rle_frame(segments: list[bytes], offsets: list[int] | None = None) -> bytes:
    """A frame of RLE (PS3.5, annex G.5), its segments where they are unless other places are stated."""
    begins = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    stated = begins if offsets is None else offsets
    return struct.pack("<16L", len(stated), *(stated + [0] * 15)[:15]) + b"".join(segments)


def of_frame(frame: bytes, image: np.ndarray, syntax: uid.UID = uid.RLELossless) -> Dataset:
    """A slide of one frame, which is `frame` whatever `image` shows."""
    slide = whole_slide(image, tile=image.shape[0], syntax=syntax)
    slide.PixelData = encapsulate([frame])
    return slide


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless])
def test_a_frame_larger_than_its_header_says_is_refused_before_it_is_decoded(syntax):
    slide = whole_slide(plain((1, 2, 3), 64, 64), syntax=syntax)
    form = "JPEG" if syntax == uid.JPEGBaseline8Bit else "JPEG2000"
    slide.PixelData = encapsulate([encoded(plain((1, 2, 3), 2000, 2000), form)])
    with pytest.raises(UnreadableImage, match="size that its header states"):
        decode_dicom(file_of(slide), LIMIT)


def test_an_rle_frame_that_expands_beyond_its_header_is_refused_before_it_is_decoded():
    slide = whole_slide(plain((1, 2, 3), 64, 64), syntax=uid.RLELossless)
    slide.PixelData = encapsulate([rle_frame([b"\x81\0" * 4000] * 3)])  # 2 bytes that become 128
    with pytest.raises(UnreadableImage, match="size that its header states"):
        decode_dicom(file_of(slide), LIMIT)


def test_a_frame_far_longer_than_its_pixels_is_refused_before_it_is_looked_at():
    slide = whole_slide(plain((1, 2, 3), 64, 64), syntax=uid.JPEGBaseline8Bit)
    slide.PixelData = encapsulate([encoded(plain((1, 2, 3), 64, 64), "JPEG") + bytes(200_000)])
    with pytest.raises(UnreadableImage, match="size that its header states"):
        decode_dicom(file_of(slide), LIMIT)


def test_a_jpeg_frame_of_endlessly_many_scans_is_refused():
    whole = encoded(plain((1, 2, 3), 64, 64), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    slide = whole_slide(plain((1, 2, 3), 64, 64), syntax=uid.JPEGBaseline8Bit)
    slide.PixelData = encapsulate([whole[:-2] + scan * 101 + whole[-2:]])
    with pytest.raises(UnreadableImage, match="scans"):
        decode_dicom(file_of(slide), LIMIT)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEG2000Lossless])
def test_frames_whose_offsets_stand_beside_them_are_decoded(syntax):
    image = noise(96, 96)
    slide = whole_slide(image, tile=32, syntax=syntax)
    frames = [jpeg_of(image[:32, :32])] * 9 if syntax == uid.JPEGBaseline8Bit else [rle_of(image[:32, :32])] * 9
    frames = [encoded(image[:32, :32], "JPEG2000", no_jp2=True)] * 9 if syntax == uid.JPEG2000Lossless else frames
    pixels, slide.ExtendedOffsetTable, slide.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    slide.PixelData = pixels
    tiles = decode_dicom(file_of(slide), LIMIT)
    assert np.array_equal(tiles[:32, :32], tiles[64:, 64:])


@pytest.mark.parametrize(
    ("syntax", "frame"),
    [
        (uid.RLELossless, rle_of(plain((1, 2, 3), 32, 32))),
        (uid.JPEGBaseline8Bit, jpeg_of(plain((1, 2, 3), 32, 32))),
        (uid.JPEG2000Lossless, encoded(plain((1, 2, 3), 32, 32), "JPEG2000", no_jp2=True)),
    ],
)
def test_frames_that_are_the_same_bytes_are_refused(syntax, frame):
    with pytest.raises(UnreadableImage, match="frames overlap"):
        decode_dicom(file_of(over_one_another(frame, 128, tile=32, syntax=syntax)), LIMIT)


FLAT = rle_frame([b"\xfd\1" * 16] * 3)
"""8 x 8 px, a code of two bytes for four."""


@pytest.mark.parametrize(
    "frame",
    [
        rle_frame([b"\xfd\1" * 16] * 2),
        rle_frame([b"\xfd\1" * 16] * 4),
        rle_frame([b"\xfd\1" * 16] * 3, offsets=[64, 64, 64, 64]),
        rle_frame([b"\xfd\1" * 16] * 3, offsets=[64, 96, 64]),
        rle_frame([b"\x80" * 32] * 3, offsets=[64, 96, 64]),
        rle_frame([b"\xfd\1" * 16] * 3, offsets=[0, 96, 128]),
        rle_frame([b"\xfd\1" * 16] * 3, offsets=[64, 96, 2**31]),
        rle_frame([b"\xfd\1" * 16, b"\xfd\1" * 16, b"\xfd\1" * 16 + b"\x80" * 161]),
    ],
    ids=[
        "too few",
        "too many",
        "more, in one place",
        "backwards",
        "backwards over nothing",
        "in the header",
        "beyond the end",
        "of nothing",
    ],
)
def test_an_rle_frame_of_other_segments_than_it_has_channels_is_refused(frame):
    image = plain((1, 1, 1), 8, 8)
    assert np.array_equal(decode_dicom(file_of(of_frame(FLAT, image)), LIMIT), image)
    with pytest.raises(UnreadableImage, match="size that its header states"):
        decode_dicom(file_of(of_frame(frame, image)), LIMIT)


def test_an_rle_frame_of_the_longest_codes_is_decoded():
    """Two bytes a pixel, as of an image one pixel wide, since no code goes on in the next row (annex G.3.1)."""
    image = noise(16, 16)
    planes = [b"".join(bytes((0, value)) for value in image[..., channel].flatten()) for channel in range(3)]
    assert np.array_equal(decode_dicom(file_of(of_frame(rle_frame(planes), image)), LIMIT), image)
    narrow = secondary_capture(noise(1, 300), name="narrow")
    narrow.file_meta.TransferSyntaxUID = uid.RLELossless
    narrow.PixelData = encapsulate([rle_of(noise(1, 300))])
    narrow["PixelData"].is_undefined_length = True
    assert np.array_equal(decode_dicom(file_of(narrow), LIMIT), noise(1, 300))


def test_grey_of_16_bits_in_rle_has_a_segment_a_byte():
    image = np.arange(0, 2**16, 16, np.uint16).reshape(64, 64)
    capture = secondary_capture(image)
    capture.compress(uid.RLELossless)
    assert decode_dicom(file_of(capture), LIMIT).shape == (64, 64, 3)


def test_a_jpeg_2000_frame_that_is_cut_into_crumbs_is_refused():
    bomb = of_frame(codestream_of(512, 1, precinct=1), plain((0, 0, 0), 512, 512), uid.JPEG2000Lossless)
    with pytest.raises(UnreadableImage, match="far more tiles, blocks or packets"):
        decode_dicom(file_of(bomb), LIMIT)
