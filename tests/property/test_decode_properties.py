"""However a common file is damaged, what becomes of it is what Pillow alone would make of it."""

import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.imaging.png import RGB, png_file
from app.pathology.geometry import Size
from tests.pictures import encoded, noise
from tests.unit.test_common_files import same_outcome

sides = st.integers(1, 40)
_MARKERS = (0x01, 0xC0, 0xC2, 0xC4, 0xD0, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xFE, 0xFF)


def tissue(width: int, height: int, seed: int) -> np.ndarray:
    """Return smooth spots with some noise, of which every coefficient is used."""
    spots = Image.fromarray(noise(max(1, width // 6), max(1, height // 6), seed)).resize((width, height))
    return (np.asarray(spots) // 2 + noise(width, height, seed) // 8).astype(np.uint8)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    spoilt = bytearray(data)
    at = int(rng.integers(len(data)))
    match rng.integers(6):
        case 0:
            spoilt[at] ^= 1 << int(rng.integers(8))
        case 1:
            spoilt[at : at + int(rng.integers(1, 9))] = b""
        case 2:
            spoilt[at:at] = rng.bytes(int(rng.integers(1, 9)))
        case 3:
            spoilt[at : at + 2] = bytes((0xFF, rng.choice(_MARKERS)))
        case 4:
            spoilt = spoilt[:at]
        case 5:
            spoilt[at:at] = spoilt[at : at + int(rng.integers(200))]
    return bytes(spoilt)


@given(sides, sides, st.integers(0, 2**32 - 1), st.integers(0, 9), st.booleans())
@settings(max_examples=150)
def test_a_damaged_png_has_pillows_outcome(width, height, seed, level, is_grey):
    rng = np.random.default_rng(seed)
    image = tissue(width, height, seed)
    data = encoded(image[..., 0].copy() if is_grey else image, compress_level=level)
    for _ in range(8):
        same_outcome(damaged(data, rng))


@given(sides, sides, st.integers(0, 2**32 - 1), st.integers(-3, 3))
@settings(max_examples=100)
def test_rows_of_any_filters_and_any_number_have_pillows_outcome(width, height, seed, more_bytes):
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (height + 1, 1 + 3 * width), np.uint8)
    rows[:, 0] = rng.integers(0, 5 if seed % 4 else 6, height + 1)
    data = rows.tobytes()[: height * (1 + 3 * width) + more_bytes]
    same_outcome(png_file(Size(width, height), 8, RGB, zlib.compress(data)))


@given(sides, sides, st.integers(0, 2**32 - 1), st.integers(30, 100), st.booleans(), st.sampled_from((0, 1, 2)))
@settings(max_examples=150)
def test_a_damaged_jpeg_has_pillows_outcome(width, height, seed, quality, is_progressive, subsampling):
    rng = np.random.default_rng(seed)
    restart = {"restart_marker_blocks": 2} if seed % 3 == 0 else {}
    image = tissue(width, height, seed)
    data = encoded(image, "JPEG", quality=quality, progressive=is_progressive, subsampling=subsampling, **restart)
    for _ in range(8):
        spoilt = damaged(data, rng)
        same_outcome(spoilt)
        same_outcome(spoilt + b"\xff\xd9")
