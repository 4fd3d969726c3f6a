"""Small DICOM files that would cost much: each is refused for what it holds too much of, wherever that is nested."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from pydicom import Dataset, uid

from app.errors import UnreadableImage
from app.slides import dicom
from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import file_of, header_of, secondary_capture, whole_slide
from tests.pictures import encoded, noise, plain

LIMIT = 4096
MANY = 30_000
IMAGE = noise(70, 50)
TOO_MANY = "header has more than 20000 elements, items and values"
UNDEFINED = 0xFFFFFFFF

ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
UNTAGGED = bytes(8)  # pydicom takes whatever stands in a sequence for an item
END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
PLACES, PRIVATE, EMPTY, BEFORE_PIXELS = (0x5200, 0x9230), (0x7FDF, 0x1001), (0x6000, 0x0010), (0x7FE0, 0x0003)


def explicit(tag: tuple[int, int], representation: bytes, length: int) -> bytes:
    """The beginning of an element whose length has 32 bits, in Explicit VR Little Endian."""
    return struct.pack("<HH2sHL", *tag, representation, 0, length)


def sequence(tag: tuple[int, int], content: bytes, representation: bytes = b"SQ") -> bytes:
    return explicit(tag, representation, len(content)) + content


def endless(tag: tuple[int, int], content: bytes, representation: bytes = b"SQ") -> bytes:
    return explicit(tag, representation, UNDEFINED) + content + END


def item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def before_pixels(piece: bytes, syntax: uid.UID = uid.ExplicitVRLittleEndian) -> bytes:
    """A slide's file with `piece` right before its pixels."""
    data = file_of(whole_slide(IMAGE, tile=32, syntax=syntax))
    place = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
    return data[:place] + piece + data[place:]


