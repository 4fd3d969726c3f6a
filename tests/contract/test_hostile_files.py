"""Files that are made to cost more than they are worth, or to be two things at once: answered, or refused in words."""

import re
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image, PngImagePlugin
from pydicom import dcmread, uid

from app.main import create_app
from app.settings import Settings
from tests.dicom_sources import file_of, over_one_another, whole_slide
from tests.fakes import ColourSegmenter, classes_of
from tests.pictures import (
    BLUE,
    WHITE,
    codestream_of,
    encoded,
    exif,
    from_base64,
    noise,
    plain,
    png_chunk,
    png_of,
    quarters,
    run_length_bmp,
    tiff_of,
    tiles_over,
)

SIDE_PX = 2048
MOST_BYTES = 96 * 2**20
"""Beyond what the process has already: ten times the largest image here."""
MOST_SECONDS = 20
PATCH = quarters(32, 24)


@pytest.fixture(scope="module")
def service() -> Iterator[TestClient]:
    with TestClient(create_app(Settings(max_side_px=SIDE_PX, cores=1), ColourSegmenter())) as running:
        yield running


def png_with(*chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A grey PNG with chunks before its pixels, which are `pixels` compressed."""
    return png_of((32, 32), 8, 0, bytes(32 * 33) if pixels is None else pixels, *chunks)


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that states a size which it has not."""
    data = encoded(noise(16, 16), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    whole = encoded(plain(BLUE, side, side), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + whole[-2:]


def big_tiff(entries: dict[int, tuple[int, int, int]]) -> bytes:
    plainly = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (16, 1, 16)}
    directory = sorted({**plainly, 277: (3, 1, 1), 278: (4, 1, 8), 279: (16, 1, 64), **entries}.items())
    text = b"II+\0\x08\0\0\0" + struct.pack("<Q", 80) + bytes(64) + struct.pack("<Q", len(directory))
    return text + b"".join(struct.pack("<HHQQ", number, *entry) for number, entry in directory) + bytes(8)


def of_rationals(tag: int, count: int, begin: int = 0) -> bytes:
    """A TIFF's directory, to lie at `begin`, of one tag of so many numbers, and the numbers; and a unit, in inches."""
    directory = struct.pack("<HHHIIHHIII", 2, tag, 5, count, begin + 30, 296, 3, 1, 2, 0)
    return directory + bytes(8 * count)


def metadata_of_rationals(tag: int, count: int) -> bytes:
    return b"Exif\0\0II*\0\x08\0\0\0" + of_rationals(tag, count, begin=8)


def jpeg_with(*segments: bytes) -> bytes:
    """A JPEG with bytes before its own, and without JFIF, which would state a resolution."""
    whole = encoded(PICTURE, "JPEG")
    return whole[:2] + b"".join(segments) + whole[20:]


def in_segments(metadata: bytes) -> bytes:
    begin, size = b"Exif\0\0", 65_000
    parts = [metadata[at : at + size] for at in range(len(begin), len(metadata), size)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", 8 + len(part)) + begin + part for part in parts)


def nested(depth: int) -> bytes:
    """A DICOM file of sequences in sequences, none of which ends."""
    opened = b"\x40\x00\x30\xa7SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    at = SLIDE.index(b"\xe0\x7f\x10\x00OB")
    return SLIDE[:at] + opened * depth + SLIDE[at:]


def jpeg_2000_slide(**cut: int) -> bytes:
    slide = over_one_another(codestream_of(1024, 1, **cut), 1024, tile=1024, syntax=uid.JPEG2000Lossless)
    return file_of(slide)


def text_of(*, zipped: bool, notes: int = 1) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for number in range(notes):
        if zipped:
            info.add_text(f"note {number}", "x" * 2**20, zip=True)
        else:
            info.add_itxt(f"note {number}", "x" * 2**20, zip=True)
    return info


@cache
def zeros() -> bytes:
    return zlib.compress(bytes(2**27), 1)


PICTURE = Image.fromarray(PATCH)
OTHER = PICTURE.rotate(90)
SLIDE = file_of(whole_slide(noise(40, 36), tile=20))
RLE_OF_NOTHING = struct.pack("<16L", 3, *([64] * 3), *([0] * 12)) + b"\x80" * 60_000
PHOTOSHOP = b"\xff\xed" + struct.pack(">H", 60) + b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 3 + bytes(8)

BOMBS: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "a PNG's pixels that inflate to 128 MiB": (lambda: png_with(pixels=bytes(2**27)), {200, 422}),
    "a PNG of 60,000 px": (
        lambda: png_with().replace(struct.pack(">II", 32, 32), struct.pack(">II", 60_000, 60_000)),
        {413, 422},
    ),
    "a PNG's profile that inflates to 128 MiB": (lambda: png_with(png_chunk(b"iCCP", b"p\0\0" + zeros())), {200, 422}),
    "a PNG's text that inflates to 128 MiB": (lambda: png_with(png_chunk(b"zTXt", b"t\0\0" + zeros())), {200, 422}),
    "the same in iTXt": (lambda: png_with(png_chunk(b"iTXt", b"t\0\1\0\0\0" + zeros())), {200, 422}),
    "a PNG of 200 texts of 1 MiB": (lambda: encoded(PICTURE, pnginfo=text_of(zipped=True, notes=200)), {200, 422}),
    "a TIFF of 4 billion strips": (lambda: tiff_of({273: (4, 2**32 - 1, 8), 279: (4, 2**32 - 1, 8)}), {200, 422}),
    "a TIFF of 1 GiB of a tag": (lambda: tiff_of({270: (2, 2**30, 8)}), {422}),
    "a TIFF of 300 tags of 2 MiB over the same bytes": (
        lambda: tiff_of({40_000 + number: (7, 2**21, 8) for number in range(300)}, pixels=bytes(2**21)),
        {422},
    ),
    "a TIFF of a strip of 4 GiB": (lambda: tiff_of({279: (4, 1, 2**32 - 1)}), {200, 422}),
    "a TIFF of rows without end": (lambda: tiff_of({278: (4, 1, 2**32 - 1)}), {200, 422}),
    "a TIFF of 65,535 samples a pixel": (lambda: tiff_of({277: (3, 1, 65_535)}), {415, 422}),
    "a TIFF's deflated strip of 128 MiB": (lambda: tiff_of({259: (3, 1, 8)}, pixels=zeros()), {200, 422}),
    "a TIFF of 2 billion px a side": (lambda: tiff_of({256: (4, 1, 2**31), 257: (4, 1, 2**31)}), {413, 422}),
    "a TIFF of tiles of 2 billion px": (
        lambda: tiff_of({322: (4, 1, 2**31), 323: (4, 1, 2**31), 324: (4, 1, 8)}),
        {413, 422},
    ),
    "a TIFF whose directory follows itself": (lambda: tiff_of({}, following=72), {200, 415, 422}),
    "a TIFF whose directory lies outside": (lambda: b"II*\0" + struct.pack("<I", 2**31), {422}),
    "a BigTIFF of a strip count beyond 64 bits": (lambda: big_tiff({273: (16, 2**63, 16)}), {200, 422}),
    "a BigTIFF of a strip beyond the file": (lambda: big_tiff({273: (16, 1, 2**63)}), {422}),
    "a PNG of 300,000 empty chunks of pixels": (lambda: png_with(png_chunk(b"IDAT", b"") * 300_000), {422}),
    "a PNG whose metadata is 390,000 numbers": (
        lambda: png_with(png_chunk(b"eXIf", metadata_of_rationals(0x0112, 390_000)[6:])),
        {422},
    ),
    "a JPEG whose metadata is 390,000 numbers": (
        lambda: jpeg_with(in_segments(metadata_of_rationals(0x011A, 390_000))),
        {422},
    ),
    "a JPEG of 3 MB between its segments": (lambda: jpeg_with(bytes(3 * 10**6)), {422}),
    "a TIFF of a million strips": (
        lambda: tiff_of({273: (3, 10**6, 8), 278: (4, 1, 1)}, pixels=bytes(2 * 10**6)),
        {422},
    ),
    "a TIFF that leads to 390,000 numbers": (
        lambda: tiff_of({34665: (4, 1, 72)}, pixels=bytes(64) + of_rationals(33434, 390_000, begin=72)),
        {200},
    ),
    "a WebP of 16,383 px": (
        lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<IBI", 18, 0x2F, 0x0FFFFFFF) + bytes(13),
        {413, 422},
    ),
    "a JPEG of 65,535 px": (lambda: jpeg_of(65_535, 65_535), {413}),
    "a JPEG of no height": (lambda: jpeg_of(16, 0), {422}),
    "a JPEG of 100 scans": (lambda: jpeg_of_many_scans(SIDE_PX, 100), {200}),
    "a JPEG of 1,000 scans": (lambda: jpeg_of_many_scans(64, 1000), {422}),
    "a BMP of 2 billion px": (
        lambda: encoded(noise(8, 8), "BMP").replace(struct.pack("<ii", 8, 8), struct.pack("<ii", 2**30, 2**30)),
        {413, 422},
    ),
    "a BMP of a negative width": (
        lambda: encoded(noise(8, 8), "BMP").replace(struct.pack("<ii", 8, 8), struct.pack("<ii", -8, 8)),
        {413, 422},
    ),
    "a BMP of 2 million ends of rows": (lambda: run_length_bmp((64, 64), b"\0\0" * 2_000_000), {422}),
    "a TIFF of 4,096 tiles over a deflated megabyte of nothing": (
        lambda: tiles_over(1024, zlib.compress(b"")[:2] + b"\0\0\0\xff\xff" * 200_000, 8),
        {422},
    ),
    "a TIFF of 4,096 tiles over a JPEG of 250,000 comments": (
        lambda: tiles_over(1024, jpeg_with(b"\xff\xfe\0\2" * 250_000), 7),
        {422},
    ),
    "DICOM of 4,096 frames over the same RLE that makes nothing": (
        lambda: file_of(over_one_another(RLE_OF_NOTHING, SIDE_PX, tile=32, syntax=uid.RLELossless)),
        {422},
    ),
    "DICOM of 4,096 frames over the same 900 segments of a JPEG": (
        lambda: file_of(over_one_another(jpeg_with(PHOTOSHOP * 900), SIDE_PX, tile=32, syntax=uid.JPEGBaseline8Bit)),
        {422},
    ),
    "DICOM of JPEG 2000 in precincts of 2 px": (lambda: jpeg_2000_slide(precinct=1), {422}),
    "DICOM of JPEG 2000 in code-blocks of 4 px": (lambda: jpeg_2000_slide(block=0), {422}),
    "DICOM of JPEG 2000 in tiles of 8 px": (lambda: jpeg_2000_slide(tile=8), {422}),
    "DICOM of JPEG 2000 in 65,535 layers": (lambda: jpeg_2000_slide(precinct=7, layers=65_535), {422}),
    "DICOM, deflated": (lambda: SLIDE.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1), {415, 422}),
    "DICOM of sequences in sequences": (lambda: nested(5000), {422}),
    "DICOM of 2 billion frames": (lambda: SLIDE.replace(b"IS\x02\x004 ", b"IS\x0a\x002147483647", 1), {415, 422}),
}


@pytest.mark.parametrize(("make", "allowed"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_costs_little_memory_and_time(service, make, allowed):
    data = make()
    assert len(data) < 4 * 2**20
    peak_bytes()  # what it took to make is none of the service's
    before = peak_bytes()
    start = time.monotonic()
    answer = service.post("/classify", content=data, headers={"Content-Type": "image/png"})
    assert time.monotonic() - start < MOST_SECONDS
    assert answer.status_code in allowed, answer.text
    assert peak_bytes() - before < MOST_BYTES
    if answer.status_code != 200:
        assert answer.headers["content-type"] == "application/problem+json"


def peak_bytes() -> int:
    """Return the most memory that this process has had since the last question; 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    assert found is not None
    return 1024 * int(found[1])


def post(service: TestClient, data: bytes, **headers: str):
    return service.post("/segment", content=data, headers={"Content-Type": "image/png", **headers})


@pytest.mark.parametrize(
    "data",
    [
        encoded(PICTURE) + b"PK\x03\x04" + bytes(26) + b"PK\x05\x06" + bytes(18),
        encoded(PICTURE) + b"<script>alert(1)</script>",
        encoded(PICTURE, "BMP") + encoded(OTHER, "BMP"),
        encoded(PICTURE, "TIFF") + encoded(OTHER),
        encoded(PICTURE, "WEBP", lossless=True) + b"%PDF-1.7",
    ],
    ids=["PNG and ZIP", "PNG and HTML", "BMP and BMP", "TIFF and PNG", "WebP and PDF"],
)
def test_a_file_with_another_behind_it_is_the_first(service, data):
    answer = post(service, data)
    assert answer.status_code == 200
    assert np.array_equal(np.asarray(from_base64(answer.json()["mask"])), classes_of(PATCH))
    assert "script" not in answer.text


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\n" + encoded(PICTURE, "JPEG"),
        b"GIF89a" + encoded(PICTURE),
        b"PK\x03\x04" + encoded(PICTURE),
        b"<svg xmlns='http://www.w3.org/2000/svg'>" + encoded(PICTURE),
        encoded(PICTURE, "GIF", save_all=True, append_images=[OTHER]),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
        b"8BPS\0\1" + bytes(40),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + encoded(PICTURE, "JPEG"),
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(400),
    ],
    ids=[
        *("PDF and JPEG", "GIF and PNG", "ZIP and PNG", "SVG and PNG", "animated GIF", "JPEG 2000", "Photoshop"),
        *("HEIC", "AVIF"),
    ],
)
def test_a_file_that_begins_as_another_is_that_other(service, data):
    assert post(service, data).status_code == 415


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_of_several_pictures_in_a_file_none_is_chosen(service, kind):
    first, second = Image.fromarray(PATCH), Image.fromarray(PATCH)  # saving leaves traces of one format for the next
    answer = post(service, encoded(first, kind, save_all=True, append_images=[second, OTHER.copy()]))
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:problem-type:tessera:unsupported-image")


def test_what_is_both_dicom_and_tiff_is_dicom(service):
    """PS3.10, section 7.1, leaves the first 128 bytes to whoever writes; a TIFF's header fits in."""
    slide = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0) + SLIDE[10:]
    assert post(service, slide).json()["image"]["width"] == 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_masks_are_of_the_upright_picture(service, kind):
    """What a viewer shows, and what the answer's width and height say; not the order in which pixels were stored."""
    stored = plain(WHITE, 32, 16)
    stored[:8, :8] = BLUE
    turned = exif(6)  # to be turned clockwise
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    lossless = {"lossless": True} if kind == "WEBP" else {}
    answer = post(service, encoded(stored, kind, exif=turned, **options, **lossless)).json()
    assert (answer["image"]["width"], answer["image"]["height"]) == (16, 32)
    mask = np.asarray(from_base64(answer["mask"]))
    assert mask.shape == (32, 16)
    assert mask[2, -3] == 0
    assert mask[2, 2] == mask[-3, -3] == 3


@pytest.mark.parametrize(
    "metadata",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(60_000),
        b"\0" * 60_000,
    ],
)
@pytest.mark.parametrize("orientation", [None, 0, 9, 65_535])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_odd_exif_does_not_cost_the_pixels(service, metadata, orientation):
    odd = metadata if orientation is None else exif(orientation)
    answer = post(service, encoded(PICTURE, "JPEG", exif=odd)).json()
    assert (answer["image"]["width"], answer["image"]["height"]) == (32, 24)


@pytest.mark.parametrize(
    "profile", [b"garbage", bytes(200_000), b"\xff" * 128, struct.pack(">I", 2**32 - 1) + bytes(124)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_odd_profiles_are_not_looked_at(service, profile, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    plainly, with_profile = (
        post(service, encoded(PICTURE, kind, **options, **more)).json() for more in ({}, {"icc_profile": profile})
    )
    assert plainly["mask"] == with_profile["mask"]


def test_an_element_without_a_representation_is_repeated_as_unknown_and_not_quoted(service, caplog):
    """Found by the fuzzer, in a sequence that a Segmentation repeats: pydicom writes none that it has not parsed."""
    empty_sequence = b"\x40\x00\x62\x05SQ" + bytes(6)
    assert SLIDE.count(empty_sequence) == 1
    damaged = SLIDE.replace(empty_sequence, b"\xf4\xff\xd3\x25\x04\0\0\0DOE^")
    answer = post(service, damaged, Accept="application/dicom")
    assert answer.status_code == 200
    [repeated] = [element for element in dcmread(BytesIO(answer.content)).iterall() if element.tag == 0xFFF425D3]
    assert (repeated.VR, repeated.value) == ("UN", b"DOE^")
    assert "DOE" not in caplog.text


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_truncated_dicom_is_unreadable(service, syntax, share):
    whole = file_of(whole_slide(noise(40, 36), tile=20, syntax=syntax))
    answer = post(service, whole[: int(len(whole) * share)])
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:problem-type:tessera:unreadable-image")
