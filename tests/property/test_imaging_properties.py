import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.imaging.paint import paint_mask
from app.imaging.resampling import resample_map
from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX, Size
from app.pathology.tiling import Stitcher, plan_windows
from tests.pictures import encoded, noise, opened
from tests.unit.test_scale import segment

spacings = st.floats(LEAST_UM_PER_PX, MOST_UM_PER_PX)
sides = st.integers(1, 400)
plans = st.integers(1, 8).flatmap(lambda k: st.tuples(st.just(32 * k), st.integers(0, 16 * (k - 1))))


@given(sides, sides, plans, st.randoms(use_true_random=False))
def test_stitching_what_was_split_is_the_identity_in_any_order(width, height, plan, order):
    window_px, margin_px = plan
    size = Size(width, height)
    whole = np.random.default_rng(width * 1000 + height).integers(0, 4, (height, width), dtype=np.uint8)
    windows = plan_windows(size, window_px, margin_px, 32)
    order.shuffle(windows)
    stitcher = Stitcher(size)
    for window in windows:
        piece = whole[window.read.slices]
        stitcher.add(window, piece, piece + 10)
    assert np.array_equal(stitcher.class_map, whole)
    assert np.array_equal(stitcher.confidence, whole + 10)


@given(sides, sides, plans)
def test_windows_partition_the_patch(width, height, plan):
    covered = np.zeros((height, width), int)
    for window in plan_windows(Size(width, height), *plan, 32):
        covered[window.keep.slices] += 1
        assert window.read.x_px % 32 == window.read.y_px % 32 == 0
        assert window.read.size.width_px <= plan[0]
        assert window.read.size.height_px <= plan[0]
    assert (covered == 1).all()


@given(sides, sides, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_reading_what_was_painted_is_the_identity(width, height, seed):
    class_map = np.random.default_rng(seed).integers(0, 4, (height, width), dtype=np.uint8)
    assert np.array_equal(np.asarray(opened(paint_mask(class_map, WSSS4LUAD))), class_map)


@given(st.integers(1, 40), st.integers(1, 40), spacings, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_whatever_the_spacing_the_answer_is_of_the_uploads_size(width, height, mpp, seed):
    patch = segment(encoded(noise(width, height, seed)), mpp)
    assert patch.class_map.shape == patch.confidence.shape == patch.image.shape[:2] == (height, width)
    assert set(np.unique(patch.class_map)) <= set(range(4))
    counts = np.bincount(patch.class_map.ravel(), minlength=4)
    assert patch.fractions == tuple(counts / (width * height))


@given(sides, sides, st.floats(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_a_map_that_was_enlarged_comes_back(width, height, factor, seed):
    class_map = np.random.default_rng(seed).integers(0, 4, (height, width), dtype=np.uint8)
    larger = resample_map(class_map, Size(round(width * factor), round(height * factor)))
    assert np.array_equal(resample_map(larger, Size(width, height)), class_map)
