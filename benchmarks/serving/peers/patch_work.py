"""The work that every peer does for a patch: the plain program's way, and no framework in it.

Peers run in environments of their own, so this file imports numpy, Pillow and ONNX Runtime alone.
"""

import base64
import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as tessera has it; it must be set before the runtime loads
import onnxruntime
from PIL import Image

BUNDLE = Path(os.environ["BENCHMARK_BUNDLE"])
PORT = int(os.environ["BENCHMARK_PORT"])
VARIANT = os.environ["BENCHMARK_VARIANT"]
WORKERS = int(os.environ["BENCHMARK_CORES"])
"""Processes, or replicas, of a peer: one for each core."""

_OUTPUTS = ["class_map", "confidence", "label_probability"]
_MANIFEST = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
_CLASSES = _MANIFEST["classes"]
_PALETTE = [channel for tissue in _CLASSES for channel in tissue["color"]]
_LABELS = [tissue["name"] for tissue in _CLASSES if tissue["label"]]


def decode(data: bytes) -> np.ndarray:
    """Return the image in `data`, (H, W, 3) uint8 RGB."""
    if os.environ["BENCHMARK_DECODER"] == "imagecodecs":
        import imagecodecs  # noqa: PLC0415  installed only when it is asked for

        return np.ascontiguousarray(imagecodecs.imread(data)[..., :3])
    with Image.open(BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


class Model:
    """The bundle's graph in a session of one thread: processes share the cores, not operators."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            (BUNDLE / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return of each (H, W, 3) uint8 image its (H, W) uint8 class map and its (L,) label probabilities.

        Images of one shape are run as one batch, others one by one.
        """
        if len({image.shape for image in images}) > 1:
            return [self.run([image])[0] for image in images]
        class_maps, _, probabilities = self._session.run(_OUTPUTS, {"image": np.stack(images)})
        return list(zip(class_maps, probabilities, strict=True))


def answer(class_map: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """Return labels, fractions and the mask, a palette PNG in base64, as JSON knows them."""
    image = Image.fromarray(class_map)
    image.putpalette(_PALETTE)
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    counts = np.bincount(class_map.ravel(), minlength=len(_CLASSES))
    present = zip(_LABELS, probabilities, _MANIFEST["label_thresholds"], strict=True)
    return {
        "labels": [name for name, probability, threshold in present if probability >= threshold],
        "fractions": [float(count) / class_map.size for count in counts],
        "mask": {"base64": base64.b64encode(file.getvalue()).decode("ascii")},
    }


def answer_bytes(class_map: np.ndarray, probabilities: np.ndarray) -> bytes:
    """Return `answer` as the bytes of its JSON."""
    return json.dumps(answer(class_map, probabilities)).encode("ascii")


def segment(model: Model, data: bytes) -> bytes:
    """Return the answer to one uploaded image, from its bytes to JSON's."""
    return answer_bytes(*model.run([decode(data)])[0])
