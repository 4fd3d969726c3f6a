"""A bundle whose graph does what a real one may do on a bad day, told by the red of an image's first pixel."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.serving.free_network import free_graph, write_bundle_of

STUCK, FAILS, NO_MEMORY, NO_MEMORY_FOR_TWO, MUCH_MEMORY = 7, 8, 9, 10, 11
_TOLD_BY = (STUCK, FAILS, NO_MEMORY, NO_MEMORY_FOR_TWO, MUCH_MEMORY)


def write_faulty_bundle(folder: Path) -> None:
    """Make it in `folder`.

    A loop without end, an index out of bounds, a tensor of 16 TiB, the same for two at once; or, which is no fault, one
    of 128 MiB.
    """
    write_bundle_of(_faulty(free_graph()), folder, "faulty", "Fails when it is told to: for tests.")


def image_that(fault: int, side: int = 64) -> np.ndarray:
    """Return an image on which it does that, or nothing of the kind (0)."""
    image = np.full((side, side, 3), 120, np.uint8)
    image[0, 0, 0] = fault
    return image


def _faulty(model: bytes) -> bytes:
    """Give the graph's extent, which all of its outputs need, the sum of what the faults say: nothing, if they end."""
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    numbers = {
        "pixel_end": [1, 1, 1],
        "pixel_axes": [1, 2, 3],
        "none": [0],
        "one": [1],
        "two": [2],
        "for_ever": [2**62],
        "far": [10**6],
        "huge": [2**42],
        "large": [2**25],
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()
    )
    graph.initializer.extend(numpy_helper.from_array(np.array(value, np.uint8), f"is_{value}") for value in _TOLD_BY)
    nodes = [helper.make_node("Slice", ["image", "corner", "pixel_end", "pixel_axes"], ["pixel"])]
    for value in _TOLD_BY:
        nodes += [
            helper.make_node("Equal", ["pixel", f"is_{value}"], [f"equal_{value}"]),
            helper.make_node("Cast", [f"equal_{value}"], [f"count_{value}"], to=TensorProto.INT64),
            helper.make_node("ReduceSum", [f"count_{value}"], [f"sum_{value}"], keepdims=0),
            helper.make_node("Unsqueeze", [f"sum_{value}", "none"], [f"images_{value}"]),
        ]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["go_on_too"]), helper.make_node("Add", ["before", "one"], ["after"])],
        "round",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on_too", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.INT64, [1]),
        ],
    )
    nodes += [
        helper.make_node("Mul", [f"images_{STUCK}", "for_ever"], ["rounds"]),
        helper.make_node("Squeeze", ["rounds"], ["rounds_scalar"]),
        helper.make_node("Loop", ["rounds_scalar", "", "none"], ["looped"], body=body),
        helper.make_node("Mul", [f"images_{FAILS}", "far"], ["index"]),
        helper.make_node("Gather", ["none", "index"], ["gathered"]),
        helper.make_node("Div", [f"images_{NO_MEMORY_FOR_TWO}", "two"], ["pairs"]),
        helper.make_node("Add", ["pairs", f"images_{NO_MEMORY}"], ["hungry"]),
        helper.make_node("Mul", ["hungry", "huge"], ["more"]),
        helper.make_node("Mul", [f"images_{MUCH_MEMORY}", "large"], ["much"]),
        helper.make_node("Add", ["more", "much"], ["most"]),
        helper.make_node("Add", ["most", "one"], ["size"]),
        helper.make_node("Expand", ["half", "size"], ["filled"]),
        helper.make_node("ReduceMax", ["filled"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["largest_whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["looped", "none"], ["nothing_looped"]),
        helper.make_node("Add", ["nothing_looped", "gathered"], ["nothing_gathered"]),
        helper.make_node("Add", ["nothing_gathered", "largest_whole"], ["nothing"]),
        helper.make_node("Shape", ["image"], ["true_extent"], start=0, end=3),
        helper.make_node("Add", ["true_extent", "nothing"], ["extent"]),
    ]
    kept = [node for node in graph.node if "extent" not in node.output]
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    onnx.checker.check_model(loaded)
    return bytes(loaded.SerializeToString())
