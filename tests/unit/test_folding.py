import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export.folding import fold_norms
from model_export.runtime import OnnxGraph

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (2, 3, 8, 8)).astype(np.float32)


def constant(name, *shape):
    return numpy_helper.from_array(RNG.uniform(0.5, 1.5, shape).astype(np.float32), name)


def norm(reads, makes, of, **attributes):
    names = [f"{of}.{part}" for part in ("scale", "shift", "mean", "variance")]
    return helper.make_node("BatchNormalization", [reads, *names], [makes], makes, **attributes)


def model(nodes, outputs, norms=("a", "b")):
    constants = [constant("weight", 4, 3, 3, 3), constant("bias", 4), constant("grouped", 4, 1, 1, 1)]
    constants += [constant(f"{of}.{part}", 4) for of in norms for part in ("scale", "shift", "mean", "variance")]
    shaped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in outputs]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    graph = helper.make_graph(nodes, "graph", [image], shaped, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def convolution(reads, makes, *constants, **attributes):
    return helper.make_node("Conv", [reads, *constants], [makes], makes, **attributes)


def check(made, path, outputs, left):
    """Fold; the outputs stay, and so many norms and constants are left."""
    onnx.save(made, path)
    before = OnnxGraph(path).run(IMAGES, outputs)
    fold_norms(made.graph)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    after = OnnxGraph(path).run(IMAGES, outputs)
    for was, now in zip(before, after, strict=True):
        np.testing.assert_allclose(now, was, rtol=1e-4)
    norms = sum(node.op_type == "BatchNormalization" for node in made.graph.node)
    assert (norms, len(made.graph.initializer)) == left


@pytest.mark.parametrize("constants", [("weight",), ("weight", "bias")])
@pytest.mark.parametrize("epsilon", [{}, {"epsilon": 0.1}])
def test_a_norm_is_folded_with_its_epsilon_and_the_bias(tmp_path, constants, epsilon):
    nodes = [convolution("image", "c", *constants), norm("c", "out", "a", **epsilon)]

    check(model(nodes, ["out"]), tmp_path / "m.onnx", ["out"], (0, 2))


def test_weights_that_are_read_twice_are_folded_once_for_each_norm(tmp_path):
    nodes = [convolution("image", "c1", "weight"), norm("c1", "o1", "a")]
    nodes += [convolution("o1x", "c2", "weight"), norm("c2", "o2", "a"), convolution("image", "c3", "weight")]
    nodes += [norm("c3", "o3", "b")]
    nodes.insert(2, helper.make_node("Neg", ["image"], ["o1x"], "o1x"))

    check(model(nodes, ["o1", "o2", "o3"]), tmp_path / "m.onnx", ["o1", "o2", "o3"], (0, 4))


def test_each_groups_weights_are_folded(tmp_path):
    nodes = [convolution("image", "c", "weight"), convolution("c", "d", "grouped", group=4), norm("d", "out", "a")]

    check(model(nodes, ["out"]), tmp_path / "m.onnx", ["out"], (0, 3))


def test_what_others_read_too_is_left(tmp_path):
    nodes = [convolution("image", "c", "weight"), norm("c", "out", "a")]

    check(model(nodes, ["out", "c"]), tmp_path / "m.onnx", ["out", "c"], (1, 5))


def test_a_norm_of_something_else_is_left(tmp_path):
    nodes = [convolution("image", "c", "weight"), helper.make_node("Relu", ["c"], ["r"], "r"), norm("r", "out", "a")]

    check(model(nodes, ["out"]), tmp_path / "m.onnx", ["out"], (1, 5))
