"""Each kind of file that is accepted, and the pixels that it means, worked out beside Pillow's and by hand."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from app.imaging.decode import decode, decode_by_pillow
from app.pathology.arrays import RgbImage
from tests.pictures import encoded, exif, grey_tiff, noise, plain, png_of, unfiltered

LIMIT = 4096
IMAGE = noise(21, 13, seed=7)
GREY = IMAGE[..., 0].copy()
ALPHA = np.resize(np.array([0, 255, 128], np.uint8), GREY.shape)
BITS = GREY > 127
PALETTE = np.array([(10, 20, 30), (200, 40, 90), (0, 255, 0), (255, 255, 255)], np.uint8)
INDICES = GREY % 4
BLENDED, LOSSY = 1, 4
"""By how much a pixel may differ: where opacities are rounded, and behind a JPEG of even colours."""


def corners() -> RgbImage:
    """Four corners of four colours, in whole blocks of a JPEG."""
    image = plain((255, 255, 255), 48, 32)
    for rows, columns, colour in (
        (slice(16), slice(16), (200, 30, 30)),
        (slice(16), slice(-16, None), (30, 160, 30)),
        (slice(-16, None), slice(16), (30, 30, 200)),
        (slice(-16, None), slice(-16, None), (90, 90, 90)),
    ):
        image[rows, columns] = colour
    return image


UPRIGHT: dict[int, Callable[[RgbImage], RgbImage]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}
"""Where the stored first row and first column belong, by orientation (CIPA DC-008, section 4.6.5)."""
FORMATS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("file_format", FORMATS)
def test_each_orientation_is_turned_upright(file_format, orientation):
    data = encoded(corners(), file_format, exif=exif(orientation), **FORMATS[file_format])
    found, expected = decode(data, LIMIT), UPRIGHT[orientation](corners())
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (LOSSY if file_format == "JPEG" else 0)
    assert np.array_equal(found, decode_by_pillow(data, LIMIT))


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of each pass, its first column and row and the steps to the next ones; PNG, third edition, section 8."""


def interlaced(image: np.ndarray, colour_type: int) -> bytes:
    passes = (image[y::down, x::across] for x, y, across, down in ADAM7)
    rows = b"".join(unfiltered(pixels) for pixels in passes if pixels.size)
    height, width = image.shape[:2]
    return png_of((width, height), 8 * image.itemsize, colour_type, rows, interlaced=True)


def png(image: np.ndarray, colour_type: int) -> bytes:
    height, width = image.shape[:2]
    return png_of((width, height), 8 * image.itemsize, colour_type, unfiltered(image))


def wide(image: np.ndarray) -> np.ndarray:
    """Sixteen bits whose high bytes are `image`, whose low bytes differ, and whose extremes are extremes."""
    low = np.where((image == 0) | (image == 255), image, image[::-1])
    return image.astype(np.uint16) << 8 | low


def on_glass(image: RgbImage) -> RgbImage:
    """What shows of it where it is as opaque as `ALPHA` says."""
    opacity = ALPHA[..., None] / 255
    return np.round(image * opacity + 255 * (1 - opacity)).astype(np.uint8)


def three(grey: np.ndarray) -> RgbImage:
    return np.repeat(grey[..., None], 3, axis=2)


