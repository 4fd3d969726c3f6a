import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from app.errors import ImageTooLarge, OutOfMemory, UnreadableImage, UnsupportedImage
from app.imaging.decode import FORMATS, decode, opened
from tests.pictures import (
    AFTER_HEADER,
    BEFORE_END,
    LONG,
    SHORT,
    encoded,
    grey_tiff,
    noise,
    plain,
    png_chunk,
    png_of,
    run_length_bmp,
    tiff_of,
    unfiltered,
    with_chunk,
)

LIMIT = 4096


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_come_back_to_the_pixel(file_format):
    image = noise(37, 21)
    assert np.array_equal(decode(encoded(image, file_format), LIMIT), image)


def test_lossless_webp_comes_back_to_the_pixel():
    image = noise(37, 21)
    assert np.array_equal(decode(encoded(image, "WEBP", lossless=True), LIMIT), image)


def test_jpeg_comes_back_nearly():
    image = plain((200, 120, 180), 40, 24)
    assert np.abs(decode(encoded(image, "JPEG", quality=95), LIMIT).astype(int) - image).max() <= 3


def test_what_comes_back_can_be_written_to_and_is_contiguous():
    pixels = decode(encoded(noise(5, 7)), LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_greyscale_becomes_three_equal_channels():
    grey = noise(9, 5)[..., 0]
    assert np.array_equal(decode(encoded(grey), LIMIT), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_greyscale_is_scaled_not_clipped(file_format):
    wide = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decode(encoded(wide, file_format), LIMIT)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bit_rgb_keeps_its_high_byte():
    wide = np.array([[[0, 0x1234, 0xFFFF], [0x8000, 0x0100, 0xABCD]]], np.uint16)
    png = png_of((2, 1), 16, 2, unfiltered(wide))
    assert decode(png, LIMIT).tolist() == [[[0, 0x12, 0xFF], [0x80, 0x01, 0xAB]]]


@pytest.mark.parametrize("compress", [None, "LZW"])
@pytest.mark.parametrize("endianness", ["LITTLE", "BIG"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_sixteen_bit_tiff_planes_are_not_taken_for_bytes(interleave, endianness, compress):
    image = noise(40, 24)
    wide = image.astype(np.uint16) * 257
    shape = {"height": 24, "width": 40, "count": 3, "dtype": "uint16", "photometric": "RGB"}
    ways = {"interleave": interleave, "ENDIANNESS": endianness} | ({"compress": compress} if compress else {})
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(driver="GTiff", **shape, **ways) as written:
            written.write(wide.transpose(2, 0, 1))
        data = file.read()
    if interleave == "band" and not compress:
        with pytest.raises(UnsupportedImage, match="16 bits a channel in planes, uncompressed; send it pixel by pixel"):
            decode(data, LIMIT)
    else:
        assert np.array_equal(decode(data, LIMIT), image)


def test_transparent_pixels_are_glass():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    assert decode(encoded(image), LIMIT).tolist() == [[[200, 0, 0], [255, 255, 255]]]


def test_grey_multiplied_by_its_opacity_lies_on_glass():
    """Such grey says itself what it adds to the glass that shows through it."""
    opacity, grey = np.mgrid[:256, :256].astype(np.uint8)
    file = BytesIO()
    stored = np.stack([np.minimum(grey, opacity), opacity], axis=2)
    tifffile.imwrite(file, stored, photometric="minisblack", extrasamples=["assocalpha"])
    assert np.array_equal(tifffile.imread(BytesIO(file.getvalue())), stored)
    found = decode(file.getvalue(), LIMIT).astype(int)
    expected = stored[..., 0].astype(int) + 255 - stored[..., 1]
    assert np.abs(found - expected[..., np.newaxis]).max() <= 1
    assert (found[0] == 255).all()
    assert np.array_equal(found[255, :, 0], grey[255])


def test_a_transparent_palette_entry_is_glass():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, transparency=1), LIMIT).tolist() == [[[10, 20, 30], [255, 255, 255]]]


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("file_format", ["PNG", "late PNG", "JPEG", "WEBP", "TIFF"])
def test_an_orientation_in_xmp_turns_nothing_as_in_browsers(file_format):
    image = plain((255, 255, 255), 32, 16)
    if file_format.endswith("PNG"):
        at = BEFORE_END if file_format.startswith("late") else AFTER_HEADER
        data = with_chunk(encoded(image), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP, at)
    elif file_format == "TIFF":
        data = encoded(image, file_format, tiffinfo={700: XMP})
    else:
        data = encoded(image, file_format, xmp=XMP)
    assert b'tiff:Orientation="6"' in data
    assert decode(data, LIMIT).shape == (16, 32, 3)


def test_the_longest_side_is_allowed_and_one_more_is_not():
    assert decode(encoded(plain((1, 2, 3), 64, 2)), 64).shape == (2, 64, 3)
    with pytest.raises(ImageTooLarge, match=r"65x2 px; each side may have at most 64 px"):
        decode(encoded(plain((1, 2, 3), 65, 2)), 64)


@pytest.mark.filterwarnings("error")
def test_a_bomb_is_refused_by_its_header():
    bomb = png_of((60_000, 60_000), 8, 2, b"")
    with pytest.raises(ImageTooLarge):
        decode(bomb, LIMIT)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_unreadable(file_format):
    whole = encoded(noise(64, 64), file_format)
    with pytest.raises(UnreadableImage):
        decode(whole[: len(whole) * 2 // 3], LIMIT)


def test_nothing_is_unreadable():
    with pytest.raises(UnreadableImage, match="empty"):
        decode(b"", LIMIT)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_tiff_is_unreadable_wherever_its_directory_lies(compression, share):
    whole = encoded(noise(64, 64), "TIFF", compression=compression)
    with pytest.raises(UnreadableImage):
        decode(whole[: int(len(whole) * share)], LIMIT)


def test_a_jpeg_of_endlessly_many_scans_is_refused_before_it_is_decoded():
    whole = encoded(noise(64, 64), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode(whole, LIMIT).shape == (64, 64, 3)
    with pytest.raises(UnreadableImage, match="more than 100 scans"):
        decode(whole[:-2] + scan * 101 + whole[-2:], LIMIT)


def test_a_jpeg_of_endlessly_many_segments_is_refused_before_it_is_parsed():
    whole = encoded(noise(8, 8), "JPEG")
    assert decode(whole[:2] + b"\xff\xe5\x00\x02" * 900 + whole[2:], LIMIT).shape == (8, 8, 3)
    with pytest.raises(UnreadableImage, match="more than 1000 segments"):
        decode(whole[:2] + b"\xff\xe5\x00\x02" * 1001 + whole[2:], LIMIT)


def test_a_png_of_endlessly_many_chunks_is_refused_before_it_is_parsed():
    whole = encoded(noise(8, 8))
    begin, chunk, rest = whole[:AFTER_HEADER], png_chunk(b"prVt", b""), whole[AFTER_HEADER:]
    assert decode(begin + chunk * 900 + rest, LIMIT).shape == (8, 8, 3)
    with pytest.raises(UnreadableImage, match="more than 1000 chunks"):
        decode(begin + chunk * 1001 + rest, LIMIT)


@pytest.mark.parametrize(("counts_from_white", "expected"), [(False, [0, 128, 255]), (True, [255, 127, 0])])
def test_sixteen_bit_grey_may_count_from_white_or_from_black(counts_from_white, expected):
    pixels = np.array([0, 32768, 65535], "<u2").tobytes()
    data = grey_tiff((3, 1), 16, pixels, counts_from_white=counts_from_white)
    assert decode(data, LIMIT)[0, :, 0].tolist() == expected


def test_twelve_bit_pixels_are_refused_and_not_shown_dark():
    with pytest.raises(UnsupportedImage, match="12 bits a channel; send 8 or 16"):
        decode(grey_tiff((2, 1), 12, b"\xff\xff\xff"), LIMIT)


def test_a_tiny_tiff_of_huge_tiles_is_refused_by_its_tags():
    tiles = {322: (LONG, 1, 26752), 323: (LONG, 1, 26752), 324: (LONG, 1, 8), 325: (LONG, 1, 20)}
    with pytest.raises(ImageTooLarge, match="tiles are 26752 px"):
        decode(tiff_of({259: (SHORT, 1, 8), **tiles}, zlib.compress(bytes(100))), LIMIT)


def png(width: int, depth: int, colour_type: int, row: bytes, transparent: bytes) -> bytes:
    return png_of((width, 1), depth, colour_type, b"\0" + row, png_chunk(b"tRNS", transparent))


def test_the_transparent_grey_of_a_png_is_glass_at_any_depth():
    assert decode(png(2, 16, 0, b"\x12\x34\x00\x00", b"\x12\x34"), LIMIT)[0, :, 0].tolist() == [255, 0]
    assert decode(png(2, 8, 0, b"\x12\x00", b"\x00\x12"), LIMIT)[0, :, 0].tolist() == [255, 0]
    assert decode(png(2, 2, 0, b"\x40", b"\x00\x01"), LIMIT)[0, :, 0].tolist() == [255, 0]


def test_a_transparent_colour_that_eight_bits_cannot_tell_is_refused():
    with pytest.raises(UnsupportedImage, match="alpha channel"):
        decode(png(1, 16, 2, bytes(6), bytes(6)), LIMIT)


def test_broken_metadata_does_not_cost_the_pixels():
    image = noise(8, 8)
    data = with_chunk(encoded(image), b"eXIf", b"Exif\0\0garbage that is no TIFF")
    assert np.array_equal(decode(data, LIMIT), image)


def test_other_colour_spaces_are_refused():
    with pytest.raises(UnsupportedImage, match="LAB colours"):
        decode(encoded(Image.new("LAB", (4, 4)), "TIFF"), LIMIT)


def test_a_phones_photo_with_a_preview_is_its_photo():
    photo, preview = Image.fromarray(plain((200, 40, 40), 32, 16)), Image.fromarray(plain((0, 0, 0), 8, 8))
    assert decode(encoded(photo, "MPO", save_all=True, append_images=[preview]), LIMIT).shape == (16, 32, 3)


@pytest.mark.parametrize(
    ("step", "data"),
    [("common_pixels", encoded(noise(4, 4))), ("_to_rgb", encoded(noise(4, 4), "BMP"))],
    ids=["common", "by Pillow"],
)
def test_no_memory_is_said_and_may_pass(monkeypatch, step, data):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"app.imaging.decode.{step}", fail)
    with pytest.raises(OutOfMemory):
        decode(data, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7",
        b"GIF89a" + bytes(40),
        encoded(noise(8, 8), "GIF"),
        bytes(1000),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400),
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(400),
    ],
    ids=["PDF", "GIF", "whole GIF", "zeros", "HEIC", "AVIF"],
)
def test_other_formats_are_unsupported(data):
    with pytest.raises(UnsupportedImage, match="PNG, JPEG, TIFF, WebP, BMP"):
        decode(data, LIMIT)


@pytest.mark.parametrize("file_format", ["TIFF", "WEBP", "PNG"])
def test_several_images_in_a_file_are_refused(file_format):
    frames = [Image.fromarray(noise(8, 8, seed)) for seed in range(3)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImage, match="holds several images"):
        decode(data, LIMIT)


@pytest.mark.parametrize(
    ("kind", "photometric", "words"),
    [
        ("int8", "minisblack", "signed integers of 8 bits"),
        ("int8", "rgb", "signed integers of 8 bits"),
        ("int16", "minisblack", "signed integers of 16 bits"),
        ("int16", "rgb", "signed integers of 16 bits"),
        ("float16", "minisblack", "floating-point numbers of 16 bits"),
        ("float16", "rgb", "floating-point numbers of 16 bits"),
        ("float32", "rgb", "floating-point numbers of 32 bits"),
        ("complex64", "minisblack", "complex numbers of 64 bits"),
    ],
)
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tiff_of_other_numbers_than_unsigned_integers_is_told_which_and_what_to_send(
    kind, photometric, words, bigtiff
):
    file = BytesIO()
    shape = (8, 8, 3) if photometric == "rgb" else (8, 8)
    tifffile.imwrite(file, np.zeros(shape, kind), photometric=photometric, bigtiff=bigtiff)
    told = f"^the TIFF has {words} a channel; send unsigned integers of 8 or 16 bits$"
    with pytest.raises(UnsupportedImage, match=told):
        decode(file.getvalue(), LIMIT)


@pytest.mark.parametrize("kind", [2, 7], ids=["text", "bytes"])
def test_a_tiff_whose_bits_are_no_number_is_refused_without_a_word_of_it(kind):
    said = b"<script>" + bytes(2**16)
    data = b"II*\0" + struct.pack("<IHHHIIHHIII", 8, 2, 256, 4, 1, 8, 258, kind, len(said), 38, 0) + said
    with pytest.raises(UnreadableImage) as raised:
        decode(data, LIMIT)
    assert str(raised.value) == "the TIFF's BitsPerSample is no number"


def test_a_tiff_of_unsigned_integers_may_say_so():
    data = tiff_of({339: (SHORT, 1, 1)}, bytes(range(64)))
    assert decode(data, LIMIT)[..., 0].tobytes() == bytes(range(64))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_pixels_are_refused(mode):
    with pytest.raises(UnsupportedImage, match="32 bits"):
        decode(encoded(Image.new(mode, (4, 4)), "TIFF"), LIMIT)


def test_what_a_client_names_the_bytes_decides_nothing_and_metadata_stays_behind():
    image = Image.fromarray(noise(8, 8))
    exif = Image.Exif()
    exif[0x010E] = "PATIENT"
    assert np.array_equal(decode(encoded(image, exif=exif), LIMIT), np.asarray(image))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"compression": "webp"},
            "the TIFF has WebP compression, which is not read; send a TIFF with LZW",
        ),
        ({"compression": "jpeg2000"}, "of a kind that is not read, such as JPEG 2000; send a TIFF with LZW"),
        ({"bigtiff": True, "byteorder": ">"}, "the file is a big-endian BigTIFF, which is not read; send a TIFF"),
    ],
)
def test_a_whole_tiff_of_a_kind_that_is_not_read_is_told_from_a_damaged_one(how, message):
    file = BytesIO()
    tifffile.imwrite(file, noise(600, 600), photometric="rgb", **how)
    with pytest.raises((UnsupportedImage, UnreadableImage), match=message):
        decode(file.getvalue(), 600)


@pytest.mark.parametrize("size", [(1, 300), (64, 64), (300, 300)])
def test_a_bmp_of_the_longest_codes_is_decoded(size):
    """A code of two bytes for each pixel, and one that ends the row."""
    pixels = noise(*size)[..., 0]
    rows = (b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in pixels[::-1])
    data = run_length_bmp(size, b"".join(rows) + b"\0\1")
    assert np.array_equal(decode(data, 300)[..., 0], pixels)


def test_a_bmp_of_more_codes_than_its_pixels_need_is_refused_before_they_are_gone_through():
    data = run_length_bmp((64, 64), b"\0\2\0\0" * 20_000)
    with pytest.raises(UnreadableImage, match="far more codes"), opened(data, 64):
        pytest.fail("a decoder would see it")
