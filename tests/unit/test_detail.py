"""The default network's full resolution, as it is trained and as it is served."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import app
from model_export.detail import Detail, _pixels_of
from model_export.network import TissueNetwork, blockwise


@pytest.fixture
def network():
    """Return one whose batch statistics and weights are those of no fresh network."""
    torch.manual_seed(0)
    made = TissueNetwork(pretrained=False)
    for norm in (module for module in made.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    return made.eval()


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 3, 96, 160)])
@torch.inference_mode()
def test_block_by_block_it_says_the_same(network, shape):
    images = torch.randn(shape)
    plain, served = network(images), blockwise(network)(images)
    assert plain["out"].std() > 0.1
    torch.testing.assert_close(served["out"], plain["out"], rtol=0, atol=1e-5)
    assert torch.equal(served["labels"], plain["labels"])


@torch.inference_mode()
def test_each_pixel_of_a_block_has_its_own_place():
    """Without detail of the image it is the bilinear enlargement alone, also at the border."""
    network = TissueNetwork(pretrained=False).eval()
    assert isinstance(network.detail, Detail)
    nn.init.zeros_(network.detail[3].weight)
    nn.init.zeros_(network.detail[3].bias)
    logits = torch.randn(1, 4, 5, 7)
    enlarged = nn.functional.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
    served = blockwise(network).detail(logits, torch.randn(1, 3, 10, 14))
    torch.testing.assert_close(served, enlarged, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 16, 7, 7), (2, 12, 5, 7), (3, 4, 1, 2)])
def test_the_pixels_of_blocks_lie_where_they_belong(shape):
    blocks = torch.randn(shape)
    assert torch.equal(_pixels_of(blocks), nn.functional.pixel_shuffle(blocks, 2))


@pytest.mark.parametrize("bundle", ["bundle", "bundle/int8", "bundle/fp16", "bundle-quality", "bundle-quality/int8"])
def test_the_graphs_that_are_shipped_put_them_there_the_fast_way(bundle):
    graph = onnx.load(Path(app.__file__).parent / bundle / "model.onnx").graph
    assert "DepthToSpace" not in {node.op_type for node in graph.node}


def test_the_network_stays_what_it_was(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    blockwise(network)
    assert network.training
    assert isinstance(network.detail, Detail)
    assert network.detail[1].training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_any_other_network_is_left_alone():
    for network in (nn.Conv2d(3, 4, 1), TissueNetwork(pretrained=False, detail=False)):
        assert blockwise(network) is network
