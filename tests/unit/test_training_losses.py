import numpy as np
import torch
from torch.nn import functional

from model_export.training.augment import Batch
from model_export.training.dataset import IGNORE
from model_export.training.losses import dice_loss, objective


def certain(class_maps, classes=4, strength=30.0):
    """Return logits that are sure of `class_maps`, whose ignored pixels are given to class 0."""
    known = torch.where(class_maps == IGNORE, 0, class_maps)
    return strength * functional.one_hot(known, classes).permute(0, 3, 1, 2).float()


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
    batch = Batch(torch.zeros(0), class_maps, labels)
    losses, gradients = [], []
    for original in (logits, other):
        values = original.clone().requires_grad_()
        loss = objective({"out": values, "labels": label_logits}, batch, dice_weight=0.5, label_weight=0.2)
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

    loss = objective({"out": logits, "labels": label_logits}, Batch(torch.zeros(0), class_maps, labels), 0.5, 0.2)

    log_probabilities = logits.log_softmax(dim=1)
    entropy = -log_probabilities.gather(1, class_maps[:, None]).mean()
    chance = label_logits.sigmoid()
    binary = -(labels * chance.log() + (1 - labels) * (1 - chance).log()).mean()
    torch.testing.assert_close(loss, entropy + 0.5 * dice_loss(logits, class_maps) + 0.2 * binary)


def test_a_batch_without_any_known_pixel_counts_by_its_labels_alone():
    logits = torch.randn((2, 4, 4, 4), requires_grad=True)
    label_logits = torch.zeros((2, 3), requires_grad=True)
    batch = Batch(torch.zeros(0), torch.full((2, 4, 4), IGNORE), torch.ones((2, 3)))

    loss = objective({"out": logits, "labels": label_logits}, batch, dice_weight=0.5, label_weight=0.2)
    loss.backward()

    torch.testing.assert_close(loss.detach(), torch.tensor(0.2 * np.log(2)).float())
    assert logits.grad is None
    assert (label_logits.grad < 0).all()
