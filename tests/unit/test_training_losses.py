import numpy as np
import torch
from torch.nn import functional

from model_export.training.augment import Batch
from model_export.training.dataset import IGNORE
from model_export.training.losses import bag_loss, dice_loss, label_loss, parts
from tests.model_export_support import objective, recipe


def certain(class_maps, classes=4, strength=30.0):
    """Return logits that are sure of `class_maps`, whose ignored pixels are given to class 0."""
    known = torch.where(class_maps == IGNORE, 0, class_maps)
    return strength * functional.one_hot(known, classes).permute(0, 3, 1, 2).float()


def batch_of(class_maps, labels, inside=None):
    """A batch whose images nobody looks at."""
    return Batch(
        torch.zeros(0), class_maps, labels, torch.ones(class_maps.shape, dtype=torch.bool) if inside is None else inside
    )


def random_case(seed=0, ignored=0.0):
    rng = torch.Generator().manual_seed(seed)
    class_maps = torch.randint(0, 4, (2, 8, 6), generator=rng)
    class_maps[torch.rand(class_maps.shape, generator=rng) < ignored] = IGNORE
    return torch.randn((2, 4, 8, 6), generator=rng), class_maps


def test_dice_is_zero_for_a_perfect_prediction_and_one_for_the_opposite():
    _, class_maps = random_case()

    assert dice_loss(certain(class_maps), class_maps) < 1e-6
    assert dice_loss(certain((class_maps + 1) % 4), class_maps) > 1 - 1e-6


def test_dice_equals_its_definition():
    logits, class_maps = random_case(1)
    probabilities = logits.softmax(dim=1).numpy()
    expected = []
    for index in range(4):
        truth = class_maps.numpy() == index
        overlap = probabilities[:, index][truth].sum()
        expected.append(1 - 2 * overlap / (probabilities[:, index].sum() + truth.sum()))

    np.testing.assert_allclose(float(dice_loss(logits, class_maps)), np.mean(expected), rtol=1e-5)


def test_dice_leaves_out_classes_that_the_batch_does_not_hold():
    class_maps = torch.zeros((1, 4, 4), dtype=torch.int64)
    logits = torch.zeros((1, 4, 4, 4))

    # only tumor is there: overlap 16 / 4, total 16 / 4 + 16
    np.testing.assert_allclose(float(dice_loss(logits, class_maps)), 1 - 2 * 4 / 20, rtol=1e-6)


def test_ignored_pixels_change_neither_loss_nor_gradient():
    logits, class_maps = random_case(2, ignored=0.4)
    ignored = (class_maps == IGNORE)[:, None].expand_as(logits)
    other = torch.where(ignored, logits + 5 * torch.randn_like(logits), logits)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    label_logits = torch.zeros((2, 3))
    batch = batch_of(class_maps, labels)
    losses, gradients = [], []
    for original in (logits, other):
        values = original.clone().requires_grad_()
        loss = objective({"out": values, "labels": label_logits}, batch, recipe(dice_weight=0.5, label_weight=0.2))
        loss.backward()
        losses.append(loss.detach())
        gradients.append(values.grad)

    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)
    assert (gradients[0][ignored] == 0).all()
    assert (gradients[0][~ignored] != 0).any()


def test_the_objective_is_the_weighted_sum_of_its_three_parts():
    logits, class_maps = random_case(3)
    label_logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])

    outputs = {"out": logits, "labels": label_logits}
    loss = objective(outputs, batch_of(class_maps, labels), recipe(dice_weight=0.5, label_weight=0.2))

    log_probabilities = logits.log_softmax(dim=1)
    entropy = -log_probabilities.gather(1, class_maps[:, None]).mean()
    chance = label_logits.sigmoid()
    binary = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    torch.testing.assert_close(loss, entropy + 0.5 * dice_loss(logits, class_maps) + 0.2 * binary)


def test_a_batch_without_any_known_pixel_counts_by_its_labels_alone():
    logits = torch.randn((2, 4, 4, 4), requires_grad=True)
    label_logits = torch.zeros((2, 3), requires_grad=True)
    batch = batch_of(torch.full((2, 4, 4), IGNORE), torch.ones((2, 3)))

    loss = objective({"out": logits, "labels": label_logits}, batch, recipe(dice_weight=0.5, label_weight=0.2))
    loss.backward()

    torch.testing.assert_close(loss.detach(), torch.tensor(0.2 * np.log(2)).float())
    assert not logits.grad.any()
    assert (label_logits.grad < 0).all()


def test_labels_that_are_not_known_change_neither_loss_nor_gradient():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]], requires_grad=True)
    labels = torch.tensor([[1.0, float("nan"), 0.0], [float("nan"), float("nan"), 1.0]])

    loss = label_loss(logits, labels)
    loss.backward()

    known = ~labels.isnan()
    expected = functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    torch.testing.assert_close(loss, expected)
    assert torch.equal(logits.grad != 0, known)


def test_a_batch_without_any_known_label_costs_nothing():
    logits = torch.ones((2, 3), requires_grad=True)

    loss = label_loss(logits, torch.full((2, 3), float("nan")))
    loss.backward()

    assert float(loss.detach()) == 0
    assert not logits.grad.any()


