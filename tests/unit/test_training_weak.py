import numpy as np

from app.pathology.classes import WSSS4LUAD
from model_export.training.dataset import IGNORE, Sample, labels_of
from model_export.training.weak import labels_alone
from tests.model_export_support import label_only_sample

TUMOR, STROMA, NORMAL, BACKGROUND = range(4)
PINK, WHITE = (220, 130, 170), (245, 245, 245)


def pair(class_map, name="7.png"):
    """A pair whose tissue is all of one colour: only the class map tells one from another."""
    table = np.array([PINK, PINK, PINK, WHITE], np.uint8)
    return Sample(name, table[class_map], class_map, labels_of(class_map, WSSS4LUAD))


def alone(class_map, side_px=64):
    return labels_alone([pair(class_map)], side_px, WSSS4LUAD)


def test_pairs_are_cut_into_patches_that_cover_them_once():
    class_map = np.zeros((100, 190), np.uint8)

    patches = alone(class_map)

    assert [patch.name for patch in patches] == [f"7-x{x}-y{y}.png" for y in (0, 50) for x in (0, 63, 126)]
    whole = pair(class_map).image
    whole[::7, ::5] = 9
    cut = labels_alone([Sample("7.png", whole, class_map, (True, False, False))], 64, WSSS4LUAD)
    rows = [np.hstack([patch.image for patch in cut[at : at + 3]]) for at in (0, 3)]
    np.testing.assert_array_equal(np.vstack(rows), whole)


def test_a_small_pair_stays_in_one_piece():
    [patch] = alone(np.zeros((40, 30), np.uint8), side_px=128)

    assert patch.image.shape == (40, 30, 3)


def test_no_annotated_pixel_survives_where_two_classes_are_possible():
    """Two pairs with the same labels and the same image become the same patch, however their pixels were annotated."""
    left = np.full((64, 64), STROMA, np.uint8)
    left[:, :20] = TUMOR
    right = left[:, ::-1].copy()

    [ours], [theirs] = alone(left), alone(right)

    assert (ours.class_map == IGNORE).all()
    np.testing.assert_array_equal(ours.class_map, theirs.class_map)
    assert ours.labels == theirs.labels == (True, True, False)
    assert ours.guesses == (TUMOR, STROMA)


def test_each_patch_has_its_own_labels():
    class_map = np.full((64, 128), TUMOR, np.uint8)
    class_map[:, 64:] = NORMAL

    left, right = alone(class_map)

    assert (left.labels, right.labels) == ((True, False, False), (False, False, True))


def test_the_tissue_of_a_patch_with_one_label_is_of_that_class_and_what_is_bright_is_glass():
    class_map = np.full((64, 64), NORMAL, np.uint8)
    image = pair(class_map).image
    image[:, 40:] = WHITE  # the annotator called it normal

    [patch] = labels_alone([Sample("7.png", image, class_map, (False, False, True))], 64, WSSS4LUAD)

    assert set(patch.class_map[30, :38]) == {NORMAL}
    assert set(patch.class_map[30, 42:]) == {BACKGROUND}


def test_a_patch_without_labels_is_background_whatever_its_colour():
    class_map = np.full((64, 64), BACKGROUND, np.uint8)
    mucin = Sample("7.png", np.full((64, 64, 3), PINK, np.uint8), class_map, (False, False, False))

    [patch] = labels_alone([mucin], 64, WSSS4LUAD)

    assert (patch.class_map == BACKGROUND).all()
    assert patch.guesses == ()


def test_a_patch_that_was_labelled_as_one_is_not_cut():
    labelled = label_only_sample((True, True, False), side_px=200)

    [patch] = labels_alone([labelled], 64, WSSS4LUAD)

    assert patch.name == labelled.name
    assert patch.image is labelled.image
    assert patch.labels == (True, True, False)
    assert patch.guesses == (TUMOR, STROMA)
    assert set(np.unique(patch.class_map)) <= {BACKGROUND, IGNORE}
