"""ONNX Runtime on the CPU, in one thread, as graphs are checked and scored; how two of its answers differ.

The service has a session of its own, `app/inference/session.py`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before it loads, or it sends usage events to Microsoft
import onnxruntime

from app.pathology.arrays import RgbBatch
from app.pathology.manifest import GRAPH_INPUT, GRAPH_OUTPUTS
from model_export.errors import VerificationFailed, first_line

CONFIDENCE_TOLERANCE = 2
"""How far the uint8 confidences may lie apart at any pixel on which the class maps agree."""

Outputs = list[NDArray[Any]]
"""The graph's outputs, in the order of `GRAPH_OUTPUTS`."""


class OnnxGraph:
    """A graph that was read from a file.

    Raises:
        VerificationFailed: ONNX Runtime does not load it.
    """

    def __init__(self, model: Path) -> None:
        self.name = model.name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what it refuses is told by the exception, once
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise VerificationFailed(f"{self.name}: ONNX Runtime refuses it: {first_line(error)}") from error

    def run(self, batch: RgbBatch, outputs: Sequence[str] = GRAPH_OUTPUTS) -> Outputs:
        """Return these outputs for `batch`, uint8 (N, H, W, 3) with sides that are multiples of the stride.

        Raises:
            VerificationFailed: ONNX Runtime does not run the graph.
        """
        try:
            return list(self._session.run(list(outputs), {GRAPH_INPUT: batch}))
        except Exception as error:  # as above
            raise VerificationFailed(
                f"{self.name}: ONNX Runtime does not run it on {sides(batch)}: {first_line(error)}"
            ) from error


def differences(ours: Outputs, theirs: Outputs) -> tuple[float, int, float]:
    """Return the share of equal pixels, by how much confidences differ on these, and by how much probabilities do."""
    same = ours[0] == theirs[0]
    apart = np.abs(ours[1].astype(int) - theirs[1].astype(int))[same]
    return float(same.mean()), int(apart.max(initial=0)), float(np.abs(ours[2] - theirs[2]).max())


def sides(batch: RgbBatch) -> str:
    """Return how large a batch's images are, as messages say it."""
    return f"{batch.shape[2]}x{batch.shape[1]} px"
