from copy import deepcopy

import pytest
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.training.augment import BatchSource
from model_export.training.hardware import Hardware
from model_export.training.learner import Learner, dropout_seed
from tests.model_export_support import drawn_samples, one_thread, recipe


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def learner(asked):
    return Learner(WSSS4LUAD, asked, Hardware())


def batch_of(asked, step=0):
    return BatchSource({"wsss4luad": drawn_samples(2)}, WSSS4LUAD, asked).batch(step)


def test_the_encoder_learns_at_its_own_rate():
    fresh = learner(recipe(encoder_rate=0.25))
    encoder, heads = fresh.optimizer.param_groups

    assert (encoder["rate"], heads["rate"]) == (0.25, 1.0)
    assert len(encoder["params"]) + len(heads["params"]) == len(list(fresh.network.parameters()))
    assert any(parameter is fresh.network.stem[0].weight for parameter in encoder["params"])
    assert any(parameter is fresh.network.segment[1].weight for parameter in heads["params"])

    fresh.learn(0, 0.02, batch_of(recipe()))

    assert (encoder["lr"], heads["lr"]) == (0.005, 0.02)


def test_a_step_tells_what_each_term_adds_and_how_the_pixels_are_called():
    asked = recipe()
    batch = batch_of(asked)

    terms, called = learner(asked).learn(0, 1e-3, batch)

    assert terms.keys() >= {"labels", "cross_entropy", "dice"}
    assert (called.dtype, called.shape) == ("uint8", (2, 32, 32))
    assert called.max() < len(WSSS4LUAD)


def test_a_learner_that_goes_on_from_a_state_learns_as_the_one_that_left_it():
    asked = recipe(dropout=0.5)
    whole, other = learner(asked), learner(asked)
    whole.learn(0, 1e-3, batch_of(asked))

    left = deepcopy(whole.state_dict())  # as a file does: else the two would share their moments
    other.load_state_dict({**left, "epochs_done": 7})
    ours, theirs = (each.learn(1, 1e-3, batch_of(asked, 1)) for each in (whole, other))

    assert ours[0] == theirs[0]
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(value, other.averaged.state_dict()[name])


def test_weights_that_are_no_numbers_answer_with_none():
    spoilt = learner(recipe())
    batch = batch_of(recipe())
    assert spoilt.answers_with_numbers(batch)

    with torch.no_grad():
        spoilt.averaged.module.segment[1].bias.fill_(torch.nan)

    assert not spoilt.answers_with_numbers(batch)


def test_half_precision_learns_nearly_the_same():
    """Of crops of several strides a side: over a single value each, normalisation makes rounding as large as signal."""
    asked = recipe(crop_px=96)
    full, half = (learner(asked.model_copy(update={"precision": name})) for name in ("float32", "bfloat16"))
    ours, theirs = (sum(each.learn(0, 1e-3, batch_of(asked))[0].values()) for each in (full, half))

    assert all(value.dtype != torch.bfloat16 for value in half.network.state_dict().values())
    assert ours != theirs
    assert theirs == pytest.approx(ours, rel=0.01)


def test_each_process_drops_others_and_a_resumed_one_the_same():
    def dropped(step, rank):
        torch.manual_seed(dropout_seed(7, step, rank))
        return torch.nn.functional.dropout(torch.ones(64), 0.5)

    assert torch.equal(dropped(3, 1), dropped(3, 1))
    assert not torch.equal(dropped(3, 0), dropped(3, 1))
    assert not torch.equal(dropped(3, 1), dropped(3, 2))
    assert not torch.equal(dropped(3, 1), dropped(4, 1))
