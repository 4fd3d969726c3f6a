"""Which tensors of a checkpoint are taken for a network's weights, and what is told of the others."""

import importlib
import sys

import pytest
import torch
from torch import nn

from app.pathology.classes import BACKGROUND, NORMAL, STROMA, TUMOR, WSSS4LUAD
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidCheckpoint, InvalidData
from model_export.factory import load_network
from model_export.network import TissueNetwork, network_for
from tests.model_export_support import TWO_CLASSES, write_module

MODULE = "foreign_of_the_weights_tests"


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where a checkpoint may be put; the foreign module lies beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_module(tmp_path, MODULE)
    yield tmp_path / "weights.pth"
    sys.modules.pop(MODULE, None)


def drawn(prefix=""):
    """Return weights of the foreign network as they were drawn, by names with `prefix` before each."""
    weights = importlib.import_module(MODULE).Foreign().state_dict()
    return {prefix + name: value for name, value in weights.items()}


def loaded(path, state, key=None):
    """Return the foreign network with the weights of a checkpoint that holds `state`, and the notes."""
    notes = []
    save_checkpoint(path, state)
    network = load_network(read_checkpoint(path), TWO_CLASSES, f"{MODULE}:Foreign", key, notes.append)
    return network.state_dict(), notes


def refusal(path, state, key=None):
    with pytest.raises(InvalidCheckpoint) as caught:
        loaded(path, state, key)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix(f"{path}: ")


def same(found, weights):
    return all(torch.equal(value, expected) for value, expected in zip(found.values(), weights.values(), strict=True))


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema", "ema"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_averaged_weights_beside_those_that_are_taken_are_noted_and_can_be_asked_for(path, averaged, prefix):
    plain, mean = drawn(), drawn(prefix)
    state = {"epoch": 3, "state_dict": plain, "optimizer": {"state": {}}, averaged: mean}

    found, notes = loaded(path, state)
    asked, none = loaded(path, state, averaged)

    assert same(found, plain)
    assert notes == [
        f"note: {path}: the weights under state_dict are taken; it also holds {averaged}: `export --weights KEY` takes"
        " those"
    ]
    assert same(asked, mean)
    assert none == []


def test_other_tensors_than_the_networks_need_no_note(path):
    network = importlib.import_module(MODULE).Foreign()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 3, 8, 8))["out"].sum().backward()
    optimizer.step()
    beside = {"optimizer": optimizer.state_dict(), "criterion": {"weight": torch.ones(2)}, "empty": {}, "lr": 0.1}

    _, notes = loaded(path, {"model": drawn(), **beside})

    assert notes == []


NORMALISED = """
    from torch import nn

    class Normalised(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
"""


@pytest.mark.parametrize("form", ["parameters", "nested", "with a decay", "nested parameters"])
def test_averaged_weights_that_cannot_be_taken_as_they_are_are_noted(path, form):
    write_module(path.parent, MODULE, NORMALISED)
    network = importlib.import_module(MODULE).Normalised()
    whole, parameters = network.state_dict(), {name: value.detach() for name, value in network.named_parameters()}
    averaged = {
        "parameters": parameters,
        "nested": {"module": whole, "updates": 5},
        "with a decay": {"decay": 0.99, **whole},
        "nested parameters": {"decay": 0.99, "shadow": {f"module.{name}": one for name, one in parameters.items()}},
    }[form]
    save_checkpoint(path, {"model": whole, "ema": averaged, "criterion": {"weight": torch.ones(2)}})
    notes = []

    load_network(read_checkpoint(path), TWO_CLASSES, f"{MODULE}:Normalised", note=notes.append)

    assert notes == [
        f"note: {path}: the weights under model are taken; it also holds ema, which is not a whole state_dict: save it"
        " as one if you mean it"
    ]


def test_several_that_cannot_be_taken_are_noted_in_one_line(path):
    _, notes = loaded(path, {"model": drawn(), "ema": {"decay": 0.9, **drawn()}, 3: {"net": drawn()}})

    assert [note.split("holds ")[1] for note in notes] == [
        "ema, 3, none of them a whole state_dict: save it as one if you mean it"
    ]


def test_keys_that_are_no_text_are_named_and_taken_as_text(path):
    first, second = drawn(), {name: value + 1 for name, value in drawn().items()}

    found, notes = loaded(path, {"model": first, 1: second})

    assert same(found, first)
    assert notes[0].endswith("it also holds 1: `export --weights KEY` takes those")
    assert same(loaded(path, {0: first, 1: second}, "1")[0], second)
    assert refusal(path, {0: first, 1: second}).endswith("takes those under another key: 0, 1")


@pytest.mark.parametrize("model", [{"arch": "unet"}, {}, "unet", {"state_dict": {"scale": torch.ones(1)}}])
def test_a_well_known_key_without_weights_is_passed_over(path, model):
    weights = drawn()

    found, notes = loaded(path, {"model": model, "state_dict": weights})

    assert same(found, weights)
    assert notes == []


def test_the_projects_own_averaged_weights_need_no_note(path):
    own = TissueNetwork(pretrained=False).state_dict()
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in own.items()}}
    save_checkpoint(path, {"network": own, "averaged": averaged, "epochs_done": 1})
    notes = []

    load_network(read_checkpoint(path), WSSS4LUAD, note=notes.append)

    assert notes == []


def test_a_key_without_weights_is_refused_with_those_that_have_some(path):
    state = {"state_dict": drawn(), "state_dict_ema": drawn(), "epoch": 3}

    for key in ("ema", "epoch"):
        assert refusal(path, state, key) == (
            f"holds no weights under {key}; keys that --weights can take: state_dict, state_dict_ema"
        )
    assert refusal(path, {"epoch": 3}, "ema").endswith("; keys that --weights can take: none")
    assert refusal(path, drawn(), "ema") == (
        "holds no weights under ema; this file has its weights at the top: leave --weights out"
    )


