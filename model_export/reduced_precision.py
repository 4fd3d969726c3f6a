"""A graph in int8 or fp16: which of its operations, and with what scales.

A graph has three parts: what no convolution precedes (bytes to normalised pixels), what lies between convolutions, and
what follows the last of them (the bilinear enlargement, softmax, argmax, labels). Only the middle part is converted:
the others are a few operations whose rounding everyone would see. Measured in docs/decisions/0013-precisions.md.
"""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
import onnx.utils

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before it loads, or it sends usage events to Microsoft
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from app.pathology.arrays import RgbBatch
from app.pathology.manifest import GRAPH_INPUT
from model_export.bias_correction import correct_biases
from model_export.errors import InvalidData, first_line
from model_export.folding import drop_unread

RUNTIME_VERSION: str = onnxruntime.__version__

_BOUNDING = ("Clip", "Relu")
_ENLARGING = ("Resize", "Upsample", "ConvTranspose", "DepthToSpace")
_LEAST_STRIDE = 4
"""The stride from which on an encoder computes in int8. Before it there are large tensors of few channels, where int8
gains little time and loses the most."""
_WIDE = 32
"""Channels that a convolution behind an enlargement reads (in a group) and writes at least, to compute in int8: what
changes of type cost there, fewer do not win back."""


