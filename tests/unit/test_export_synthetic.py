import numpy as np
import pytest

from app.pathology.classes import NORMAL, STROMA, TUMOR, WSSS4LUAD
from app.pathology.geometry import Size
from model_export.synthetic import draw_patch

GLASS = 3


def test_the_same_seed_draws_the_same_patch_and_another_another():
    size = Size(70, 50)
    image, class_map = draw_patch(5, size)

    again, same = draw_patch(5, size)
    other, _ = draw_patch(6, size)

    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(class_map, same)
    assert (image != other).any()


@pytest.mark.parametrize(
    "size", [Size(1, 1), Size(1, 9), Size(9, 1), Size(37, 5), Size(33, 65), Size(224, 96)], ids=str
)
def test_a_patch_of_any_size_is_drawn(size):
    image, class_map = draw_patch(0, size, (TUMOR, STROMA, NORMAL))

    assert image.shape == (size.height_px, size.width_px, 3)
    assert class_map.shape == (size.height_px, size.width_px)
    assert image.dtype == class_map.dtype == np.uint8


@pytest.mark.parametrize("tissues", [(TUMOR,), (STROMA,), (NORMAL,), (TUMOR, STROMA), (TUMOR, STROMA, NORMAL)])
def test_a_large_patch_holds_the_tissues_asked_for_and_glass(tissues):
    _, class_map = draw_patch(0, Size(448, 448), tissues)

    assert set(np.unique(class_map)) == {*(WSSS4LUAD.index(tissue) for tissue in tissues), GLASS}


@pytest.mark.parametrize("seed", range(4))
def test_no_patch_holds_a_tissue_that_was_not_asked_for(seed):
    _, class_map = draw_patch(seed, Size(96, 96), (STROMA,))

    assert set(np.unique(class_map)) <= {WSSS4LUAD.index(STROMA), GLASS}


def test_without_tissue_it_is_all_bright_glass():
    image, class_map = draw_patch(0, Size(64, 64), ())

    assert (class_map == GLASS).all()
    assert image.min() > 220


def test_tissue_is_stained_and_glass_is_bright():
    image, class_map = draw_patch(0, Size(448, 448), (TUMOR, STROMA))

    brightness = [image[class_map == index].mean() for index in (0, 1, GLASS)]
    assert max(brightness[:2]) < brightness[2] - 40
    red, green, blue = image[class_map != GLASS].mean(axis=0)
    assert green < min(red, blue)  # eosin and haematoxylin both let green through least
