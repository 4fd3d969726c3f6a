"""Colours of DICOM images that have a palette, in each form in which its tables are written."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import DataElement, Dataset, FileDataset
from pydicom.pixels.processing import apply_color_lut

from app.errors import UnreadableImage, UnsupportedImage
from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import file_of, secondary_capture
from tests.pictures import noise

COLOURS = ("Red", "Green", "Blue")
DESCRIPTORS = dict(zip(COLOURS, (0x00281101, 0x00281102, 0x00281103), strict=True))
EVERY = np.arange(256, dtype=np.uint8)[np.newaxis]
"""One pixel of each value."""


def capture_of(pixels: NDArray[np.generic], descriptor: list[int], tables: list[bytes]) -> FileDataset:
    """A capture of stored values, with a table of each colour that the descriptor describes."""
    capture = secondary_capture(pixels, PhotometricInterpretation="PALETTE COLOR")
    for (colour, tag), table in zip(DESCRIPTORS.items(), tables, strict=True):
        capture[tag] = DataElement(tag, "SS" if descriptor[1] < 0 else "US", descriptor)
        setattr(capture, f"{colour}PaletteColorLookupTableData", table)
    return capture


def colours_of(capture: Dataset) -> NDArray[np.uint8]:
    """Return (N, 3), the colours of a capture of one row."""
    return decode_dicom(file_of(capture), 4096)[0]


@pytest.mark.parametrize(("word", "bits", "scale"), [("<u2", 16, 257), ("u1", 8, 1)])
@pytest.mark.parametrize("first", [0, 10])
def test_ordinary_tables_give_what_pydicom_gives(word, bits, scale, first):
    tables = [(column * scale).astype(word).tobytes() for column in noise(100, 1)[0].T.astype(int)]
    capture = capture_of(EVERY, [100, first, bits], tables)
    assert np.array_equal(colours_of(capture), apply_color_lut(EVERY, capture)[0] // scale)


def test_sixteen_bits_are_scaled_and_not_cut():
    tables = [np.array(values, "<u2").tobytes() for values in ([0, 65535], [32768, 256], [128, 129])]
    capture = capture_of(np.array([[0, 1]], np.uint8), [2, 0, 16], tables)
    assert colours_of(capture).tolist() == [[0, 128, 0], [255, 1, 1]]


def test_eight_bits_in_words_are_not_taken_for_dark():
    tables = [values.astype("<u2").tobytes() for values in (EVERY, EVERY[:, ::-1], EVERY // 2)]
    expected = np.stack([EVERY[0], EVERY[0, ::-1], EVERY[0] // 2], axis=1)
    assert np.array_equal(colours_of(capture_of(EVERY, [256, 0, 8], tables)), expected)


def test_sixteen_bits_that_call_themselves_eight_are_what_they_are():
    tables = [(EVERY.astype("<u2") * 257).tobytes()] * 3
    assert np.array_equal(colours_of(capture_of(EVERY, [256, 0, 8], tables))[:, 0], EVERY[0])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("entries", [1, 3, 255])
def test_an_odd_number_of_entries_may_be_padded(entries, bits):
    word = "<u2" if bits == 16 else "u1"
    values = np.linspace(255, 1, entries).astype(int)
    table = (values * (257 if bits == 16 else 1)).astype(word).tobytes()
    found = colours_of(capture_of(EVERY, [entries, 0, bits], [table + bytes(len(table) % 2)] * 3))
    assert np.array_equal(found[:, 0], values[np.minimum(EVERY[0], entries - 1)])


@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_table_has_an_entry_for_each_value(bits):
    """It states 0 of them, since 65,536 is no number of 16 bits."""
    pixels = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    values = np.arange(2**16) // 257
    table = values.astype("u1").tobytes() if bits == 8 else (values * 257).astype("<u2").tobytes()
    assert colours_of(capture_of(pixels, [0, 0, bits], [table] * 3))[:, 2].tolist() == [0, 0, 0, 155, 255]


def test_a_table_may_begin_below_the_least_value():
    found = colours_of(capture_of(EVERY, [256, -5, 8], [EVERY.tobytes()] * 3))
    assert np.array_equal(found[:, 1], np.minimum(EVERY[0].astype(int) + 5, 255))


def test_a_table_that_is_too_short_is_unreadable():
    with pytest.raises(UnreadableImage):
        colours_of(capture_of(EVERY, [256, 0, 8], [bytes(256), bytes(256), bytes(254)]))


def test_a_segmented_palette_is_refused_for_it_may_expand_without_end():
    capture = secondary_capture(np.zeros((1, 2), np.uint8), PhotometricInterpretation="PALETTE COLOR")
    capture.SegmentedRedPaletteColorLookupTableData = b"\1\0\xff\xff\0\0"
    with pytest.raises(UnsupportedImage, match="palette"):
        colours_of(capture)
