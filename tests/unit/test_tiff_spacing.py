"""The um/px that TIFFs of microscopy programs state, and resolutions that are no microscope's."""

import struct
from fractions import Fraction
from io import BytesIO
from typing import Any

import pytest
import tifffile
from PIL import Image, TiffImagePlugin, TiffTags, UnidentifiedImageError

from app.errors import UnreadableImage
from app.imaging.decode import decode, opened
from app.imaging.tiff_spacing import tiff_file_um_per_px, tiff_um_per_px
from app.pathology.geometry import Size
from tests.pictures import encoded, noise

WIDTH, HEIGHT = 12, 8
NONE, INCH, CM = 1, 2, 3
LEAST_SIDE_PX = 64
OME = (
    '<?xml version="1.0" encoding="UTF-8"?><!-- Warning: this comment is an OME-XML metadata block -->'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" Creator="OME Bio-Formats 6.10.1">'
    '<Image ID="Image:0" Name="slide.svs - resolution #1"><Pixels BigEndian="false" DimensionOrder="XYCZT"'
    ' ID="Pixels:0" {}SizeC="3" SizeT="1" SizeX="12" SizeY="8" SizeZ="1" Type="uint8"/></Image></OME>'
)
IMAGEJ = "ImageJ=1.54f\nunit={}\nmin=0.0\nmax=255.0\n"


