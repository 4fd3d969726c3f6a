"""The training objective: cross-entropy and Dice over known pixels, binary cross-entropy over labels."""

import torch
from torch import Tensor
from torch.nn import functional

from model_export.training.augment import Batch
from model_export.training.dataset import IGNORE


def objective(outputs: dict[str, Tensor], batch: Batch, dice_weight: float, label_weight: float) -> Tensor:
    """Return the scalar loss of the network's `outputs` on `batch`.

    A batch in which no pixel's class is known counts by its labels alone.
    """
    loss = label_weight * functional.binary_cross_entropy_with_logits(outputs["labels"], batch.labels)
    if bool((batch.class_maps != IGNORE).any()):
        loss = loss + functional.cross_entropy(outputs["out"], batch.class_maps, ignore_index=IGNORE)
        loss = loss + dice_weight * dice_loss(outputs["out"], batch.class_maps)
    return loss


def dice_loss(logits: Tensor, class_maps: Tensor) -> Tensor:
    """Return 1 minus the soft Dice coefficient, averaged over the classes that the batch holds.

    Source: Milletari et al., "V-Net", 3DV 2016, with the sums taken over the whole batch.

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