def to_int8(model: Path, images: Sequence[RgbBatch]) -> onnx.ModelProto:
    """Return the graph in int8 where that pays: QDQ format, a scale for each weight's channel, fixed for activations.

    Activations are uint8 between the least and the greatest value that `images` give. Weights have 7 bits: without VNNI
    instructions, x86 adds two products of 8-bit numbers in 16 bits, which overflow; with 7 bits they cannot, so that
    every CPU computes the same. What rounding the weights does to the means is taken out of the biases.

    Args:
        model: The float32 graph's file.
        images: Batches of RGB like those to be served, uint8 (N, H, W, 3) with sides that are multiples of the stride.

    Raises:
        InvalidData: Nothing in the graph gains by int8, or it cannot be converted.
    """
    fp32 = onnx.load(model)
    nodes = _int8_nodes(fp32.graph)
    if not nodes:
        raise InvalidData(f"{model}: no convolution that int8 would speed up; it is for encoders of many channels")
    with tempfile.TemporaryDirectory() as folder, _one_line(model, "int8"):
        with_biases, out = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        _give_biases(fp32.graph, set(nodes))
        onnx.save(fp32, with_biases)
        quantize_static(
            with_biases,
            out,
            _Images(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", *_BOUNDING],
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        int8 = onnx.load(out)
        correct_biases(int8, fp32, images)
        return int8


def with_extremes(model: Path, out: Path) -> list[str]:
    """Write the float32 graph with the least and the greatest value of each result that `to_fp16` makes float16.

    A CPU does not show what leaves float16's range: it has no such arithmetic, and computes the converted graph in
    float32 with rounded weights.

    Args:
        model: The float32 graph's file.
        out: Where to write it.

    Returns:
        The names of the further outputs, each one number.
    """
    whole = onnx.shape_inference.infer_shapes(onnx.load(model))
    graph = whole.graph
    is_float = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    made = [name for node in _converted(graph) for name in node.output if name in is_float]
    extremes = [(f"{name}_{kind}", name, kind) for name in made for kind in ("ReduceMin", "ReduceMax")]
    graph.node.extend(onnx.helper.make_node(kind, [name], [extreme], keepdims=0) for extreme, name, kind in extremes)
    graph.output.extend(
        onnx.helper.make_tensor_value_info(extreme, onnx.TensorProto.FLOAT, []) for extreme, _, _ in extremes
    )
    onnx.save(whole, out)
    return [extreme for extreme, _, _ in extremes]


def to_fp16(model: Path) -> onnx.ModelProto:
    """Return the graph with its convolutions, and what lies between them, in float16; inputs and outputs stay.

    The converter is given that part alone. Told to leave the others in float32, it rounds what passes between them to
    float16 all the same, and names a tensor that two of them read twice.

    Raises:
        InvalidData: It cannot be converted.
    """
    with _one_line(model, "fp16"):
        whole = onnx.shape_inference.infer_shapes(onnx.load(model))
        graph = whole.graph
        inside = _converted(graph)
        names = {node.name for node in inside}
        outside = [node for node in graph.node if node.name not in names]
        known = {tensor.name for tensor in graph.initializer}.union(*(node.output for node in inside))
        read_outside = {tensor.name for tensor in graph.output}.union(*(node.input for node in outside))
        part = onnx.utils.Extractor(whole).extract_model(
            list(dict.fromkeys(name for node in inside for name in node.input if name and name not in known)),
            [name for node in inside for name in node.output if name in read_outside],
        )
        del part.graph.value_info[:]  # the exporter lists weights there, which the converter would take for activations
        converted = convert_float_to_float16(part, keep_io_types=True, op_block_list=[]).graph
        weights = [tensor for tensor in graph.initializer if tensor.name in read_outside]
        both = {tensor.name: f"{tensor.name}_fp32" for tensor in converted.initializer if tensor.name in read_outside}
        for tensor in weights:
            tensor.name = both.get(tensor.name, tensor.name)
        for node in outside:
            node.input[:] = [both.get(name, name) for name in node.input]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(_sorted([*outside, *converted.node]))
        graph.initializer.extend([*weights, *converted.initializer])
        onnx.checker.check_model(whole)
    return whole


def _converted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the operations that float16 is for: convolutions, and what lies between them."""
    names = _between_convolutions(graph) | {node.name for node in graph.node if node.op_type == "Conv"}
    return [node for node in graph.node if node.name in names]


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the operations, each after those that it reads from."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    reads = {index: [makers[name] for name in node.input if name in makers] for index, node in enumerate(nodes)}
    return [nodes[index] for index in TopologicalSorter(reads).static_order()]


class _Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: Sequence[RgbBatch]) -> None:
        self._images: Iterator[RgbBatch] = iter(images)

    def get_next(self) -> dict[str, RgbBatch] | None:
        batch = next(self._images, None)
        return None if batch is None else {GRAPH_INPUT: batch}


def _int8_nodes(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the operations to convert, none where no convolution is among them.

    These are convolutions whose weights are constants, what bounds values, and sums of what is converted. Behind an
    enlargement, at whatever stride, they are wide convolutions alone, and what bounds their results.
    """
    between = _between_convolutions(graph)
    enlarged = _downstream(graph, [node for node in graph.node if node.op_type in _ENLARGING])
    steps = _steps_before(graph)
    shapes = {tensor.name: tensor.dims for tensor in graph.initializer}
    chosen: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in graph.node:
        is_enlarged = node.name in enlarged
        if node.name not in between or (steps[node.name] < _LEAST_STRIDE and not is_enlarged):
            continue
        follows = not made.isdisjoint(node.input)
        if node.op_type == "Conv":
            is_known = shapes.keys() >= set(filter(None, node.input[1:]))
            is_chosen = is_known and (not is_enlarged or min(shapes[node.input[1]][:2]) >= _WIDE)
        elif node.op_type in _BOUNDING:
            is_chosen = follows or not is_enlarged
        else:
            is_chosen = node.op_type == "Add" and follows and not is_enlarged
        if is_chosen:
            chosen.append(node)
            made.update(node.output)
    return [node.name for node in chosen] if any(node.op_type == "Conv" for node in chosen) else []


def _give_biases(graph: onnx.GraphProto, names: set[str]) -> None:
    """Give each of the named convolutions a bias of its own, to be corrected: of zeros where it has none."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if node.op_type != "Conv" or node.name not in names:
            continue
        if len(node.input) == 2:
            values = np.zeros(weights[node.input[1]].dims[0], np.float32)
        elif readers[node.input[2]] > 1:
            values = onnx.numpy_helper.to_array(weights[node.input[2]])
        else:
            continue
        node.input[2:] = [f"{node.name}/bias"]
        graph.initializer.append(onnx.numpy_helper.from_array(values, node.input[2]))
    drop_unread(graph)


def _between_convolutions(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the operations that a convolution precedes and another follows."""
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return _downstream(graph, convolutions) & _upstream(graph, convolutions)


def _downstream(graph: onnx.GraphProto, origins: list[onnx.NodeProto]) -> set[str]:
    """Return the names of the operations that `origins` lead to; `graph` lists each after what it reads."""
    reached = {output for node in origins for output in node.output}
    names = set()
    for node in graph.node:
        if reached.intersection(node.input):
            names.add(node.name)
            reached.update(node.output)
    return names


def _upstream(graph: onnx.GraphProto, ends: list[onnx.NodeProto]) -> set[str]:
    """Return the names of the operations that lead to `ends`."""
    wanted = {name for node in ends for name in node.input}
    names = set()
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            names.add(node.name)
            wanted.update(node.input)
    return names


def _steps_before(graph: onnx.GraphProto) -> dict[str, int]:
    """Return by how much the steps before each operation make the image smaller, by the operation's name.

    Enlargements are not taken back.
    """
    of_tensor: dict[str, int] = {}
    of_node = {}
    for node in graph.node:
        of_node[node.name] = max((of_tensor.get(name, 1) for name in node.input), default=1)
        is_step = node.op_type not in _ENLARGING
        steps = [attribute.ints for attribute in node.attribute if attribute.name == "strides" and is_step]
        of_tensor.update(dict.fromkeys(node.output, of_node[node.name] * max([1, *(steps[0] if steps else [])])))
    return of_node


@contextmanager
def _one_line(model: Path, precision: str) -> Iterator[None]:
    """Keep the converters' advice to themselves, and say in one line what they cannot do."""
    logging.disable(logging.WARNING)
    try:
        yield
    except Exception as error:  # the converters raise errors of many kinds for a graph that they do not know
        raise InvalidData(f"{model}: cannot be converted to {precision}: {first_line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
