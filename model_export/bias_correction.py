"""What rounded weights do to each channel's mean, taken out of its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2; but what
a channel is off by is measured on images, as its appendix does, not derived from batch normalisation, which a graph has
no more.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from app.pathology.arrays import RgbBatch
from model_export.runtime import OnnxGraph


@dataclass(frozen=True, slots=True)
class _Rounded:
    """A convolution whose weights were rounded.

    Attributes:
        original: Of the float32 graph.
        lost: What its weights lost, float32 (output channels, input channels of a group, height, width).
        bias: int32, in the graph that was rounded.
        step: What 1 in the bias stands for, a number each output channel.
    """

    original: onnx.NodeProto
    lost: NDArray[np.float32]
    bias: onnx.TensorProto
    step: NDArray[np.float32]


def correct_biases(int8: onnx.ModelProto, fp32: onnx.ModelProto, images: Sequence[RgbBatch]) -> None:
    """Have each int8 convolution give on average, over all pixels of `images`, what it gives with unrounded weights.

    Args:
        int8: Changed. In QDQ format, its convolutions named as in `fp32`, each with a bias.
        fp32: What it was made from.
        images: Batches of RGB like those to be served, uint8 (N, H, W, 3).

    Raises:
        VerificationFailed: ONNX Runtime does not run `fp32`.
    """
    rounded = _rounded(int8.graph, fp32.graph)
    for one, mean in zip(rounded, _means_of_what_is_lost(fp32, rounded, images), strict=True):
        whole = numpy_helper.to_array(one.bias).astype(np.int64) + np.rint(mean / one.step).astype(np.int64)
        one.bias.CopyFrom(numpy_helper.from_array(whole.astype(np.int32), one.bias.name))


def _rounded(int8: onnx.GraphProto, fp32: onnx.GraphProto) -> list[_Rounded]:
    originals = {node.name: node for node in fp32.node}
    weights = {tensor.name: tensor for tensor in fp32.initializer}
    tensors = {tensor.name: tensor for tensor in int8.initializer}
    makers = {name: node for node in int8.node for name in node.output}
    found = []
    for node in int8.node:
        makes_weight = makers.get(node.input[1]) if node.op_type == "Conv" else None
        if makes_weight is None or makes_weight.op_type != "DequantizeLinear":
            continue
        original = originals[node.name]
        weight, scale = (numpy_helper.to_array(tensors[name]) for name in makes_weight.input[:2])
        unrounded = numpy_helper.to_array(weights[original.input[1]])
        bias, step, *_ = makers[node.input[2]].input
        lost = unrounded - weight * scale.reshape(-1, 1, 1, 1)
        found.append(_Rounded(original, lost, tensors[bias], numpy_helper.to_array(tensors[step])))
    return found


def _means_of_what_is_lost(
    fp32: onnx.ModelProto, rounded: list[_Rounded], images: Sequence[RgbBatch]
) -> list[NDArray[np.float64]]:
    """Return what each convolution's output loses, a mean each channel: its input, convolved with what weights lost."""
    measuring = onnx.ModelProto()
    measuring.CopyFrom(fp32)
    names = [f"{one.original.name}/lost" for one in rounded]
    for one, name in zip(rounded, names, strict=True):
        measuring.graph.initializer.append(numpy_helper.from_array(one.lost, f"{name}/weight"))
        convolution = onnx.NodeProto()
        convolution.CopyFrom(one.original)
        convolution.name = name
        convolution.input[:] = [one.original.input[0], f"{name}/weight"]
        convolution.output[:] = [f"{name}/map"]
        mean = helper.make_node("GlobalAveragePool", [f"{name}/map"], [name], f"{name}/mean")
        measuring.graph.node.extend([convolution, mean])
        measuring.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lost.onnx"
        onnx.save(measuring, path)
        graph = OnnxGraph(path)
        found = [graph.run(image, names) for image in images]
    weights = np.array([batch[..., 0].size for batch in images], np.float64)
    means = [[mean.mean(axis=(0, 2, 3), dtype=np.float64) for mean in of_image] for of_image in found]
    return [np.average(of_channels, axis=0, weights=weights) for of_channels in zip(*means, strict=True)]
