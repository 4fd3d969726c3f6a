import pytest
import torch

from app.pathology.classes import WSSS4LUAD
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


@pytest.mark.parametrize("detail", [True, False])
def test_labels_are_pooled_at_the_resolution_of_the_logits(detail):
    network = TissueNetwork(pretrained=False, detail=detail).eval()

    with torch.no_grad():
        labels = network(torch.randn(2, 3, 32, 64))["labels"]

    assert labels.shape == (2, 3)
    assert torch.isfinite(labels).all()


def test_crops_skip_blocks_while_the_network_learns_and_none_once_it_answers():
    torch.manual_seed(0)
    network = TissueNetwork(pretrained=False, dropout=0.0, stochastic_depth=0.9)
    network.freeze(0, statistics=True)  # else crops depend on each other through the batch
    crops = torch.randn(1, 3, 32, 32).repeat(8, 1, 1, 1)

    def spread(network):
        with torch.no_grad():
            return float(network(crops)["out"].std(dim=0).max())

    plain = TissueNetwork(pretrained=False, dropout=0.0)
    plain.freeze(0, statistics=True)
    plain.load_state_dict(network.state_dict())
    assert spread(network.train()) > 1e-3
    assert spread(plain.train()) < 1e-6
    assert spread(network.eval()) < 1e-6
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(crops)["out"], network(crops)["out"], rtol=0, atol=0)


def test_the_first_block_is_never_skipped_and_the_last_as_often_as_asked_for():
    blocks = TissueNetwork(pretrained=False, stochastic_depth=0.3)._skipped

    assert len(blocks) == 16
    assert blocks[0] == 0.0
    assert blocks[-1] == pytest.approx(0.3)
    assert blocks == sorted(blocks)
