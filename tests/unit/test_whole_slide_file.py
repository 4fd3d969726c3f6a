"""Whole-slide files through OpenSlide: levels, spacings, pixels at their place, and files that are none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openslide
import pytest

from app.errors import SlideUnreadable, UnsupportedImage
from app.imaging.resampling import resample_image
from app.pathology.geometry import Region, Size
from app.segmentation.slide import choose_view
from app.slides.openslide import WholeSlideFile
from tests.pictures import BLUE, GREEN, noise, plain
from tests.whole_slides import PATIENT, aperio, pyramid, with_a_hole, write_scn, write_svs, write_tiff

REGIONS = [Region(0, 0, Size(1, 1)), Region(100, 90, Size(60, 70)), Region(5, 120, Size(200, 9))]
"""The latter two lie across borders of tiles."""


def last_corner(size: Size) -> Region:
    return Region(size.width_px - 33, size.height_px - 21, Size(33, 21))


def test_a_tiled_tiff_is_its_levels(tmp_path):
    levels = pyramid(noise(1024, 768))
    with WholeSlideFile(write_tiff(tmp_path / "x.tif", levels, (0.25, 0.25))) as slide:
        assert [level.size for level in slide.levels] == [Size(1024, 768), Size(512, 384), Size(256, 192)]
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert [level.um_per_px for level in slide.levels] == [0.25, 0.5, 1.0]
        assert slide.corner == (0, 0)
        for index, image in enumerate(levels):
            for region in (*REGIONS, last_corner(slide.levels[index].size)):
                assert (slide.read(index, region) == image[region.slices]).all(), (index, region)


def test_a_place_on_a_level_whose_downsample_is_no_whole_number_is_met_within_half_a_finest_pixel(tmp_path):
    """A wave of 2 a px tells a shift: one of 1, 2 or 4 px of the finest level is 3, 6 or 10 apart, half of one is 1."""
    wave = np.zeros((803, 1023, 3), np.uint8)
    wave[..., 0] = triangle(1023)
    wave[..., 1] = triangle(803)[:, np.newaxis]
    finest, coarse = pyramid(wave, (1, 4))
    with WholeSlideFile(write_tiff(tmp_path / "x.tif", [finest, coarse])) as slide:
        downsample = slide.levels[1].downsample
        assert downsample != round(downsample)
        for x in range(0, 200, 13):
            region = Region(x, 151, Size(50, 40))
            apart = slide.read(1, region).astype(int) - coarse[region.slices]
            assert np.abs(apart).max() <= 2, region


def triangle(length: int) -> np.ndarray:
    return np.abs(np.arange(length) % 254 - 127) * 2


def test_an_aperio_slide_states_its_spacing(tmp_path):
    with WholeSlideFile(write_svs(tmp_path / "x.svs", noise(512, 384), mpp=0.4990)) as slide:
        assert [level.um_per_px for level in slide.levels] == pytest.approx([0.499, 0.998, 1.996])


@pytest.mark.parametrize(
    ("across_and_down", "description"),
    [
        (None, None),
        (None, aperio(None)),
        ((0.5, 0.52), None),  # not square
        ((264.6, 264.6), None),  # 96 dots per inch
    ],
)
def test_a_spacing_counts_as_stated_where_the_file_has_none_to_use(tmp_path, across_and_down, description):
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)), across_and_down, description)
    with WholeSlideFile(path) as slide:
        assert [level.um_per_px for level in slide.levels] == [None, None, None]
    with WholeSlideFile(path, 0.25) as slide:
        assert [level.um_per_px for level in slide.levels] == [0.25, 0.5, 1.0]


def ome_of(width_px: int, um_per_px: float) -> str:
    stated = f"SizeX='{width_px}' SizeY='384' PhysicalSizeX='{um_per_px}' PhysicalSizeY='{um_per_px}'"
    return f"<OME><Image><Pixels {stated}/></Image></OME>"


@pytest.mark.parametrize(("width_px", "um_per_px", "expected"), [(512, 0.5, 0.5), (4096, 0.5, None), (512, 50, None)])
def test_ome_xml_counts_where_openslide_finds_no_spacing(tmp_path, width_px, um_per_px, expected):
    """As of a patch: of the image that has the slide's size, and a microscope's."""
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)), None, ome_of(width_px, um_per_px))
    with WholeSlideFile(path) as slide:
        assert slide.levels[0].um_per_px == expected
    with WholeSlideFile(path, 0.25) as slide:
        assert slide.levels[0].um_per_px == (expected or 0.25)


@pytest.mark.parametrize(
    ("tags_um", "description", "expected"),
    [
        (0.5, ome_of(512, 0.25), 0.25),
        (0.5, ome_of(4096, 0.25), None),  # something resized it and left all words as they were
        (0.5, None, 0.5),
        (5.29, None, None),  # 4800 dots per inch
    ],
)
def test_a_tiff_of_no_scanners_kind_is_believed_as_a_patch_is(tmp_path, tags_um, description, expected):
    """Before, OpenSlide's word for the tags of resolution came first, whatever else the file says."""
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)), (tags_um, tags_um), description)
    with WholeSlideFile(path) as slide:
        assert slide.levels[0].um_per_px == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("across_and_down", "description"), [((0.25, 0.25), None), (None, ome_of(512, 0.25))])
