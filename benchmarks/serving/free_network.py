"""A bundle whose network costs nothing: what is left of a server's time is the server's own.

It takes and gives what the real graph does. The class map is the image's red, a little coarsened, so that a mask is no
cheaper to compress than a real one. onnx, a package of the training extra, writes the graph.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.inference.session import open_session
from app.pathology.geometry import Size
from app.pathology.manifest import GOLDEN_FILE, GRAPH_INPUT, GRAPH_OUTPUTS, MANIFEST_FILE, MODEL_FILE
from app.settings import DEFAULT_BUNDLE
from model_export.synthetic import draw_patch

BLOCK_PX = 2
"""Side of the class map's blocks: at 2, its PNG is about as large as a real mask's."""

_OPSET, _IR = 20, 10


def write_free_bundle(folder: Path) -> None:
    """Make a bundle in `folder`: the default one's manifest, with the free graph and a golden pair of its own."""
    write_bundle_of(free_graph(), folder, "free", "Costs nothing and knows nothing: for benchmarks.")


def write_bundle_of(model: bytes, folder: Path, name: str, description: str) -> None:
    """Make a bundle of a serialised graph: with the default one's manifest, and a golden pair of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    image = draw_patch(0, Size(224, 224))[0][None]
    said = open_session(model, "cpu").run(image)
    outputs = (said.class_maps, said.confidences, said.label_probabilities)
    file = io.BytesIO()
    arrays: dict[str, Any] = {GRAPH_INPUT: image, **dict(zip(GRAPH_OUTPUTS, outputs, strict=True))}
    np.savez_compressed(file, **arrays)
    manifest = json.loads((DEFAULT_BUNDLE / MANIFEST_FILE).read_text(encoding="utf-8"))
    manifest.update(
        name=name,
        version="1",
        description=description,
        sha256=hashlib.sha256(model).hexdigest(),
        golden_sha256=hashlib.sha256(file.getvalue()).hexdigest(),
        metrics={},
        training_data=[],
    )
    (folder / MODEL_FILE).write_bytes(model)
    (folder / GOLDEN_FILE).write_bytes(file.getvalue())
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def free_graph() -> bytes:
    """Return the serialised graph, for images whose sides are multiples of the block."""
    image, (class_map, confidence, probability) = GRAPH_INPUT, GRAPH_OUTPUTS
    numbers = {
        "planes": [0, 3, -1],
        "first": [0],
        "second": [1],
        "plane_axis": [1],
        "corner": [0, 0, 0],
        "end": [2**31, 2**31, 1],
        "axes": [1, 2, 3],
        "steps": [BLOCK_PX, BLOCK_PX, 1],
        "inner": [2],
        "repeat": [1, 1, BLOCK_PX, 1, BLOCK_PX],
        "labels": [3],
    }
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    constants += [numpy_helper.from_array(np.array(6, np.uint8), "bits")]
    constants += [numpy_helper.from_array(np.array(0.5, np.float32), "half")]
    nodes = [
        helper.make_node("Shape", [image], ["extent"], start=0, end=3),
        # The confidence is the first third of the image's bytes, whatever they are: a plain copy.
        helper.make_node("Reshape", [image, "planes"], ["thirds"]),
        helper.make_node("Slice", ["thirds", "first", "second", "plane_axis"], ["third"]),
        helper.make_node("Reshape", ["third", "extent"], [confidence]),
        # The class is the two highest bits of the red of each block's first pixel.
        helper.make_node("Slice", [image, "corner", "end", "axes", "steps"], ["coarse"]),
        helper.make_node("BitShift", ["coarse", "bits"], ["classes"], direction="RIGHT"),
        helper.make_node("Unsqueeze", ["classes", "inner"], ["blocks"]),
        helper.make_node("Expand", ["blocks", "repeat"], ["spread"]),
        helper.make_node("Reshape", ["spread", "extent"], [class_map]),
        helper.make_node("Shape", [image], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "labels"], ["table"], axis=0),
        helper.make_node("Expand", ["half", "table"], [probability]),
    ]
    graph = helper.make_graph(
        nodes,
        "free",
        [helper.make_tensor_value_info(image, TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info(class_map, TensorProto.UINT8, ["n", "h", "w"]),
            helper.make_tensor_value_info(confidence, TensorProto.UINT8, ["n", "h", "w"]),
            helper.make_tensor_value_info(probability, TensorProto.FLOAT, ["n", 3]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
