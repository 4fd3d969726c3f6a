"""The measures that warnings rest on, against the same written plainly; and counting and painting, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.imaging.appearance import _percentile, appearance
from app.imaging.paint import paint_confidence, paint_overlay
from app.imaging.sharpness import sharpness
from app.pathology.classes import WSSS4LUAD
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Size
from benchmarks.image_work import plain_appearance
from model_export.synthetic import draw_patch
from tests.pictures import noise, opened, plain

seeds = st.integers(0, 2**32 - 1)
bytes_ = st.integers(0, 255)


@given(st.integers(32, 500), st.integers(32, 500), st.integers(0, 1000), st.booleans())
@settings(max_examples=60)
def test_tissue_is_measured_as_written_plainly(width, height, seed, is_inverted):
    image = draw_patch(seed, Size(width, height))[0]
    check(255 - image if is_inverted else image)


@given(st.integers(1, 300), st.integers(1, 300), seeds)
@settings(max_examples=60)
def test_noise_of_any_shape_is_measured_as_written_plainly(width, height, seed):
    check(noise(width, height, seed))


def check(image: np.ndarray) -> None:
    seen = appearance(image)
    tissue, he_stain, ink, sharp = plain_appearance(image)
    assert seen.tissue == pytest.approx(tissue, rel=1e-6)
    assert seen.he_stain == pytest.approx(he_stain, rel=1e-6)
    assert seen.ink == pytest.approx(ink, rel=1e-6)
    # In float32, whose rounding is felt where a patch is nearly plain.
    assert seen.sharpness == (None if sharp is None else pytest.approx(sharp, rel=1e-4))


@given(st.lists(bytes_, min_size=1, max_size=60), st.sampled_from((0, 5, 50, 95, 100)))
def test_a_percentile_of_bytes_is_numpys(values, percent):
    array = np.array(values, np.uint8)
    assert float(_percentile(array, percent)) == pytest.approx(np.percentile(array, percent), rel=1e-12)


@given(st.tuples(bytes_, bytes_, bytes_), st.integers(32, 500))
def test_whatever_is_plain_has_no_sharpness(colour, side_px):
    assert sharpness(plain(colour, side_px, 40)) is None


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), seeds)
def test_pixels_are_counted_as_numpy_does_also_in_part_of_a_map(width, height, class_count, seed):
    class_map = np.random.default_rng(seed).integers(0, class_count, (height, width), np.uint8)
    for part in (class_map, class_map[height // 3 :, width // 3 :], class_map[:0]):
        assert pixel_counts(part, class_count) == np.bincount(part.ravel(), minlength=class_count).tolist()


@given(st.integers(1, 90), st.integers(1, 90), seeds)
def test_pictures_come_back_to_the_pixel(width, height, seed):
    image = noise(width, height, seed)
    assert np.array_equal(np.asarray(opened(paint_confidence(image[..., 0].copy()))), image[..., 0])
    background = np.full((height, width), 3, np.uint8)
    assert np.array_equal(np.asarray(opened(paint_overlay(image, background, WSSS4LUAD, 0.4))), image)
