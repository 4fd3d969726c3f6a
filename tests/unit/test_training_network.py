import pytest
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.config import BLOCKS
from model_export.encoders import ENCODERS
from model_export.network import TissueNetwork
from model_export.training.augment import BatchSource
from tests.model_export_support import drawn_samples, objective, one_thread, recipe


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def after_one_step(blocks, statistics):
    """Return the state before and after one step of training with everything that is frozen."""
    asked = recipe(frozen_blocks=blocks, frozen_statistics=statistics)
    network = TissueNetwork(pretrained=False)
    network.freeze(blocks, statistics)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], weight_decay=0.1)
    network.train()
    batch = BatchSource({"wsss4luad": drawn_samples(2)}, WSSS4LUAD, asked).batch(0)
    objective(network(batch.images), batch, asked).backward()
    optimizer.step()
    return before, network.state_dict()


def changed(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_frozen_blocks_keep_weights_and_statistics_bit_by_bit_and_the_rest_learns():
    before, after = after_one_step(blocks=3, statistics=False)

    moved = changed(before, after)
    frozen = ("stem.", "blocks.0.", "blocks.1.", "blocks.2.")
    assert not [name for name in moved if name.startswith(frozen)]
    assert [name for name in moved if name.startswith("blocks.3.") and "running_mean" in name]
    decoder = ("lateral.", "refine.", "reduce.", "lateral_half.", "refine_half.", "detail.")
    for part in ("blocks.3.", "blocks.15.", *decoder, "segment.", "classify."):
        assert [name for name in moved if name.startswith(part) and name.endswith("weight")], part


def test_frozen_statistics_are_all_of_the_encoders_and_none_of_the_decoders():
    before, after = after_one_step(blocks=0, statistics=True)

    moved = {name for name in changed(before, after) if "running" in name}
    assert {name.split(".")[0] for name in moved} == {"refine", "refine_half", "detail"}
    assert "stem.0.weight" in changed(before, after)


def test_frozen_layers_stay_frozen_through_a_validation():
    network = TissueNetwork(pretrained=False)
    network.freeze(2, statistics=True)

    network.eval()
    network.train()

    assert not network.stem[1].training
    assert not network.blocks[9]._bn1.training
    assert network.refine[2].training


def sharpest_edge(detail):
    """Return the largest step of a logit between neighbours, as a fraction of the largest over 4 px."""
    torch.manual_seed(0)
    network = TissueNetwork(pretrained=False, detail=detail).eval()
    with torch.no_grad():
        out = network(torch.randn(1, 3, 64, 96))["out"]
    assert out.shape == (1, 4, 64, 96)
    return float((out[..., 1:] - out[..., :-1]).abs().max() / (out[..., 4:] - out[..., :-4]).abs().max())


def test_detail_lets_neighbouring_pixels_differ_as_much_as_far_ones():
    assert sharpest_edge(detail=True) > 0.9
    assert sharpest_edge(detail=False) < 0.5


@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_encoders_taps_end_its_strides_and_its_weights_are_on_hand(name):
    """A tap one block early or late often has the channels of the right one: the mistake would only cost accuracy."""
    encoder = ENCODERS[name]
    network = TissueNetwork(name, pretrained=True).eval()
    random = TissueNetwork(name, pretrained=False)
    x = torch.zeros(1, 3, 64, 64)
    after = []
    with torch.no_grad():
        x = network.stem(x)
        for block in network.blocks:
            x = block(x)
            after.append(tuple(x.shape[1:3]))

    ends = [at for at, (_, side) in enumerate(after) if at + 1 == len(after) or after[at + 1][1] != side]
    assert ends == [encoder.half, *encoder.taps]
    assert len(network.blocks) == BLOCKS[name]
    assert [after[at] for at in ends] == list(
        zip((encoder.half_channels, *encoder.tap_channels), (32, 16, 8, 4, 2), strict=True)
    )
    assert not torch.equal(network.stem[0].weight, random.stem[0].weight)


@pytest.mark.parametrize("detail", [True, False])
def test_labels_are_pooled_at_the_resolution_of_the_logits(detail):
    network = TissueNetwork(pretrained=False, detail=detail).eval()

    with torch.no_grad():
        labels = network(torch.randn(2, 3, 32, 64))["labels"]

    assert labels.shape == (2, 3)
    assert torch.isfinite(labels).all()