def tiff(
    description: str | bytes | None = None,
    px: tuple[Any, Any] | None = None,
    unit: int | None = None,
    orientation: int = 1,
) -> bytes:
    """Return a TIFF with these tags: ImageDescription, X- and YResolution in px per unit, their unit, Orientation."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = orientation
    if description is not None:
        tags.tagtype[270] = TiffTags.ASCII
        tags[270] = description.encode() if isinstance(description, str) else description
    if px is not None:
        tags[282], tags[283] = (TiffImagePlugin.IFDRational(each) for each in px)
    if unit is not None:
        tags[296] = unit
    return encoded(noise(WIDTH, HEIGHT), "TIFF", tiffinfo=tags)


def read(data: bytes) -> float | None:
    with opened(data, LEAST_SIDE_PX) as file:
        um_per_px = file.um_per_px()
        assert file.pixels().shape == (HEIGHT, WIDTH, 3)
        return um_per_px


def ome(attributes: str) -> bytes:
    return tiff(OME.format(attributes and f"{attributes} "))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (
            'PhysicalSizeX="0.4990" PhysicalSizeXUnit="\u00b5m" PhysicalSizeY="0.4990" PhysicalSizeYUnit="\u00b5m"',
            0.499,
        ),
        ('PhysicalSizeX="0.25" PhysicalSizeY="0.25"', 0.25),  # the schema's default unit
        ("PhysicalSizeX='0.25' PhysicalSizeY='0.252'", 0.251),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="&#181;m" PhysicalSizeY="0.5" PhysicalSizeYUnit="&#xb5;m"', 0.5),
        ('PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="2.5E-4" PhysicalSizeYUnit="mm"', 0.25),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="pixel" PhysicalSizeY="0.5" PhysicalSizeYUnit="pixel"', None),
        ('PhysicalSizeX="0.5" PhysicalSizeXUnit="Mm" PhysicalSizeY="0.5" PhysicalSizeYUnit="Mm"', None),
        ('PhysicalSizeX="0.5"', None),
        ('PhysicalSizeX="0.5" PhysicalSizeY="0.52"', None),  # not square
        ('PhysicalSizeX="0" PhysicalSizeY="0"', None),
        ('PhysicalSizeX="-0.5" PhysicalSizeY="-0.5"', None),
        ('PhysicalSizeX="nan" PhysicalSizeY="nan"', None),
        ('PhysicalSizeX="INF" PhysicalSizeY="INF"', None),
        ('PhysicalSizeX="half" PhysicalSizeY="half"', None),
        ("", None),
    ],
)
def test_ome_xml_states_it_with_a_unit(attributes, expected):
    assert read(ome(attributes)) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_ome_xml_is_of_the_pixels_as_they_are_stored_whatever_turns_them(tmp_path, orientation):
    data = tiff(OME.format('PhysicalSizeX="0.25" PhysicalSizeY="0.25" '), orientation=orientation)
    with opened(data, LEAST_SIDE_PX) as file:
        assert file.um_per_px() == 0.25
        sides = (file.size.height_px, file.size.width_px)
        assert file.pixels().shape[:2] == sides == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    path = tmp_path / "x.tif"
    path.write_bytes(data)
    assert tiff_file_um_per_px(path, Size(WIDTH, HEIGHT)) == 0.25
    assert tiff_file_um_per_px(path, Size(HEIGHT, WIDTH)) is None


def test_ome_xml_of_another_image_says_nothing():
    stated = 'PhysicalSizeX="0.25" PhysicalSizeY="0.25" '
    other = OME.format(stated).replace('SizeX="12"', 'SizeX="48"')
    assert read(tiff(other)) is None
    assert read(tiff(other, (20_000, 20_000), CM)) is None  # the tags are as old as the words


def test_the_pixels_element_of_the_images_own_size_is_taken():
    full = '<Image><Pixels SizeX="4800" SizeY="3200" PhysicalSizeX="0.25" PhysicalSizeY="0.25"/></Image>'
    text = OME.format('PhysicalSizeX="1" PhysicalSizeY="1" ').replace("<Image ", f"{full}<Image ")
    assert read(tiff(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "<!-- <Pixels SizeX='12' SizeY='8' PhysicalSizeX='1' PhysicalSizeY='1'/> --><OME></OME>",
        "<OME><Pixels SizeX='12' SizeY='8' PhysicalSizeX='1' PhysicalSizeY='1'",
        "<OME",
        "<?xml version='1.0'?>",
        "<OME><![CDATA[<Pixels SizeX='12' SizeY='8' PhysicalSizeX='1' PhysicalSizeY='1'/>]]></OME>",
        "",
        "slide 7, 0.25 um/px",
        b"\xff\xfe<\0O\0M\0E\0",
    ],
)
def test_what_is_no_ome_xml_says_nothing(text):
    assert read(tiff(text)) is None


def test_entities_are_refused_and_not_expanded():
    bomb = "<?xml version='1.0'?><!DOCTYPE OME [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'><!ENTITY c '0.5'>]>"
    pixels = "<OME><Pixels SizeX='12' SizeY='8' PhysicalSizeX='&c;' PhysicalSizeY='&c;'/></OME>"
    assert read(tiff(bomb + pixels)) is None


def test_a_description_is_read_as_far_as_64_kib():
    stated = OME.format('PhysicalSizeX="0.5" PhysicalSizeY="0.5" ')
    assert read(tiff(stated.replace("<Image ", f"<!--{60_000 * 'x'}--><Image "))) == 0.5
    assert read(tiff(stated.replace("<Image ", f"<!--{70_000 * 'x'}--><Image "))) is None
    assert read(tiff(stated.replace("</OME>", f"<!--{70_000 * 'x'}--></OME>"))) == 0.5
    assert read(tiff(stated.replace("</OME>", f"<!--{2**20 * 'x'}--></OME>"))) is None


@pytest.mark.parametrize(
    ("unit", "px", "expected"),
    [
        ("micron", Fraction(2), 0.5),
        ("microns", Fraction(2), 0.5),
        ("um", Fraction(4), 0.25),
        ("\\u00B5m", Fraction(4), 0.25),
        ("\u00b5m", Fraction(4), 0.25),
        ("micron", Fraction(1, 8), 8.0),
        ("nm", Fraction(1, 500), 0.5),
        ("mm", Fraction(2000), 0.5),
        ("cm", Fraction(20_000), 0.5),
        ("micron", Fraction(0), None),
        ("pixel", Fraction(2), None),
        ("inch", Fraction(96), None),
        ("micro", Fraction(2), None),
        ("", Fraction(2), None),
    ],
)
def test_imagej_states_it_with_a_unit(unit, px, expected):
    found = read(tiff(IMAGEJ.format(unit), (px, px), NONE))
    assert found == (None if expected is None else pytest.approx(expected))


def test_imagejs_lines_may_be_windows_own():
    assert read(tiff("ImageJ=1.54f\r\nunit=micron\r\n", (2, 2), NONE)) == 0.5


def test_another_programs_unit_is_not_imagejs():
    assert read(tiff("unit=micron\n", (2, 2), NONE)) is None
    assert read(tiff("ImageJ=1.54f\nvunit=micron\n", (2, 2), NONE)) is None
    assert read(tiff(IMAGEJ.format("micron"))) is None
    assert read(tiff(IMAGEJ.format("micron"), (2, 4), NONE)) is None


@pytest.mark.parametrize(
    ("px", "unit", "expected"),
    [
        ((20_000, 20_000), CM, 0.5),
        ((40_000, 39_800), CM, 0.2506),
        ((50_800, 50_800), INCH, 0.5),
        ((4000, 4000), CM, 2.5),
        ((3999, 3999), CM, None),
        ((9600, 9600), INCH, None),
        ((4800, 4800), INCH, None),
        ((300, 300), INCH, None),
        ((96, 96), INCH, None),
        ((72, 72), INCH, None),
        ((28, 28), CM, None),
        ((0, 0), CM, None),  # as Bio-Formats writes it where it knows none
        ((20_000, 40_000), CM, None),
        ((20_000, 20_000), NONE, None),
        ((20_000, 20_000), None, None),  # which TIFF means to be inches: nobody's statement
        ((20_000, 20_000), 7, None),
    ],
)
def test_a_resolution_counts_where_no_printer_or_screen_has_it(px, unit, expected):
    assert read(tiff(None, px, unit)) == (None if expected is None else pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    ("px", "unit", "description"),
    [
        (20_000, "CENTIMETER", None),
        (50_800, "INCH", None),
        (2, "NONE", IMAGEJ.format("micron")),
        (20_000, "CENTIMETER", OME.format('PhysicalSizeX="0.5" PhysicalSizeY="0.5" ')),
    ],
)
def test_it_is_read_in_either_byte_order(tmp_path, bigtiff, byteorder, px, unit, description):
    path = tmp_path / "x.tif"
    how = {"photometric": "rgb", "metadata": None, "description": description}
    where = {"bigtiff": bigtiff, "byteorder": byteorder}
    tifffile.imwrite(path, noise(WIDTH, HEIGHT), resolution=(px, px), resolutionunit=unit, **how, **where)
    assert tiff_file_um_per_px(path, Size(WIDTH, HEIGHT)) == 0.5
    if not (bigtiff and byteorder == ">"):  # of which uploads are refused, since Pillow opens none
        assert read(path.read_bytes()) == 0.5


def test_the_first_to_state_it_decides():
    stated = 'PhysicalSizeX="0.25" PhysicalSizeY="0.25" '
    assert read(tiff(OME.format(stated), (20_000, 20_000), CM)) == 0.25
    assert read(tiff(OME.format(stated.replace("0.25", "0")), (20_000, 20_000), CM)) is None
    assert read(tiff(OME.format(""), (20_000, 20_000), CM)) == 0.5
    assert read(tiff(IMAGEJ.format("micron"), (1, 1), CM)) == 1
    assert read(tiff(IMAGEJ.format("pixel"), (20_000, 20_000), CM)) == 0.5


def entry_of(data: bytes, tag: int) -> int:
    """Return where a TIFF's first image has a tag: number and type, 2 bytes each, count and value or place, 4 each."""
    [begin] = struct.unpack_from("<I", data, 4)
    [count] = struct.unpack_from("<H", data, begin)
    entries = range(begin + 2, begin + 2 + 12 * count, 12)
    return next(at for at in entries if struct.unpack_from("<H", data, at) == (tag,))