@pytest.mark.parametrize(
    "piece",
    [
        endless(PRIVATE, ITEM * MANY),
        endless(PRIVATE, UNTAGGED * MANY),
        endless(PRIVATE, ITEM * MANY, b"UN"),
        endless(PLACES, ITEM * MANY),
        sequence(PLACES, ITEM * MANY),
        sequence(PLACES, UNTAGGED * MANY),
        sequence(PLACES, item(sequence(PLACES, item(sequence(PLACES, ITEM * MANY))))),
        sequence(PLACES, item(endless(PLACES, ITEM * MANY))),
        sequence(PLACES, ITEM * (MANY // 2)) + sequence((0x5200, 0x9229), ITEM * (MANY // 2)),
        sequence(PLACES, item(struct.pack("<HH2sH", *EMPTY, b"US", 0) * MANY)),
        struct.pack("<HH2sH", *EMPTY, b"US", 0) * MANY,
    ],
)
def test_elements_and_items_are_counted_wherever_they_are(piece):
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        dicom.opened(before_pixels(piece), LIMIT)


@pytest.mark.parametrize("representation", [b"UN", b"SQ"])
def test_a_sequence_that_a_file_calls_unknown_is_counted_as_one(representation):
    piece = sequence(PLACES, ITEM * 8000, representation) + endless(PRIVATE, ITEM * (MANY - 8000))
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        dicom.header(before_pixels(piece))


def implicit(tag: tuple[int, int], content: bytes) -> bytes:
    return struct.pack("<HHL", *tag, len(content)) + content


@pytest.mark.parametrize(
    "piece",
    [
        struct.pack("<HHL", *PRIVATE, UNDEFINED) + ITEM * MANY + END,
        implicit(PLACES, ITEM * MANY),
        implicit((0x0028, 0x0008), b"1\\" * MANY),
        implicit(PLACES, item(implicit((0x0028, 0x0008), b"1\\" * MANY))),
    ],
)
def test_without_stated_representations_items_and_values_are_counted_too(piece):
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        dicom.header(before_pixels(piece, uid.ImplicitVRLittleEndian))


@pytest.mark.parametrize("representation", [b"SQ", b"UN", b"OB"])
def test_nothing_without_a_length_stands_in_the_place_of_the_pixels(representation):
    with pytest.raises(UnreadableImage, match="something without a stated length in the place of its pixels"):
        decode_dicom(before_pixels(endless(BEFORE_PIXELS, ITEM * 10, representation)), LIMIT)


def test_pixels_are_no_sequence():
    data = file_of(whole_slide(IMAGE, tile=32, syntax=uid.JPEGBaseline8Bit))
    pixels = struct.pack("<HH", 0x7FE0, 0x0010)
    with pytest.raises(UnreadableImage, match="without a stated length"):
        decode_dicom(data.replace(pixels + b"OB", pixels + b"SQ"), LIMIT)


def test_elements_in_the_place_of_the_pixels_are_counted():
    with pytest.raises(UnreadableImage, match=TOO_MANY):
        decode_dicom(before_pixels(struct.pack("<HH2sH", 0x7FE0, 0x0000, b"UL", 0) * MANY), LIMIT)


def test_a_header_of_many_bytes_is_not_read():
    capture = secondary_capture(IMAGE, ICCProfile=bytes(3 * 2**20))
    with pytest.raises(UnreadableImage, match="more than 2 MiB before its pixels"):
        dicom.opened(file_of(capture), LIMIT)


def test_sequences_that_nest_without_end_are_refused():
    deeper = explicit((0x0040, 0xA730), b"SQ", UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
    with pytest.raises(UnreadableImage, match="damaged"):
        dicom.header(before_pixels(deeper * 10_000))


def test_a_scanners_header_is_read():
    slide = whole_slide(plain((1, 2, 3), 1024, 1024), tile=32, sparse=True)  # as many tiles as 4096 px have of 128 px
    slide.OpticalPathSequence[0].ICCProfile = bytes(2**20)
    header = dicom.header(file_of(slide))
    assert len(header.PerFrameFunctionalGroupsSequence) == 1024
    assert len(header.OpticalPathSequence[0].ICCProfile) == 2**20


def test_private_attributes_are_left_out_and_all_others_are_there():
    slide = whole_slide(IMAGE, sparse=True)
    public = header_of(slide).to_json_dict()
    for dataset in (slide, slide.OpticalPathSequence[0]):
        dataset.private_block(0x0009, "MAKER", create=True).add_new(0x01, "LO", "private")
    assert dicom.header(file_of(slide)).to_json_dict() == public


def jpeg_slide(**attributes: bytes) -> Dataset:
    return whole_slide(IMAGE, tile=32, syntax=uid.JPEGBaseline8Bit, **attributes)


def in_fragments(slide: Dataset) -> None:
    slide.PixelData = ITEM * 70_000


def with_many_offsets(slide: Dataset) -> None:
    slide.PixelData = item(bytes(4 * MANY)) + slide.PixelData[slide.PixelData.index(ITEM[:4], 4) :]


def with_many_extended_offsets(slide: Dataset) -> None:
    slide.ExtendedOffsetTable = slide.ExtendedOffsetTableLengths = bytes(8 * MANY)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (in_fragments, "more than 65536 fragments"),
        (with_many_offsets, "table of offsets does not have one entry for each frame"),
        (with_many_extended_offsets, "table of offsets does not have one entry for each frame"),
    ],
)
def test_fragments_and_offsets_are_counted_before_they_are_read(spoil: Callable[[Dataset], None], words):
    slide = jpeg_slide()
    spoil(slide)
    with pytest.raises(UnreadableImage, match=words):
        decode_dicom(file_of(slide), LIMIT)


def test_a_frame_in_several_fragments_and_a_table_of_extended_offsets_are_read():
    color = (200, 60, 120)
    jpeg = encoded(plain(color, 32, 32), "JPEG", quality=100)
    jpeg += bytes(len(jpeg) % 2)
    slide = whole_slide(plain(color, 32, 32), tile=32, syntax=uid.JPEGBaseline8Bit)
    slide.PixelData = ITEM + item(jpeg[:100]) + item(jpeg[100:])
    assert np.abs(decode_dicom(file_of(slide), LIMIT).astype(int) - color).max() <= 3
    slide.PixelData = ITEM + item(jpeg)
    slide.ExtendedOffsetTable, slide.ExtendedOffsetTableLengths = bytes(8), struct.pack("<Q", len(jpeg))
    assert np.abs(decode_dicom(file_of(slide), LIMIT).astype(int) - color).max() <= 3
