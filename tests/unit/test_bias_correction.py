import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.pathology.manifest import GRAPH_INPUT
from model_export.bias_correction import correct_biases

CHANNELS = 6
STEP = np.float32(0.25)


@pytest.fixture(params=[1, 3], ids=["dense", "depthwise"])
def models(request):
    """A convolution in float32, and the same with weights on a coarse grid and a bias of int32."""
    weight = np.random.default_rng(0).normal(size=(CHANNELS, 3 // request.param, 3, 3)).astype(np.float32)
    bias = np.arange(CHANNELS, dtype=np.float32)
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 2  # of 3 bits, so that a channel is off by more than the border's part
    coarse = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    whole = np.rint(bias / STEP).astype(np.int32)
    steps, zeros = np.full(CHANNELS, STEP), np.zeros(CHANNELS, np.int8)
    fp32 = model({"w": weight, "b": bias}, [], ["w", "b"], request.param)
    int8 = model(
        {"q": coarse, "scale": scale, "zeros": zeros, "whole": whole, "steps": steps},
        [
            helper.make_node("DequantizeLinear", ["q", "scale", "zeros"], ["w"], axis=0),
            helper.make_node("DequantizeLinear", ["whole", "steps"], ["b"], axis=0),
        ],
        ["w", "b"],
        request.param,
    )
    return fp32, int8


def model(constants, makers, of_convolution, group):
    nodes = [
        helper.make_node("Cast", [GRAPH_INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        *makers,
        helper.make_node("Conv", ["planes", *of_convolution], ["out"], "conv", pads=[1, 1, 1, 1], group=group),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(GRAPH_INPUT, TensorProto.UINT8, ["n", "h", "w", 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def images():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 32, (count, height, 8, 3), np.uint8) for count, height in ((1, 16), (2, 8), (1, 40))]


def mean_of(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = [
        session.run(None, {GRAPH_INPUT: batch})[0].transpose(0, 2, 3, 1).reshape(-1, CHANNELS) for batch in images
    ]
    return np.concatenate(pixels).mean(axis=0, dtype=np.float64)


def test_a_channel_gives_on_average_what_it_did_before_its_weights_were_rounded(models, images):
    fp32, int8 = models
    wanted = mean_of(fp32, images)
    assert np.abs(mean_of(int8, images) - wanted).max() > 10 * STEP

    correct_biases(int8, fp32, images)

    onnx.checker.check_model(int8)
    assert np.abs(mean_of(int8, images) - wanted).max() <= STEP / 2 + 1e-3


def test_only_biases_change(models, images):
    fp32, int8 = models
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}

    correct_biases(int8, fp32, images)

    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed == {"whole"}
    assert after["whole"].dtype == np.int32
    assert [node.op_type for node in int8.graph.node].count("Conv") == 1
