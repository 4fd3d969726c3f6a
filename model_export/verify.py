"""PyTorch against ONNX Runtime: the exported graph has to say what the network said.

`interpolate` and friends have exported to ONNX with silent mismatches before, so nothing is believed that was not
compared, on images that look like tissue, at several sizes and batch sizes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from model_export.errors import InvalidCheckpoint, VerificationFailed
from model_export.serving_graph import ServingGraph
from model_export.synthetic import draw_patch

CONFIDENCE_TOLERANCE = 2
"""How far the uint8 confidences may lie apart at any pixel on which the class maps agree."""

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
    """

    shape: tuple[int, ...]
    pixel_agreement: float
    confidence_difference: int
    probability_difference: float

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


def trial_batches(stride: int) -> Iterator[RgbBatch]:
    """Yield H&E-like batches of several sizes and batch sizes, their sides multiples of `stride`."""
    for count, width, height in ((1, 224, 224), (3, 256, 160), (5, 96, 96), (2, 512, 384), (1, 1, 1)):
        size = Size(width, height).rounded_up(stride)
        yield np.stack([draw_patch(seed, size, _TISSUES[seed % len(_TISSUES)])[0] for seed in range(count)])


def run_onnx(model: Path, batches: Iterable[RgbBatch], outputs: Sequence[str] = GRAPH_OUTPUTS) -> list[Outputs]:
    """Run the exported graph on the CPU, in one thread, on each batch, and return these of its outputs.

    Raises:
        VerificationFailed: ONNX Runtime does not load or run the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what it refuses is told by the exception, once
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return [session.run(list(outputs), {GRAPH_INPUT: batch}) for batch in batches]
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise VerificationFailed(f"{model.name}: ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error


@torch.inference_mode()
def verify(graph: ServingGraph, model: Path) -> list[Comparison]:
    """Compare `graph` with its export, `model`.

    Raises:
        VerificationFailed: They disagree on any batch; the message says by how much.
        InvalidCheckpoint: What the network says of one is no number: both would agree on that.
    """
    batches = list(trial_batches(graph.block_px))
    comparisons = []
    for batch, exported in zip(batches, run_onnx(model, batches), strict=True):
        if not graph.is_finite_on(torch.from_numpy(batch)):
            raise InvalidCheckpoint(
                f"what the network says of patches of {batch.shape[2]}x{batch.shape[1]} px is no number, or infinite;"
                " look at its weights, and at --mean and --std"
            )
        original = [output.numpy() for output in graph(torch.from_numpy(batch))]
        if original[0].shape != batch.shape[:3]:
            height, width = original[0].shape[1:]
            raise VerificationFailed(
                f"{model.name}: {batch.shape[2]}x{batch.shape[1]} px give a class map of {width}x{height}:"
                f" the network's stride is larger than {graph.block_px}; export it with its own --stride"
            )
        for name, ours, theirs in zip(GRAPH_OUTPUTS, original, exported, strict=True):
            if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
                raise VerificationFailed(
                    f"{model.name}: {name} is {theirs.dtype}{theirs.shape}, not {ours.dtype}{ours.shape}"
                )
        same = original[0] == exported[0]
        apart = np.abs(original[1].astype(int) - exported[1].astype(int))[same]
        comparison = Comparison(
            batch.shape,
            float(same.mean()),
            int(apart.max(initial=0)),
            float(np.abs(original[2] - exported[2]).max()),
        )
        if not comparison.passed:
            raise VerificationFailed(f"{model.name}: PyTorch and ONNX Runtime disagree: {comparison}")
        comparisons.append(comparison)
    return comparisons
