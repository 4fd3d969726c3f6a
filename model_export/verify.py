"""PyTorch against ONNX Runtime: the exported graph has to say what the network said.

`interpolate` and friends have exported to ONNX with silent mismatches before, so nothing is believed that was not
compared, on images that look like tissue, at several sizes and batch sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from app.pathology.arrays import RgbBatch
from app.pathology.manifest import GOLDEN_PIXEL_AGREEMENT, GOLDEN_PROBABILITY_TOLERANCE, GRAPH_OUTPUTS
from model_export import soundness
from model_export.errors import InvalidCheckpoint, VerificationFailed, first_line
from model_export.runtime import CONFIDENCE_TOLERANCE, OnnxGraph, Outputs, differences, sides
from model_export.serving_graph import ServingGraph
from model_export.trials import Trial, plan_trials


@dataclass(frozen=True, slots=True)
class Comparison:
    """How well the two agree on one batch.

    Attributes:
        shape: Shape of the input, (N, H, W, 3).
        pixel_agreement: Share of class-map pixels that agree.
        confidence_difference: Largest difference of the uint8 confidence where the class maps agree.
        probability_difference: Largest difference of a label probability.
        unit_range: Whether all that the network says of the classes lies in 0 to 1, as a sigmoid's outputs do.
        shares: Whether it also adds up to 1 at each pixel, as a softmax's outputs do.
        labels_unit_range: Whether all that its label head says lies in 0 to 1; False where it has none.
        class_pixels: Of how many pixels the exported graph says each class; empty where nobody counted.
        own: Whether the batch is an image of one's own.
        seam: The share of pixels, the margin or more inside two overlapping windows, of which the exported graph says
            another class in the other; of a drawn image, only where it is sure in the one. None where that was not
            tried.
    """

    shape: tuple[int, ...]
    pixel_agreement: float
    confidence_difference: int
    probability_difference: float
    unit_range: bool = False
    shares: bool = False
    labels_unit_range: bool = False
    class_pixels: tuple[int, ...] = ()
    own: bool = False
    seam: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the exported graph may be served."""
        return (
            self.pixel_agreement >= GOLDEN_PIXEL_AGREEMENT
            and self.confidence_difference <= CONFIDENCE_TOLERANCE
            and self.probability_difference <= GOLDEN_PROBABILITY_TOLERANCE
        )

    def __str__(self) -> str:
        return (
            f"{'x'.join(map(str, self.shape))}: {self.pixel_agreement:.5%} of pixels agree,"
            f" confidence within {self.confidence_difference}/255,"
            f" probabilities within {self.probability_difference:.1e}"
        )


@torch.inference_mode()
def verify(
    graph: ServingGraph,
    model: Path,
    window_px: int | None = None,
    margin_px: int | None = None,
    own: Sequence[RgbBatch] = (),
) -> list[Comparison]:
    """Compare `graph` with its export, `model`.

    Args:
        graph: The network, wrapped.
        model: The exported graph.
        window_px: Side of the largest window that is served; it is tried too.
        margin_px: How far a window's border spoils its class map, as is said of it; whether that is so, the
            comparisons of a window and of one's own images say.
        own: Batches to try beside the drawn ones, their sides multiples of the stride and no longer than a window.

    Raises:
        VerificationFailed: They disagree on any batch; the message says by how much.
        InvalidCheckpoint: What the network says of one is no number, no logits, or follows from the other images in
            the batch: both would agree on that.
    """
    exported = OnnxGraph(model)
    comparisons = []
    for trial in plan_trials(graph.block_px, window_px, own):
        try:
            comparisons.append(_compare(graph, exported, trial, margin_px))
        except (InvalidCheckpoint, VerificationFailed) as error:
            raise type(error)(f"{error}{trial.hint}") from error
    soundness.require_logits(comparison.shares for comparison in comparisons)
    return comparisons


def _compare(graph: ServingGraph, exported: OnnxGraph, trial: Trial, margin_px: int | None) -> Comparison:
    batch = trial.batch
    try:
        logits, labels = graph.logits_of(torch.from_numpy(batch))
    except Exception as error:  # whatever a user's own network raises is that network's fault, said in one line
        raise InvalidCheckpoint(f"the network does not run on {sides(batch)}: {first_line(error)}") from error
    soundness.require_numbers((logits, labels), batch)
    original = [output.numpy() for output in graph.answer(logits, labels)]
    found = exported.run(batch)
    _require_same_form(original, found, batch, exported.name, graph.block_px)
    seam = None
    if trial.seams and margin_px is not None:
        sure = 0 if trial.own else soundness.SURE
        seam = soundness.seam(exported, batch, found, margin_px, graph.block_px, sure)
    comparison = Comparison(
        batch.shape,
        *differences(original, found),
        unit_range=soundness.in_unit_range(logits),
        shares=soundness.are_shares(logits),
        labels_unit_range=soundness.in_unit_range(labels),
        class_pixels=tuple(np.bincount(found[0].ravel(), minlength=logits.shape[1]).tolist()),
        own=trial.own,
        seam=seam,
    )
    if not comparison.passed:
        raise VerificationFailed(f"{exported.name}: PyTorch and ONNX Runtime disagree: {comparison}")
    soundness.require_same_alone(exported, batch, found)
    return comparison


def _require_same_form(original: Outputs, found: Outputs, batch: RgbBatch, name: str, stride: int) -> None:
    if original[0].shape != batch.shape[:3]:
        height, width = original[0].shape[1:]
        raise VerificationFailed(
            f"{name}: {sides(batch)} give a class map of {width}x{height}:"
            f" the network's stride is larger than {stride}; export it with its own --stride"
        )
    for output, ours, theirs in zip(GRAPH_OUTPUTS, original, found, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise VerificationFailed(f"{name}: {output} is {theirs.dtype}{theirs.shape}, not {ours.dtype}{ours.shape}")
