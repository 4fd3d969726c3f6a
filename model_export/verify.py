"""PyTorch against ONNX Runtime: the exported graph has to say what the network said.

`interpolate` and friends have exported to ONNX with silent mismatches before, so nothing is believed that was not
compared, on images that look like tissue, at several sizes and batch sizes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before it loads, or it sends usage events to Microsoft
import onnxruntime
import torch
from numpy.typing import NDArray

from app.pathology.arrays import RgbBatch
from app.pathology.classes import NORMAL, STROMA, TUMOR
from app.pathology.geometry import Size
from app.pathology.manifest import (
    GOLDEN_PIXEL_AGREEMENT,
    GOLDEN_PROBABILITY_TOLERANCE,
    GRAPH_INPUT,
    GRAPH_OUTPUTS,
)
from model_export.errors import InvalidCheckpoint, VerificationFailed, first_line
from model_export.serving_graph import ServingGraph
from model_export.synthetic import draw_patch

CONFIDENCE_TOLERANCE = 2
"""How far the uint8 confidences may lie apart at any pixel on which the class maps agree."""

_SHARES_TOLERANCE = 1e-3
"""How far what a softmax makes of a pixel may be from 1 in all."""

_TRIALS = ((1, 224, 224), (3, 256, 160), (5, 96, 96), (2, 512, 384), (1, 1, 1))
"""Images, width and height of each trial batch."""

_GLASS = 240
"""Brightness of a pixel without tissue."""

_SURE = round(0.7 * 255)
"""Confidence from which a pixel tells of a seam: of drawn tissue, which is none, a good network too is often unsure."""

_TISSUES = ((TUMOR, STROMA), (NORMAL,), (TUMOR, STROMA, NORMAL), ())

Outputs = list[NDArray[Any]]
"""The graph's outputs, in the order of `GRAPH_OUTPUTS`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How well the two agree on one batch.

    Attributes:
        shape: Shape of the input, (N, H, W, 3).
        pixel_agreement: Share of class-map pixels that agree.
        confidence_difference: Largest difference of the uint8 confidence where the class maps agree.
        probability_difference: Largest difference of a label probability.
        unit_range: Whether all that the network says of the classes lies in 0 to 1, as a sigmoid's outputs do.
        labels_unit_range: Likewise, of what its label head says; False where it has none.
        class_pixels: Of how many pixels the exported graph says each class; empty where nobody counted.
        seam: The share of pixels, the margin or more inside two overlapping windows, of which the exported graph is
            sure in the one, and says another class in the other; None where that was not tried.
    """

    shape: tuple[int, ...]
    pixel_agreement: float
    confidence_difference: int
    probability_difference: float
    unit_range: bool = False
    labels_unit_range: bool = False
    class_pixels: tuple[int, ...] = ()
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


def trial_batches(stride: int, window_px: int | None = None) -> Iterator[RgbBatch]:
    """Yield H&E-like batches of several sizes and batch sizes, their sides multiples of `stride`.

    With `window_px`, the last is a whole window, and none but the first, the golden pair's, is larger.
    """
    trials = list(_TRIALS)
    if window_px is not None:
        most = max(window_px, *_TRIALS[0][1:])
        trials = [(count, min(width, most), min(height, most)) for count, width, height in trials]
        trials.append((1, window_px, window_px))
    for count, width, height in trials:
        size = Size(width, height).rounded_up(stride)
        yield np.stack([draw_patch(seed, size, _TISSUES[seed % len(_TISSUES)])[0] for seed in range(count)])


def run_onnx(model: Path, batches: Iterable[RgbBatch], outputs: Sequence[str] = GRAPH_OUTPUTS) -> list[Outputs]:
    """Run the exported graph on the CPU, in one thread, on each batch, and return these of its outputs.

    Raises:
        VerificationFailed: ONNX Runtime does not load or run the graph.
    """
    session = _opened(model)
    return [_run(session, model, batch, outputs) for batch in batches]


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
        margin_px: How far a window's border spoils its class map, as is said of it; with a window, the last
            comparison says whether that is so.
        own: Batches to try beside the drawn ones, their sides multiples of the stride and no longer than a window.

    Raises:
        VerificationFailed: They disagree on any batch; the message says by how much.
        InvalidCheckpoint: What the network says of one is no number, no logits, or follows from the other images in
            the batch: both would agree on that.
    """
    session = _opened(model)
    comparisons: list[Comparison] = []
    all_shares = True
    batches = list(trial_batches(graph.block_px, window_px))
    batches[len(_TRIALS) : len(_TRIALS)] = own  # before the window, which the last comparison is of
    for batch in batches:
        try:
            comparison, shares, exported = _compare(graph, session, model, batch)
        except (InvalidCheckpoint, VerificationFailed) as error:
            if len(comparisons) < len(_TRIALS):
                raise
            if len(comparisons) < len(_TRIALS) + len(own):
                raise type(error)(f"{error}; on image {len(comparisons) - len(_TRIALS) + 1} of one's own") from error
            passed = max(max(one.shape[1:3]) for one in comparisons)
            hint = f"it passes up to {passed} px: have it treat all sizes alike, or pass a smaller --window"
            raise type(error)(f"{error}; {hint}") from error
        comparisons.append(comparison)
        all_shares = all_shares and shares
    if all_shares:
        raise InvalidCheckpoint(
            "the network returns probabilities, which add up to 1 over the classes at each pixel, where logits are"
            " needed: confidences would be wrong; return what its softmax is given"
        )
    if window_px is not None and margin_px is not None:
        seam = _seam(session, model, batch, exported, margin_px, graph.block_px)
        comparisons[-1] = replace(comparisons[-1], seam=seam)
    return comparisons