BACKGROUND = 3
LEFT_TUMOR = torch.tensor([[0, 0, 1, 1]]).expand(4, 4)
"""Tumor on the left, stroma on the right."""


def bag_of(logits_of, labels, class_map=None, inside=None):
    """The loss of one crop of 4x4 px whose logits are sure of the class map `logits_of`."""
    unknown = torch.full((1, 4, 4), IGNORE)
    batch = batch_of(unknown if class_map is None else class_map[None], torch.tensor([labels]), inside)
    return float(bag_loss(certain(logits_of[None]), batch))


def test_maps_that_show_what_the_labels_say_cost_nothing():
    assert bag_of(torch.zeros((4, 4), dtype=torch.int64), [1.0, 0.0, 0.0]) < 1e-3
    assert bag_of(LEFT_TUMOR, [0.0, 1.0, 0.0]) > 0.4
    # each covers half of the bag: its generalised mean is 0.5 ** (1 / 4), and neither of the other two is there
    np.testing.assert_allclose(bag_of(LEFT_TUMOR, [1.0, 1.0, 0.0]), 2 * -np.log(0.5**0.25) / 4, rtol=1e-2)


def test_deciding_pays_more_than_leaving_every_pixel_in_doubt():
    doubt = torch.zeros((1, 4, 4, 4))
    doubt[:, 2:] = -30
    batch = batch_of(torch.full((1, 4, 4), IGNORE), torch.tensor([[1.0, 1.0, 0.0]]))

    assert bag_of(LEFT_TUMOR, [1.0, 1.0, 0.0]) < 0.3 * float(bag_loss(doubt, batch))


def test_tissue_called_glass_costs_as_a_wrong_label_does():
    glass = torch.full((4, 4), BACKGROUND)

    assert bag_of(glass, [1.0, 0.0, 0.0]) > 4


def test_known_glass_and_the_mirrored_rim_are_in_no_bag():
    right = torch.zeros((1, 4, 4), dtype=torch.bool)
    right[:, :, 2:] = True
    glass_on_the_left = torch.tensor([[BACKGROUND, BACKGROUND, IGNORE, IGNORE]]).expand(4, 4)

    for seen in ({"inside": right}, {"class_map": glass_on_the_left}):
        assert bag_of(LEFT_TUMOR, [0.0, 1.0, 0.0], **seen) < 1e-3
        assert bag_of(LEFT_TUMOR, [1.0, 0.0, 0.0], **seen) > 1


def test_a_label_that_is_not_known_asks_nothing_of_the_maps():
    unknown = float("nan")

    assert bag_of(LEFT_TUMOR, [1.0, unknown, 0.0]) < bag_of(LEFT_TUMOR, [1.0, 0.0, 0.0])
    # of four classes three are known; tumor covers half
    np.testing.assert_allclose(bag_of(LEFT_TUMOR, [1.0, unknown, 0.0]), -np.log(0.5**0.25) / 3, rtol=1e-2)


def test_a_class_that_must_show_and_has_vanished_everywhere_still_gets_a_gradient():
    logits = certain(torch.zeros((1, 4, 4), dtype=torch.int64)).requires_grad_()  # stroma: 1e-13 at each pixel

    bag_loss(logits, batch_of(torch.full((1, 4, 4), IGNORE), torch.tensor([[1.0, 1.0, 0.0]]))).backward()

    # of -log p of one of four classes, whichever pixels it flows to
    torch.testing.assert_close(logits.grad[:, 1].sum(), torch.tensor(-1 / 4), rtol=1e-3, atol=0)


def test_bags_are_pooled_by_the_generalised_mean_of_their_pixels():
    logits, class_maps = random_case(5, ignored=0.5)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    each = []
    for probability, class_map, has in zip(
        logits.softmax(dim=1), class_maps, [[1, 0, 1, 0], [0, 1, 0, 0]], strict=True
    ):
        pooled = (probability[:, class_map != BACKGROUND] ** 4).mean(dim=1) ** 0.25
        each += [-torch.log(value if held else 1 - value) for value, held in zip(pooled, has, strict=True)]

    torch.testing.assert_close(bag_loss(logits, batch_of(class_maps, labels)), torch.stack(each).mean())


def test_empty_bags_and_extreme_logits_keep_the_gradient_finite():
    for class_map, strength in ((torch.full((4, 4), BACKGROUND), 1.0), (torch.full((4, 4), IGNORE), 1e4)):
        logits = (strength * torch.randn((1, 4, 4, 4))).requires_grad_()
        loss = bag_loss(logits, batch_of(class_map[None], torch.tensor([[1.0, 1.0, 0.0]])))
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(logits.grad.isfinite().all())


def test_bags_count_where_the_recipe_says_so():
    logits, class_maps = random_case(4, ignored=0.5)
    outputs, batch = {"out": logits, "labels": torch.zeros((2, 3))}, batch_of(class_maps, torch.ones((2, 3)))

    assert "bags" not in parts(outputs, batch, recipe())
    torch.testing.assert_close(parts(outputs, batch, recipe(bag_weight=0.3))["bags"], 0.3 * bag_loss(logits, batch))
    torch.testing.assert_close(
        objective(outputs, batch, recipe(bag_weight=0.3)),
        objective(outputs, batch, recipe()) + 0.3 * bag_loss(logits, batch),
    )
