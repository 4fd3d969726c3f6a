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
    for part in ("blocks.3.", "blocks.15.", "lateral.", "refine.", "segment.", "classify."):
        assert [name for name in moved if name.startswith(part) and name.endswith("weight")], part


def test_frozen_statistics_are_all_of_the_encoders_and_none_of_the_decoders():
    before, after = after_one_step(blocks=0, statistics=True)

    moved = {name for name in changed(before, after) if "running" in name}
    assert {name.split(".")[0] for name in moved} == {"refine"}
    assert "stem.0.weight" in changed(before, after)


def test_frozen_layers_stay_frozen_through_a_validation():
    network = TissueNetwork(pretrained=False)
    network.freeze(2, statistics=True)

    network.eval()
    network.train()

    assert not network.stem[1].training
    assert not network.blocks[9]._bn1.training
    assert network.refine[2].training