def _opened(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what it refuses is told by the exception, once
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise VerificationFailed(f"{model.name}: ONNX Runtime refuses it: {first_line(error)}") from error


def _run(
    session: onnxruntime.InferenceSession, model: Path, batch: RgbBatch, outputs: Sequence[str] = GRAPH_OUTPUTS
) -> Outputs:
    try:
        return list(session.run(list(outputs), {GRAPH_INPUT: batch}))
    except Exception as error:  # as above
        raise VerificationFailed(
            f"{model.name}: ONNX Runtime does not run it on {_sides(batch)}: {first_line(error)}"
        ) from error


def _compare(
    graph: ServingGraph, session: onnxruntime.InferenceSession, model: Path, batch: RgbBatch
) -> tuple[Comparison, bool, Outputs]:
    """Compare the two on one batch.

    Returns:
        The comparison; whether what the network says of a pixel adds up to 1; what the exported graph says.
    """
    try:
        logits, labels = graph.logits_of(torch.from_numpy(batch))
    except Exception as error:  # whatever a user's own network raises is that network's fault, said in one line
        raise InvalidCheckpoint(f"the network does not run on {_sides(batch)}: {first_line(error)}") from error
    if not all(bool(output.isfinite().all()) for output in (logits, labels) if output is not None):
        raise InvalidCheckpoint(
            f"what the network says of patches of {_sides(batch)} is no number, or infinite;"
            " look at its weights, and at --mean and --std"
        )
    original = [output.numpy() for output in graph.answer(logits, labels)]
    exported = _run(session, model, batch)
    if original[0].shape != batch.shape[:3]:
        height, width = original[0].shape[1:]
        raise VerificationFailed(
            f"{model.name}: {_sides(batch)} give a class map of {width}x{height}:"
            f" the network's stride is larger than {graph.block_px}; export it with its own --stride"
        )
    for name, ours, theirs in zip(GRAPH_OUTPUTS, original, exported, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise VerificationFailed(
                f"{model.name}: {name} is {theirs.dtype}{theirs.shape}, not {ours.dtype}{ours.shape}"
            )
    unit_range = _in_unit_range(logits)
    labels_unit_range = labels is not None and _in_unit_range(labels)
    pixels = tuple(np.bincount(exported[0].ravel(), minlength=logits.shape[1]).tolist())
    comparison = Comparison(batch.shape, *_differences(original, exported), unit_range, labels_unit_range, pixels)
    if not comparison.passed:
        raise VerificationFailed(f"{model.name}: PyTorch and ONNX Runtime disagree: {comparison}")
    if len(batch) > 1:
        _check_alone(session, model, batch, exported)
    all_shares = unit_range and bool(((logits.sum(dim=1) - 1).abs() <= _SHARES_TOLERANCE).all())
    return comparison, all_shares, exported


def _in_unit_range(values: torch.Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _seam(
    session: onnxruntime.InferenceSession,
    model: Path,
    window: RgbBatch,
    found: Outputs,
    margin_px: int,
    stride: int,
) -> float | None:
    """Return `Comparison.seam` of `window`, of which the graph says `found`, and one to its lower right.

    All that the second does not share with the first is glass, so that a layer that sees a whole window sees another.
    None where the margins leave nothing to compare.
    """
    side = window.shape[1]
    step = max((side - 2 * margin_px) // 2 // stride * stride, stride)
    if step + 2 * margin_px >= side:
        return None
    moved = np.full_like(window, _GLASS)
    moved[:, : side - step, : side - step] = window[:, step:, step:]
    [moved_maps] = _run(session, model, moved, GRAPH_OUTPUTS[:1])
    ours, theirs = slice(step + margin_px, side - margin_px), slice(margin_px, side - step - margin_px)
    other = found[0][:, ours, ours] != moved_maps[:, theirs, theirs]
    return float((other & (found[1][:, ours, ours] >= _SURE)).mean())


def _check_alone(session: onnxruntime.InferenceSession, model: Path, batch: RgbBatch, exported: Outputs) -> None:
    """Make sure that each image gets the answer that it gets alone; docs/decisions/0005-same-answer-in-any-batch.md."""
    for index in range(len(batch)):
        alone = _run(session, model, batch[index : index + 1])
        pixels, confidence, probability = _differences([one[index : index + 1] for one in exported], alone)
        if pixels < 1 or confidence > CONFIDENCE_TOLERANCE or probability > GOLDEN_PROBABILITY_TOLERANCE:
            raise InvalidCheckpoint(
                f"the network's answer depends on the other images in its batch: of one of {len(batch)} images of"
                f" {_sides(batch)}, {1 - pixels:.2%} of the pixels are of another class when it is alone;"
                " statistics of the batch, as without track_running_stats, cannot be served"
            )


def _differences(ours: Outputs, theirs: Outputs) -> tuple[float, int, float]:
    """Return the share of equal pixels, by how much confidences differ on these, and by how much probabilities do."""
    same = ours[0] == theirs[0]
    apart = np.abs(ours[1].astype(int) - theirs[1].astype(int))[same]
    return float(same.mean()), int(apart.max(initial=0)), float(np.abs(ours[2] - theirs[2]).max())


def _sides(batch: RgbBatch) -> str:
    return f"{batch.shape[2]}x{batch.shape[1]} px"
