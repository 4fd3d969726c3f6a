import numpy as np
import pytest

from app.imaging.paint import paint_confidence, paint_mask, paint_overlay
from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import Size
from app.pathology.tiling import pad_to_stride, plan_windows
from tests.pictures import noise, opened, plain


def test_the_mask_is_a_palette_png_in_the_palette():
    class_map = np.array([[0, 1], [2, 3]], np.uint8)
    mask = opened(paint_mask(class_map, WSSS4LUAD))
    assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (2, 2))
    assert np.array_equal(np.asarray(mask), class_map)
    assert np.asarray(mask.convert("RGB")).reshape(-1, 3).tolist() == [
        [0, 64, 128],
        [64, 128, 0],
        [243, 152, 0],
        [255, 255, 255],
    ]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 224])
def test_few_classes_take_two_bits_a_pixel_and_more_take_eight(width):
    class_map = (np.arange(6 * width).reshape(6, width) % 4).astype(np.uint8)
    mask = paint_mask(class_map, WSSS4LUAD)
    assert mask[24] == 2
    assert np.array_equal(np.asarray(opened(mask)), class_map)
    classes = (*WSSS4LUAD, *WSSS4LUAD[:3])
    mask = paint_mask(class_map + 3, classes)
    assert mask[24] == 8
    assert np.array_equal(np.asarray(opened(mask)), class_map + 3)
    assert opened(mask).convert("RGB").getpixel((0, 0)) == classes[3].color


def test_part_of_a_map_can_be_painted():
    class_map = (np.arange(400).reshape(20, 20) % 4).astype(np.uint8)
    assert np.array_equal(np.asarray(opened(paint_mask(class_map[3:9, 2:14], WSSS4LUAD))), class_map[3:9, 2:14])


def test_the_confidence_is_a_greyscale_png():
    confidence = noise(37, 21)[..., 0].copy()
    picture = opened(paint_confidence(confidence))
    assert (picture.format, picture.mode) == ("PNG", "L")
    assert np.array_equal(np.asarray(picture), confidence)


def test_the_mask_carries_no_metadata():
    assert set(opened(paint_mask(np.zeros((3, 3), np.uint8), WSSS4LUAD)).info) <= {"transparency"}


def test_the_overlay_blends_tissue_and_leaves_background():
    image = plain((100, 200, 40), 4, 1)
    overlay = opened(paint_overlay(image, np.array([[0, 1, 2, 3]], np.uint8), WSSS4LUAD, 0.5))
    assert overlay.mode == "RGB"
    expected = [(50, 132, 84), (82, 164, 20), (171, 176, 20), (100, 200, 40)]
    assert np.abs(np.asarray(overlay)[0].astype(int) - expected).max() <= 1


def test_opacity_runs_from_photo_to_palette():
    image, class_map = noise(6, 6), np.ones((6, 6), np.uint8)
    assert np.array_equal(np.asarray(opened(paint_overlay(image, class_map, WSSS4LUAD, 0))), image)
    assert (np.asarray(opened(paint_overlay(image, class_map, WSSS4LUAD, 1))) == (64, 128, 0)).all()


def test_a_patch_within_one_window_is_one_window():
    [window] = plan_windows(Size(512, 100), 512, 64, 32)
    assert window.read == window.keep
    assert window.read.size == Size(512, 100)


def test_a_kept_pixel_has_its_margin():
    size = Size(1500, 900)
    for window in plan_windows(size, 512, 64, 32):
        keep, read = window.keep, window.read
        assert keep.x_px - read.x_px >= 64 or keep.x_px == 0
        assert keep.y_px - read.y_px >= 64 or keep.y_px == 0
        right, bottom = keep.x_px + keep.size.width_px, keep.y_px + keep.size.height_px
        assert read.x_px + read.size.width_px - right >= 64 or right == size.width_px
        assert read.y_px + read.size.height_px - bottom >= 64 or bottom == size.height_px
        assert read.size.rounded_up(32) == Size(512, 512)


def test_the_largest_patch_needs_no_more_windows_than_it_must():
    assert len(plan_windows(Size(4096, 4096), 512, 64, 32)) == 11 * 11


@pytest.mark.parametrize(("width", "height"), [(1, 1), (31, 33), (64, 32), (2, 95)])
def test_padding_reflects_and_keeps_what_was_there(width, height):
    image = noise(width, height)
    padded = pad_to_stride(image, 32)
    assert padded.shape[0] % 32 == padded.shape[1] % 32 == 0
    assert np.array_equal(padded[:height, :width], image)
    assert np.array_equal(padded, np.pad(image, ((0, -height % 32), (0, -width % 32), (0, 0)), mode="reflect"))
    assert padded.flags.c_contiguous