def test_weights_under_an_uncommon_key_alone_are_offered(path):
    state = {"net": drawn(), "ema": drawn()}

    assert refusal(path, state).endswith("averaged; `export --weights KEY` takes those under another key: net, ema")
    assert same(loaded(path, state, "net")[0], state["net"])


@pytest.mark.parametrize("prefix", ["model.", "net.", "unet.", "model._orig_mod.", "task.segmenter."])
def test_a_network_is_found_under_whatever_name_its_training_gave_it(path, prefix):
    weights = drawn(prefix)

    found, notes = loaded(path, {"state_dict": weights})

    assert same(found, weights)
    assert notes == []


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (1, "criterion.0 (its name does not start with `unet.`)"),
        (3, "criterion.0, criterion.1, criterion.2 (their names do not start with `unet.`)"),
        (5, "criterion.0, criterion.1, criterion.2 and 2 more (their names do not start with `unet.`)"),
    ],
)
def test_what_lies_outside_the_network_is_left_out_and_named(path, count, told):
    weights = drawn("unet.")
    beside = {f"criterion.{index}": torch.full((2,), float("inf")) for index in range(count)}

    found, notes = loaded(path, {"state_dict": {**beside, **weights}})

    assert same(found, weights)
    assert notes == [f"note: {path}: ignored: {told}"]


@pytest.mark.parametrize("prefix", ["", "unet.", "module."])
@pytest.mark.parametrize("extra", ["last.0.weight", "middle.weight", "extra"])
def test_more_of_a_network_than_the_factory_builds_is_refused(path, prefix, extra):
    state = {**drawn(prefix), prefix + extra: torch.zeros(1)}

    assert refusal(path, state) == f"does not fit the network: {prefix}{extra} is not one of its weights"


@pytest.mark.parametrize(
    ("first", "second", "places"),
    [
        ("model.", "model_ema.module.", "under model. and under model_ema.module."),
        ("", "ema.", "at the top and under ema."),
    ],
)
def test_weights_that_are_there_twice_are_refused(path, first, second, places):
    assert refusal(path, {**drawn(first), **drawn(second)}) == (
        f"does not fit the network: the network's weights are there twice, {places}; save the ones to export in a file"
        " of their own"
    )


@pytest.mark.parametrize(("first", "second"), [("model.", "fast._orig_mod."), ("", "copy."), ("copy.", "")])
def test_the_same_weights_at_two_places_are_taken(path, first, second):
    weights = drawn()
    both = {place + name: value.clone() for place in (first, second) for name, value in weights.items()}

    found, notes = loaded(path, both)

    assert same(found, weights)
    assert notes == []
    assert refusal(path, {**both, f"{min(first, second, key=len)}extra": torch.ones(1)}).endswith(
        "extra is not one of its weights"
    )


@pytest.mark.parametrize("teacher_first", [True, False])
def test_a_larger_teacher_of_the_same_names_is_no_second_place(path, teacher_first):
    student, teacher = drawn("student."), {name: torch.zeros(9) for name in [*drawn("teacher."), "teacher.more"]}

    found, notes = loaded(path, {**teacher, **student} if teacher_first else {**student, **teacher})

    assert same(found, student)
    assert notes[0].startswith(f"note: {path}: ignored: teacher.first.weight, ")


def test_where_nothing_fits_the_nearest_is_named(path):
    weights = drawn("unet.")
    del weights["unet.last.bias"]

    missing = refusal(path, {"criterion.weight": torch.ones(2), **weights})
    changed = refusal(path, {**weights, "unet.last.bias": torch.zeros(3)})
    renamed = refusal(path, {"unet.head.weight": torch.zeros(1)})

    assert missing == "does not fit the network: unet.last.bias is missing; it holds criterion.weight"
    assert changed == "does not fit the network: unet.last.bias is (3,), not (2,)"
    assert renamed == "does not fit the network: first.weight is missing; it holds unet.head.weight"


def test_a_network_without_weights_takes_none(path):
    module = importlib.import_module(MODULE)
    module.Foreign = nn.Identity

    assert refusal(path, {"model": {"scale": torch.ones(1)}}).endswith("scale is not one of its weights")


REORDERED = (STROMA, TUMOR, NORMAL, BACKGROUND)


def test_classes_in_another_order_than_the_training_notes_are_refused(path):
    names = [tissue.name for tissue in WSSS4LUAD]
    weights = {"model": TissueNetwork(pretrained=False).state_dict()}
    save_checkpoint(path, {**weights, "classes": names})

    load_network(read_checkpoint(path), WSSS4LUAD)
    with pytest.raises(InvalidCheckpoint) as caught:
        load_network(read_checkpoint(path), REORDERED)
    save_checkpoint(path, weights)
    load_network(read_checkpoint(path), REORDERED)  # of an earlier version, it does not note them

    assert str(caught.value) == (
        f"{path}: was trained with the classes tumor, stroma, normal, background, in this order, and not stroma, tumor,"
        " normal, background"
    )


def test_the_projects_own_network_has_its_label_classes_first(path):
    save_checkpoint(path, {"model": TissueNetwork(pretrained=False).state_dict()})
    mixed = (TUMOR, BACKGROUND, STROMA, NORMAL)

    for refused in (
        lambda: network_for(mixed, pretrained=False),
        lambda: load_network(read_checkpoint(path), mixed),
    ):
        with pytest.raises(InvalidData) as caught:
            refused()
        assert str(caught.value) == (
            "the project's own network has its label classes first: list stroma before those that are no labels, and"
            " train it so"
        )
