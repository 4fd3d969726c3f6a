"""A slide's class map as a file: what Pillow and OpenSlide find in it."""

from itertools import count

import numpy as np
import openslide
import pytest
from PIL import Image

from app.imaging.mask_tiff import write_mask_tiff
from app.pathology.classes import WSSS4LUAD

COLOURS = np.array([tissue.color for tissue in WSSS4LUAD], np.uint8)


def written(path, class_map, um_per_px=1.25):
    write_mask_tiff(path, class_map, WSSS4LUAD, um_per_px, "tessera 0", "of a slide; um_per_px=1.25 \u00b5")
    return path


def speckled(width, height):
    return np.random.default_rng(0).integers(0, 4, (height, width), dtype=np.uint8)


def test_its_pixels_are_class_indices_in_the_palettes_colours(tmp_path):
    class_map = speckled(1300, 700)
    with Image.open(written(tmp_path / "x.tif", class_map)) as image:
        assert image.mode == "P"
        assert (np.asarray(image) == class_map).all()
        assert image.getpalette()[:12] == COLOURS.ravel().tolist()
        assert image.tag_v2[305] == "tessera 0"
        for level in range(image.n_frames):
            image.seek(level)
            assert image.info["dpi"] == pytest.approx((25_400 / 1.25 / 2**level,) * 2)


def test_openslide_sees_a_pyramid_in_exactly_these_colours(tmp_path):
    class_map = speckled(1300, 700)
    with openslide.OpenSlide(written(tmp_path / "x.tif", class_map)) as slide:
        assert slide.level_dimensions == ((1300, 700), (650, 350), (325, 175))
        assert slide.properties["openslide.mpp-x"] == slide.properties["openslide.mpp-y"] == "1.25"
        assert slide.properties["tiff.ImageDescription"] == "of a slide; um_per_px=1.25 \u00b5"
        for level, size in zip(count(), slide.level_dimensions, strict=False):
            pixels = np.asarray(slide.read_region((0, 0), level, size))
            step = 2**level
            assert (pixels[..., :3] == COLOURS[class_map[step // 2 :: step, step // 2 :: step]]).all()
            assert (pixels[..., 3] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (511, 3), (513, 1), (1025, 1)])
def test_levels_end_with_one_tile_and_miss_no_border(tmp_path, size):
    class_map = speckled(*size)
    with openslide.OpenSlide(written(tmp_path / "x.tif", class_map, None)) as slide:
        width, height = size
        expected = [(width, height)]
        while max(expected[-1]) > 512:
            step = 2 ** len(expected)
            expected.append((-(-width // step), -(-height // step)))
        assert list(slide.level_dimensions) == expected
        assert "openslide.mpp-x" not in slide.properties
