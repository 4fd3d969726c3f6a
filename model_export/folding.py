"""Batch normalisation folded into the convolution before it, where the exporter left it.

It folds what one operation reads, and a network that looks at an image more than once reads each weight as often. ONNX
Runtime would fold it at each start, but what makes int8 of a graph looks for convolutions followed by activations.
"""

from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper

_DEFAULT_EPSILON = 1e-5
"""ONNX operator BatchNormalization, version 15."""


def fold_norms(graph: onnx.GraphProto) -> None:
    """Fold each BatchNormalization of constants that alone reads a convolution of constants; weights stay shared."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    folded: dict[tuple[str, ...], list[str]] = {}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convolution = makers.get(norm.input[0])
        if convolution is None or convolution.op_type != "Conv" or readers[norm.input[0]] > 1:
            continue
        read = (*convolution.input[1:], *norm.input[1:])
        if not constants.keys() >= set(read):
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(constants[name]) for name in norm.input[1:])
        weight, *bias = (numpy_helper.to_array(constants[name]) for name in convolution.input[1:])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), _DEFAULT_EPSILON)
        if read not in folded:
            factor = scale / np.sqrt(variance + epsilon)
            values = (weight * factor.reshape(-1, 1, 1, 1), ((bias[0] if bias else 0) - mean) * factor + shift)
            folded[read] = [f"{convolution.name}/folded/{part}" for part in ("weight", "bias")]
            for name, value in zip(folded[read], values, strict=True):
                graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        convolution.input[1:] = folded[read]
        convolution.output[0] = norm.output[0]
        graph.node.remove(norm)
    drop_unread(graph)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Drop the constants that no operation reads any more."""
    read = {name for node in graph.node for name in node.input}.union(output.name for output in graph.output)
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)