def palette_image() -> Image.Image:
    image = Image.fromarray(INDICES).convert("P")
    image.putdata(INDICES.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return image


def palette_tiff(step: int) -> bytes:
    """A TIFF whose palette has each colour, of 8 bits, times so much."""
    colours = np.zeros((256, 3), np.uint16)
    colours[: len(PALETTE)] = step * PALETTE.astype(np.uint16)
    file = BytesIO()
    tifffile.imwrite(file, INDICES.astype(np.uint8), photometric="palette", colormap=colours.T, metadata=None)
    return file.getvalue()


def cmyk(image: RgbImage) -> Image.Image:
    """Its inks, without black, of which the colours are what is left of white."""
    return Image.merge("CMYK", [*Image.fromarray(255 - image).split(), Image.new("L", image.shape[1::-1])])


def packed(bits: np.ndarray) -> bytes:
    return np.packbits(bits, axis=1).tobytes()


RGBA = np.dstack((IMAGE, ALPHA))
SIZE = (21, 13)
EVEN = plain((200, 60, 120), 32, 16)
BLACK_AND_WHITE = three(BITS.astype(np.uint8) * 255)
Table = dict[str, tuple[Callable[[], bytes], RgbImage, int]]
FILES: Table = {
    "PNG, interlaced": (lambda: interlaced(IMAGE, 2), IMAGE, 0),
    "PNG, grey and interlaced": (lambda: interlaced(GREY, 0), three(GREY), 0),
    "PNG, interlaced and of a pixel": (lambda: interlaced(IMAGE[:1, :1], 2), IMAGE[:1, :1], 0),
    "PNG, RGBA and interlaced": (lambda: interlaced(RGBA, 6), on_glass(IMAGE), BLENDED),
    "PNG, RGBA": (lambda: png(RGBA, 6), on_glass(IMAGE), BLENDED),
    "PNG, RGBA of 16 bits": (lambda: png(wide(RGBA), 6), on_glass(IMAGE), BLENDED),
    "PNG, grey and alpha": (lambda: png(np.dstack((GREY, ALPHA)), 4), on_glass(three(GREY)), BLENDED),
    "PNG, grey and alpha of 16 bits": (
        lambda: png(wide(np.dstack((GREY, ALPHA))), 4),
        on_glass(three(GREY)),
        BLENDED,
    ),
    "PNG, 1 bit": (lambda: encoded(Image.fromarray(BITS)), BLACK_AND_WHITE, 0),
    "PNG, palette": (lambda: encoded(palette_image()), PALETTE[INDICES], 0),
    "TIFF, RGBA": (lambda: encoded(RGBA, "TIFF"), on_glass(IMAGE), BLENDED),
    "TIFF, palette": (lambda: encoded(palette_image(), "TIFF"), PALETTE[INDICES], 0),
    "TIFF, palette of 16 bits": (lambda: palette_tiff(257), PALETTE[INDICES], 0),
    "TIFF, palette of 8 bits in 16": (lambda: palette_tiff(1), PALETTE[INDICES], 0),
    "TIFF, 1 bit": (lambda: encoded(Image.fromarray(BITS), "TIFF"), BLACK_AND_WHITE, 0),
    "TIFF, 1 bit, fax": (lambda: encoded(Image.fromarray(BITS), "TIFF", compression="group4"), BLACK_AND_WHITE, 0),
    "TIFF, 1 bit, white is 0": (
        lambda: grey_tiff(SIZE, 1, packed(~BITS), counts_from_white=True),
        BLACK_AND_WHITE,
        0,
    ),
    "TIFF, 8 bits, white is 0": (
        lambda: grey_tiff(SIZE, 8, (255 - GREY).tobytes(), counts_from_white=True),
        three(GREY),
        0,
    ),
    "TIFF, 8 bits": (lambda: grey_tiff(SIZE, 8, GREY.tobytes()), three(GREY), 0),
    "TIFF, CMYK": (lambda: encoded(cmyk(IMAGE), "TIFF"), IMAGE, 0),
    "TIFF, JPEG in it": (lambda: encoded(EVEN, "TIFF", compression="jpeg", quality=100), EVEN, LOSSY),
    "WebP, RGBA": (lambda: encoded(RGBA, "WEBP", lossless=True, exact=True), on_glass(IMAGE), BLENDED),
    "BMP, palette": (lambda: encoded(palette_image(), "BMP"), PALETTE[INDICES], 0),
    "BMP, 1 bit": (lambda: encoded(Image.fromarray(BITS), "BMP"), BLACK_AND_WHITE, 0),
    "JPEG, progressive": (lambda: encoded(EVEN, "JPEG", quality=100, progressive=True), EVEN, LOSSY),
    "JPEG, CMYK": (lambda: encoded(cmyk(EVEN), "JPEG", quality=100), EVEN, LOSSY),
    "JPEG, grey": (lambda: encoded(EVEN[..., 0].copy(), "JPEG", quality=100), three(EVEN[..., 0]), LOSSY),
}


@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_file_has_its_pixels_whichever_way_it_is_decoded(name):
    make, expected, tolerance = FILES[name]
    data = make()
    found = decode(data, LIMIT)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    assert np.array_equal(found, decode_by_pillow(data, LIMIT))
