"""Which files take the faster way, and that it is no other way: what Pillow makes of them is the truth."""

import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from app.errors import ImageRejected
from app.imaging.common_files import common_pixels
from app.imaging.decode import decode, decode_by_pillow
from app.imaging.png import GREY, RGB, png_file
from app.pathology.geometry import Size
from model_export.synthetic import draw_patch
from tests.pictures import BEFORE_END, encoded, exif, noise, with_chunk

LIMIT = 4096
PATCH = draw_patch(3, Size(77, 50))[0]


def fast(data: bytes) -> np.ndarray | None:
    with Image.open(BytesIO(data)) as image:
        assert isinstance(image, ImageFile.ImageFile)
        return common_pixels(data, image)


def opaque(alpha: int) -> np.ndarray:
    return np.dstack((PATCH, np.full(PATCH.shape[:2], alpha, np.uint8)))


def text(key: str, value: str) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, value)
    return info


COMMON = {
    "RGB PNG": encoded(PATCH),
    "grey PNG": encoded(PATCH[..., 0].copy()),
    "opaque PNG": encoded(opaque(255)),
    "one pixel": encoded(PATCH[:1, :1].copy()),
    "PNG of many blocks": encoded(noise(200, 200)),
    "PNG with text and resolution": encoded(PATCH, dpi=(300, 300), pnginfo=text("Software", "a scanner")),
    "PNG with bytes after its end": encoded(PATCH) + b"more",
    "JPEG": encoded(PATCH, "JPEG"),
    "JPEG with all colours": encoded(PATCH, "JPEG", quality=95, subsampling=0),
    "progressive JPEG": encoded(PATCH, "JPEG", progressive=True),
    "grey JPEG": encoded(PATCH[..., 0].copy(), "JPEG"),
    "upright JPEG": encoded(PATCH, "JPEG", exif=exif(1)),
    "JPEG with restarts": encoded(PATCH, "JPEG", restart_marker_blocks=2),
    "JPEG of many blocks": encoded(noise(400, 300), "JPEG", quality=95),
}
OTHER = {
    "palette": encoded(Image.fromarray(PATCH).convert("P")),
    "translucent PNG": encoded(opaque(128)),
    "PNG with a transparent colour": encoded(PATCH, transparency=(1, 2, 3)),
    "PNG that may be turned": encoded(PATCH, exif=exif(6)),
    "PNG turned by XMP": encoded(PATCH, pnginfo=text("XML:com.adobe.xmp", 'tiff:Orientation="6"')),
    "PNG turned after its pixels": with_chunk(encoded(PATCH), b"eXIf", exif(6).tobytes()[6:], BEFORE_END),
    "16 bits": encoded(np.arange(12, dtype=np.uint16).reshape(3, 4)),
    "turned JPEG": encoded(PATCH, "JPEG", exif=exif(6)),
    "CMYK JPEG": encoded(Image.fromarray(PATCH).convert("CMYK"), "JPEG"),
    "JPEG with bytes after its end": encoded(PATCH, "JPEG") + b"more",
    "TIFF": encoded(PATCH, "TIFF"),
    "BMP": encoded(PATCH, "BMP"),
}


@pytest.mark.parametrize("name", COMMON)
def test_common_files_are_decoded_fast_and_as_by_pillow(name):
    pixels = fast(COMMON[name])
    assert pixels is not None
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, decode_by_pillow(COMMON[name], LIMIT))
    assert np.array_equal(pixels, decode(COMMON[name], LIMIT))


@pytest.mark.parametrize("name", OTHER)
def test_other_files_are_left_to_pillow(name):
    assert np.array_equal(decode(OTHER[name], LIMIT), decode_by_pillow(OTHER[name], LIMIT))
    if name != "turned JPEG":  # which `decode` does not ask about
        assert fast(OTHER[name]) is None


def test_every_colour_of_an_opaque_png_is_kept():
    values = np.dstack(
        (np.arange(256, dtype=np.uint8)[None].repeat(3, axis=0).T[None], np.full((1, 256), 255, np.uint8))
    )
    assert np.array_equal(decode_by_pillow(encoded(values), LIMIT), values[..., :3])


@pytest.mark.parametrize("name", ["RGB PNG", "JPEG", "progressive JPEG", "JPEG with restarts"])
def test_a_file_cut_anywhere_has_pillows_outcome(name):
    whole = COMMON[name]
    for length in range(0, len(whole), 23):
        same_outcome(whole[:length])
        same_outcome(whole[:length] + b"\xff\xd9")


@pytest.mark.parametrize("filter_number", range(6))
@pytest.mark.parametrize("colours", [GREY, RGB])
def test_each_filter_is_undone_and_no_sixth_is_known(filter_number, colours):
    rows = np.random.default_rng(0).integers(0, 256, (9, 1 + 7 * (3 if colours == RGB else 1)), np.uint8)
    rows[:, 0] = filter_number
    same_outcome(png_file(Size(7, 9), 8, colours, zlib.compress(rows.tobytes())))


@pytest.mark.parametrize("rows", [8, 10])
def test_more_or_fewer_rows_than_stated_have_pillows_outcome(rows):
    same_outcome(png_file(Size(7, 9), 8, RGB, zlib.compress(bytes(22 * rows))))


@pytest.mark.parametrize("part", [b"IDAT", b"IEND"])
def test_a_misnamed_chunk_has_pillows_outcome(part):
    same_outcome(COMMON["RGB PNG"].replace(part, b"abCd"))


def same_outcome(data: bytes) -> None:
    outcome, expected = outcome_of(decode, data), outcome_of(decode_by_pillow, data)
    if isinstance(expected, np.ndarray):
        assert isinstance(outcome, np.ndarray)
        assert np.array_equal(outcome, expected)
    else:
        assert outcome == expected


def outcome_of(how: Callable[[bytes, int], np.ndarray], data: bytes) -> np.ndarray | tuple[type, str]:
    """Return the pixels, or what the refusal is and says."""
    try:
        return how(data, LIMIT)
    except ImageRejected as refusal:
        return type(refusal), str(refusal)
