"""The training objective: cross-entropy and Dice over known pixels, binary cross-entropy over labels and over bags."""

import torch
from torch import Tensor
from torch.nn import functional

from model_export.config import Recipe
from model_export.training.augment import Batch
from model_export.training.dataset import IGNORE

_BAG_EXPONENT = 4.0
"""1 would pool a map by its mean, infinity by its maximum; Jia et al. (see `bag_loss`) pool by this."""

_SUREST = -1e-6
"""Logarithm of the largest pooled probability: float32 cannot tell what is nearer to 1 from 1 itself."""


def parts(outputs: dict[str, Tensor], batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """Return what each term adds to the loss, each a weighted scalar, by name.

    What is not known counts for nothing: neither the pixels with `IGNORE` nor the labels that are NaN.
    """
    logits, truth = outputs["out"], batch.class_maps
    nothing = 0.0 * logits.sum()  # keeps the head in the graph: DistributedDataParallel waits for every gradient
    known = bool((truth != IGNORE).any())
    weighted = {
        "labels": recipe.label_weight * label_loss(outputs["labels"], batch.labels),
        "cross_entropy": functional.cross_entropy(logits, truth, ignore_index=IGNORE) if known else nothing,
        "dice": recipe.dice_weight * dice_loss(logits, truth) if known else nothing,
    }
    if recipe.bag_weight:
        weighted["bags"] = recipe.bag_weight * bag_loss(logits, batch)
    return weighted


def bag_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return how badly the tissue of each crop, taken together, shows the crop's labels.

    What is not known to be glass is a bag of pixels. A label that the crop has must show in some of them, and one that
    it has not, and glass, in none: each class's probabilities are pooled by a generalised mean and compared by binary
    cross-entropy. It is how activation maps are learned (Zhou et al., CVPR 2016: pooled by the mean), at the class
    map's resolution and with classes that exclude each other. All of it is computed from logarithms, so that a class
    that has all but vanished from a bag that must show it still gets a gradient.

    Source: Jia et al., "Constrained Deep Weak Supervision for Histopathology Image Segmentation", IEEE Transactions
    on Medical Imaging 36 (2017).

    Args:
        logits: float (N, C, H, W); the first L classes are the label classes.
        batch: Its labels, (N, L), say what the bags hold.
    """
    label_count = batch.labels.shape[1]
    bags = batch.inside & ((batch.class_maps < label_count) | (batch.class_maps == IGNORE))  # (N, H, W)
    sizes = bags.sum(dim=(1, 2))[:, None]  # (N, 1)
    counted = (bags | (sizes == 0)[:, :, None])[:, None]  # an empty bag counts for nothing below; here it stays finite
    powers = (_BAG_EXPONENT * logits.log_softmax(dim=1)).masked_fill(~counted, -torch.inf)
    pooled = (powers.logsumexp(dim=(2, 3)) - counted.sum(dim=(2, 3)).log()) / _BAG_EXPONENT  # (N, C), logarithms
    truth = functional.pad(batch.labels, (0, logits.shape[1] - label_count))
    known = ~truth.isnan() & (sizes > 0)
    absent = torch.log(-torch.expm1(pooled.clamp(max=_SUREST)))
    each = -torch.where(truth.nan_to_num() > 0, pooled, absent)
    return (each * known).sum() / known.sum().clamp(min=1)


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy averaged over the known labels.

    Args:
        logits: float (N, L).
        labels: float (N, L), 0 or 1, NaN where unknown.
    """
    known = ~labels.isnan()
    each = functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def dice_loss(logits: Tensor, class_maps: Tensor) -> Tensor:
    """Return 1 minus the soft Dice coefficient, averaged over the classes that the batch holds.

    Source: Drozdzal et al., "The Importance of Skip Connections in Biomedical Image Segmentation", DLMIA 2016: the
    probabilities are summed as they are, where V-Net (Milletari et al., 3DV 2016) squares them. Here the sums are taken
    over the whole batch.

    Args:
        logits: float (N, C, H, W).
        class_maps: int64 (N, H, W), `IGNORE` where unknown.
    """
    known = (class_maps != IGNORE).unsqueeze(1)
    truth = functional.one_hot(class_maps.clamp(max=logits.shape[1] - 1), logits.shape[1]).permute(0, 3, 1, 2) * known
    probabilities = logits.softmax(dim=1) * known
    overlap = (probabilities * truth).sum(dim=(0, 2, 3))
    total = probabilities.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    return torch.where(present, 1 - 2 * overlap / total.clamp(min=1e-6), 0.0).sum() / present.sum()
