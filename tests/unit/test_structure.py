"""What a file says of itself at a glance, before a decoder looks."""

from io import BytesIO

import pytest
from PIL import Image, PngImagePlugin

from app.imaging.structure import glance
from app.pathology.geometry import Size
from tests.pictures import encoded, noise


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
