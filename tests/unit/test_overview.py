"""An image from afar, gathered from its parts: the means of blocks, whatever the parts are."""

from itertools import pairwise

import numpy as np
import pytest

from app.imaging.overview import Overview
from app.pathology.geometry import Region, Size
from app.pathology.tiling import plan_windows
from tests.pictures import noise


def gathered(image: np.ndarray, longest_px: int, window_px: int, margin_px: int) -> Overview:
    size = Size(image.shape[1], image.shape[0])
    overview = Overview(size, longest_px)
    for window in reversed(plan_windows(size, window_px, margin_px, 1)):
        overview.add(window.read, image[window.read.slices])
    return overview


def means(image: np.ndarray, step: int) -> np.ndarray:
    """Return the mean of each block, one by one."""
    height, width = image.shape[:2]
    rows = [
        [image[top : top + step, left : left + step].mean(axis=(0, 1)) for left in range(0, width, step)]
        for top in range(0, height, step)
    ]
    return np.array(rows)


@pytest.mark.parametrize(("longest_px", "step"), [(100, 2), (199, 1), (67, 3), (40, 5), (1, 199), (2, 100)])
@pytest.mark.parametrize(("columns", "rows"), [([0, 199], [0, 103]), ([0, 30, 31, 77, 199], [0, 41, 103])])
def test_it_is_the_mean_of_each_block_to_the_last_row_and_column(longest_px, step, columns, rows):
    image, overview = noise(199, 103), Overview(Size(199, 103), longest_px)
    for left, right in pairwise(columns):
        for top, bottom in pairwise(rows):
            overview.add(Region(left, top, Size(right - left, bottom - top)), image[top:bottom, left:right])
    shown = overview.image()
    assert (overview.step, shown.dtype) == (step, np.uint8)
    assert shown.shape == (-(-103 // step), -(-199 // step), 3)
    assert np.abs(shown - means(image, step)).max() <= 0.5


@pytest.mark.parametrize("longest_px", [150, 50, 21])
def test_windows_that_overlap_change_nothing_where_blocks_are_plain(longest_px):
    step = -(-150 // longest_px)
    small = noise(-(-150 // step), -(-90 // step))
    image = small.repeat(step, axis=0).repeat(step, axis=1)[:90, :150]
    assert (gathered(image, longest_px, 40, 7).image() == small).all()


def test_a_map_beside_it_has_the_value_amid_each_block():
    overview = Overview(Size(10, 7), 4)
    assert overview.step == 3
    class_map = np.arange(70, dtype=np.uint8).reshape(7, 10)
    assert overview.nearest(class_map).tolist() == [[11, 14, 17, 19], [41, 44, 47, 49], [61, 64, 67, 69]]


def test_a_large_white_block_does_not_overflow():
    overview = Overview(Size(2000, 2000), 1)
    for _ in range(4):
        overview.add(Region(0, 0, Size(2000, 2000)), np.full((2000, 2000, 3), 255, np.uint8))
    assert overview.image().tolist() == [[[255, 255, 255]]]
