import numpy as np
import pytest
import torch
from torch import nn

from model_export.training.dataset import IGNORE, Sample
from model_export.training.teacher import fill_unknown

TUMOR, STROMA, NORMAL, BACKGROUND = range(4)


class Sure(nn.Module):
    """Says the same of every pixel: these four probabilities."""

    def __init__(self, *probabilities):
        super().__init__()
        self.logits = torch.tensor(probabilities).log().view(1, 4, 1, 1)

    def forward(self, images):
        return {"out": self.logits.expand(len(images), 4, *images.shape[2:]), "labels": torch.zeros(len(images), 3)}


class Reddish(nn.Module):
    """Calls what is red tumor and all else stroma, and notes the sizes that it was asked about."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[2:]))
        red = 20 * (images[:, 0] - images[:, 1] - 1)
        nothing = torch.full_like(red, -30)
        return {"out": torch.stack([red, -red, nothing, nothing], 1), "labels": torch.zeros(len(images), 3)}


def unknown(labels=(None, None, None), guesses=(STROMA, NORMAL), shape=(32, 48), class_map=None):
    if class_map is None:
        class_map = np.full(shape, IGNORE, np.uint8)
    return Sample("unknown.png", np.full((*class_map.shape, 3), 128, np.uint8), class_map, labels, guesses)


def filled(probabilities, sample, confidence=0.8):
    return set(np.unique(fill_unknown([Sure(*probabilities)], sample, confidence).class_map))


@pytest.mark.parametrize(("probability", "given"), [(0.85, STROMA), (0.75, IGNORE)])
def test_unknown_pixels_get_a_class_where_the_teacher_is_sure(probability, given):
    rest = (1 - probability) / 3

    assert filled((rest, probability, rest, rest), unknown()) == {given}


@pytest.mark.parametrize("likeliest", [TUMOR, BACKGROUND])
def test_a_class_that_the_source_rules_out_is_not_given_and_no_other_in_its_place(likeliest):
    probabilities = [0.04] * 4
    probabilities[likeliest] = 0.88

    assert filled(probabilities, unknown(), confidence=0.01) == {IGNORE}


def test_what_is_known_stays():
    class_map = np.full((32, 32), IGNORE, np.uint8)
    class_map[:8], class_map[8:16] = TUMOR, BACKGROUND

    done = fill_unknown([Sure(0.01, 0.97, 0.01, 0.01)], unknown(class_map=class_map), 0.8).class_map

    np.testing.assert_array_equal(done[:16], class_map[:16])
    assert (done[16:] == STROMA).all()
    assert done.dtype == np.uint8
    assert (class_map[16:] == IGNORE).all()  # the given one is not written to


def test_a_label_that_is_absent_leaves_its_probability_to_the_others():
    probabilities = (0.3, 0.1, 0.55, 0.05)  # of the three that are left, tumor has two thirds

    assert filled(probabilities, unknown((True, True, False), (TUMOR, STROMA)), confidence=0.6) == {TUMOR}
    assert filled(probabilities, unknown((True, True, False), (TUMOR, STROMA)), confidence=0.7) == {IGNORE}
    assert filled(probabilities, unknown((True, None, None), (TUMOR, STROMA)), confidence=0.1) == {IGNORE}


def test_a_sample_of_which_nothing_may_be_guessed_or_all_is_known_is_itself():
    for sample in (unknown(guesses=()), unknown(class_map=np.zeros((32, 32), np.uint8))):
        assert fill_unknown([], sample, 0.5) is sample


def test_networks_are_averaged():
    networks = [Sure(0.02, 0.9, 0.04, 0.04), Sure(0.02, 0.3, 0.64, 0.04)]  # 0.6 for stroma together

    assert set(np.unique(fill_unknown(networks, unknown(), 0.55).class_map)) == {STROMA}
    assert set(np.unique(fill_unknown(networks, unknown(), 0.65).class_map)) == {IGNORE}


@pytest.mark.parametrize("scales", [(1.0,), (1.5,), (1.0, 0.5, 2.0)])
def test_pixels_stay_where_they_are_through_zooms_and_mirrors(scales):
    image = np.zeros((40, 70, 3), np.uint8)
    image[:20, :30, 0] = 255
    sample = Sample("red.png", image, np.full((40, 70), IGNORE, np.uint8), (True, True, False), (TUMOR, STROMA))
    network = Reddish()

    done = fill_unknown([network], sample, 0.9, scales).class_map

    expected = np.full((40, 70), STROMA, np.uint8)
    expected[:20, :30] = TUMOR
    assert (done != expected).mean() < 0.06  # along the border only
    assert set(done[:17, :27].flat) == {TUMOR}
    assert set(done[23:].flat) == set(done[:, 33:].flat) == {STROMA}
    assert len(network.sizes) == 4 * len(scales)