def stated(data: bytes) -> float | None:
    """Return what `tiff_um_per_px` does; `opened` would make a refusal of an error."""
    with Image.open(BytesIO(data)) as image:
        return tiff_um_per_px(image)


@pytest.mark.parametrize("unit", [NONE, CM])
@pytest.mark.parametrize("tag", [270, 282, 283, 296])
@pytest.mark.parametrize("kind", range(1, 14))
@pytest.mark.filterwarnings("ignore:Metadata Warning")
def test_a_tag_of_another_type_costs_nothing(unit, tag, kind):
    data = bytearray(tiff(IMAGEJ.format("micron"), (2, 2), unit))
    struct.pack_into("<H", data, entry_of(data, tag) + 2, kind)
    try:
        decode(bytes(data), LEAST_SIDE_PX)
    except UnreadableImage:  # what Pillow refuses at its first look is refused as ever
        return
    assert stated(bytes(data)) in (None, 0.5)


@pytest.mark.parametrize("tag", [282, 283])
def test_a_resolution_in_words_costs_nothing(tag):
    data = bytearray(tiff(IMAGEJ.format("micron"), (2, 2), NONE))
    struct.pack_into("<HI4s", data, entry_of(data, tag) + 2, 2, 4, b"two\0")
    assert decode(bytes(data), LEAST_SIDE_PX).shape == (HEIGHT, WIDTH, 3)
    assert stated(bytes(data)) is None


