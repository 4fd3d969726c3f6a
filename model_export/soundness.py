"""What PyTorch and ONNX Runtime agree on and is wrong all the same: a refusal, or a number for a doubt."""

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from app.pathology.arrays import RgbBatch
from app.pathology.manifest import GOLDEN_PROBABILITY_TOLERANCE, GRAPH_OUTPUTS
from model_export.errors import InvalidCheckpoint
from model_export.runtime import CONFIDENCE_TOLERANCE, OnnxGraph, Outputs, differences, sides

SURE = round(0.7 * 255)
"""Confidence from which a pixel tells of a seam: even a good network is often unsure of drawn tissue."""

_SHARES_TOLERANCE = 1e-3
"""How far the sum of a pixel's probabilities may be from 1."""

_GLASS = 240
"""Brightness of a pixel without tissue."""


def require_numbers(said: Iterable[Tensor | None], batch: RgbBatch) -> None:
    """Refuse a network that says of `batch` what is no number."""
    if not all(bool(values.isfinite().all()) for values in said if values is not None):
        raise InvalidCheckpoint(
            f"what the network says of patches of {sides(batch)} is no number, or infinite;"
            " look at its weights, and at --mean and --std"
        )


def in_unit_range(values: Tensor | None) -> bool:
    """Return whether there are values, all of 0 to 1, as a sigmoid's are."""
    return values is not None and bool(((values >= 0) & (values <= 1)).all())


def are_shares(logits: Tensor) -> bool:
    """Return whether logits, (N, C, h, w), are of 0 to 1 and add up to 1 at each pixel, as a softmax's outputs do."""
    return in_unit_range(logits) and bool(((logits.sum(dim=1) - 1).abs() <= _SHARES_TOLERANCE).all())


def require_logits(of_batches: Iterable[bool]) -> None:
    """Refuse a network of whose every batch `are_shares` is true."""
    if all(of_batches):
        raise InvalidCheckpoint(
            "the network returns probabilities, which add up to 1 over the classes at each pixel, where logits are"
            " needed: confidences would be wrong; return what its softmax is given"
        )


def require_same_alone(exported: OnnxGraph, batch: RgbBatch, found: Outputs) -> None:
    """Refuse a graph that `found` this of a batch, and answers otherwise to an image of it alone.

    See docs/decisions/0005-same-answer-in-any-batch.md.
    """
    for index in range(len(batch) if len(batch) > 1 else 0):
        alone = exported.run(batch[index : index + 1])
        pixels, confidence, probability = differences([one[index : index + 1] for one in found], alone)
        if pixels < 1 or confidence > CONFIDENCE_TOLERANCE or probability > GOLDEN_PROBABILITY_TOLERANCE:
            raise InvalidCheckpoint(
                f"the network's answer depends on the other images in its batch: of one of {len(batch)} images of"
                f" {sides(batch)}, {1 - pixels:.2%} of the pixels are of another class when it is alone;"
                " statistics of the batch, as without track_running_stats, cannot be served"
            )


def seam(
    exported: OnnxGraph, window: RgbBatch, found: Outputs, margin_px: int, stride: int, sure: int = 0
) -> float | None:
    """Return the share of pixels that are of another class in a second window, to the lower right of the first.

    All that the second does not share with the first is glass, so that a layer that sees a whole window sees another.

    Args:
        exported: The graph.
        window: The first window, or as much of one as there is, uint8 (N, H, W, 3).
        found: What the graph says of it.
        margin_px: How far a window's border spoils its class map: pixels count that are so far inside both.
        stride: The second begins at a multiple of it.
        sure: Least confidence, 0 to 255, that a pixel which counts as another has in the first.

    Returns:
        None where the margins leave nothing to compare.
    """
    height, width = window.shape[1:3]
    down, right = (max((side - 2 * margin_px) // 2 // stride * stride, stride) for side in (height, width))
    if down + 2 * margin_px >= height or right + 2 * margin_px >= width:
        return None
    moved = np.full_like(window, _GLASS)
    moved[:, : height - down, : width - right] = window[:, down:, right:]
    [moved_maps] = exported.run(moved, GRAPH_OUTPUTS[:1])
    ours = np.s_[:, down + margin_px : height - margin_px, right + margin_px : width - margin_px]
    theirs = np.s_[:, margin_px : height - down - margin_px, margin_px : width - right - margin_px]
    return float(((found[0][ours] != moved_maps[theirs]) & (found[1][ours] >= sure)).mean())