def test_a_big_endian_bigtiff_is_believed_too(tmp_path, across_and_down, description):
    how = {"byteorder": ">", "bigtiff": True}
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)), across_and_down, description, **how)
    with WholeSlideFile(path) as slide:
        assert slide.levels[0].um_per_px == 0.25


def test_the_files_own_spacing_wins_and_that_of_nearly_square_pixels_is_the_mean(tmp_path):
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)), (0.5, 0.505))
    with WholeSlideFile(path, 0.25) as slide:
        assert slide.levels[0].um_per_px == pytest.approx(0.5025)


def test_a_slide_is_seen_at_another_spacing_without_seams(tmp_path):
    [image] = pyramid(noise(640, 480), (1,))
    with WholeSlideFile(write_tiff(tmp_path / "x.tif", [image], (0.4, 0.4))) as slide:
        view = choose_view(slide, 1.0, lambda level: True)
        assert view.level.um_per_px == pytest.approx(1.0)
        whole = resample_image(image, Size(256, 192))
        for region in (Region(0, 0, Size(256, 192)), Region(40, 70, Size(91, 53)), Region(200, 180, Size(56, 12))):
            assert (view.read(region) == whole[region.slices]).all(), region


def test_what_was_not_scanned_is_white_and_the_scanned_area_begins_at_the_corner(tmp_path):
    areas = [(100, 200, plain(BLUE, 600, 400)), (800, 900, plain(GREEN, 400, 300))]
    with WholeSlideFile(write_scn(tmp_path / "x.scn", Size(2000, 2000), areas)) as slide:
        assert slide.corner == (100, 200)
        assert [level.size for level in slide.levels] == [Size(1100, 1000), Size(550, 500)]
        assert [level.um_per_px for level in slide.levels] == [0.5, 1.0]
        for index, level in enumerate(slide.levels):
            image = slide.read(index, Region(0, 0, level.size))
            step = round(level.downsample)
            expected = plain((255, 255, 255), level.size.width_px, level.size.height_px)
            expected[: 400 // step, : 600 // step] = BLUE
            expected[700 // step :, 700 // step :] = GREEN
            assert (image == expected).all(), index


@pytest.mark.parametrize("bounds", [(-1, 0, 10, 10), (0, 0, 0, 10), (500, 0, 13, 10), ("x", 0, 1, 1)])
def test_a_scanned_area_that_cannot_be_is_none(tmp_path, monkeypatch, bounds):
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)))
    names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    stated = {name: str(value) for name, value in zip(names, bounds, strict=True)}
    monkeypatch.setattr(openslide.OpenSlide, "properties", stated)
    with WholeSlideFile(path) as slide:
        assert slide.levels[0].size == Size(512, 384)


def test_threads_read_at_once_what_one_reads(tmp_path):
    [image] = pyramid(noise(1024, 1024), (1,))
    regions = [Region(x, y, Size(200, 200)) for x in range(0, 800, 100) for y in range(0, 800, 100)]
    with WholeSlideFile(write_tiff(tmp_path / "x.tif", [image])) as slide, ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda region: slide.read(0, region), regions))
    assert all((pixels == image[region.slices]).all() for pixels, region in zip(read, regions, strict=True))


def test_a_file_is_closed_whatever_happens(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(openslide.OpenSlide, "close", lambda _file: closed.append("file"))
    path = write_tiff(tmp_path / "x.tif", pyramid(noise(512, 384)))
    with WholeSlideFile(path):
        assert closed == []
    assert len(closed) == 1
    with pytest.raises(ZeroDivisionError), WholeSlideFile(path):
        raise ZeroDivisionError
    assert len(closed) == 2


def test_a_file_that_is_no_slide_is_refused(tmp_path):
    (tmp_path / "x.svs").write_text(PATIENT)
    with pytest.raises(UnsupportedImage, match="not a whole-slide file that OpenSlide reads"):
        WholeSlideFile(tmp_path / "x.svs")
    with pytest.raises(FileNotFoundError):
        WholeSlideFile(tmp_path / "y.svs")


def test_a_slide_that_lacks_what_belongs_to_it_does_not_open(tmp_path):
    (tmp_path / "x.mrxs").write_bytes(b"")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "Slidedat.ini").write_text(f"[GENERAL]\nSLIDE_NAME = {PATIENT}\n")
    with pytest.raises(SlideUnreadable, match="lacks a file or folder that belongs beside it") as refused:
        WholeSlideFile(tmp_path / "x.mrxs")
    assert PATIENT not in str(refused.value)


def test_a_slide_with_a_hole_is_read_up_to_it(tmp_path):
    image = noise(1024, 768)
    path = with_a_hole(write_svs(tmp_path / "x.svs", image))
    with WholeSlideFile(path) as slide:
        assert (slide.read(0, Region(0, 0, Size(50, 50))) == image[:50, :50]).all()
        with pytest.raises(SlideUnreadable, match="a part of it cannot be read") as refused:
            slide.read(0, Region(900, 700, Size(50, 50)))
    assert PATIENT not in str(refused.value)