@pytest.mark.parametrize("unit", [NONE, CM])
@pytest.mark.parametrize("tag", [282, 283])
@pytest.mark.parametrize("ratio", [(0, 1), (1, 0), (0, 0)])
def test_a_resolution_of_nought_or_by_nought_costs_nothing(unit, tag, ratio):
    data = bytearray(tiff(IMAGEJ.format("micron"), (2, 2), unit))
    [place] = struct.unpack_from("<I", data, entry_of(data, tag) + 8)
    struct.pack_into("<II", data, place, *ratio)
    assert decode(bytes(data), LEAST_SIDE_PX).shape == (HEIGHT, WIDTH, 3)
    assert stated(bytes(data)) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
def test_other_files_state_none(kind):
    assert read(encoded(noise(WIDTH, HEIGHT), kind, dpi=(50_800, 50_800))) is None


def test_no_memory_is_not_taken_for_no_spacing(monkeypatch):
    def full(*_: object) -> None:
        raise MemoryError

    with Image.open(BytesIO(tiff(None, (20_000, 20_000), CM))) as image:
        monkeypatch.setattr("app.imaging.tiff_spacing.of_square_pixels", full)
        with pytest.raises(MemoryError):
            tiff_um_per_px(image)


def test_of_a_file_only_the_first_images_words_of_that_size_count(tmp_path):
    path = tmp_path / "x.tif"
    path.write_bytes(ome('PhysicalSizeX="0.5" PhysicalSizeY="0.5"'))
    assert tiff_file_um_per_px(path, Size(WIDTH, HEIGHT)) == 0.5
    assert tiff_file_um_per_px(path, Size(HEIGHT, WIDTH)) is None
    path.write_bytes(encoded(noise(WIDTH, HEIGHT)))
    assert tiff_file_um_per_px(path, Size(WIDTH, HEIGHT)) is None


def test_a_file_states_its_spacing_whatever_its_pixels_are_encoded_in(tmp_path):
    """Pillow opens none in JPEG 2000, which OpenSlide reads."""
    path = tmp_path / "x.tif"
    data = tiff(None, (20_000, 20_000), CM)
    entry = struct.Struct("<HHII")
    at = data.index(entry.pack(259, 3, 1, 1))  # Compression: none
    path.write_bytes(data[:at] + entry.pack(259, 3, 1, 33_005) + data[at + entry.size :])
    with pytest.raises(UnidentifiedImageError):
        Image.open(path, formats=("TIFF",))
    assert tiff_file_um_per_px(path, Size(WIDTH, HEIGHT)) == 0.5
