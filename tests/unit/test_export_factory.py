import argparse
import importlib
import json
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from app.pathology.classes import WSSS4LUAD, TissueClass
from model_export import factory as factory_module
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidCheckpoint, InvalidData
from model_export.factory import load_classes
from model_export.network import TissueNetwork
from tests.full_disk import full_at
from tests.model_export_support import TWO_CLASSES, write_module

MODULE = "foreign_of_the_factory_tests"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """The foreign module's name; it lies in the current folder, as a researcher's does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_module(tmp_path, MODULE)
    yield MODULE
    sys.modules.pop(MODULE, None)


def load_network(path, *given):
    return factory_module.load_network(read_checkpoint(path), *given)


def weights_of(module, name="Foreign"):
    sys.path.insert(0, "")
    return getattr(__import__(module), name)().state_dict()


def refusal(call, *arguments, kind=InvalidCheckpoint):
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


class Payload:
    """What a pickle of an attacker does when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("written_by", ["torch", "pickle"])
def test_a_checkpoint_that_carries_code_is_refused_and_the_code_not_run(tmp_path, written_by):
    path, marker = tmp_path / "evil.pth", tmp_path / "was-run"
    state = {"model": {"weight": torch.zeros(1)}, "evil": Payload(marker)}
    if written_by == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))

    message = refusal(read_checkpoint, path)

    assert message.startswith(f"{path}: not a checkpoint of tensors: ")
    assert not marker.exists()
    with path.open("rb") as file:
        (torch.load(file, weights_only=False) if written_by == "torch" else pickle.load(file))
    assert marker.exists(), "the payload was to be one"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 a damaged archive", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)

    assert refusal(read_checkpoint, path).startswith(f"{path}: ")


def test_a_truncated_checkpoint_is_refused_by_name(tmp_path):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, {"weight": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])

    assert refusal(read_checkpoint, path).startswith(f"{path}: not a checkpoint of tensors: ")


def test_a_missing_checkpoint_and_a_folder_are_refused_by_name(tmp_path):
    missing = tmp_path / "none.pth"

    assert refusal(read_checkpoint, missing) == f"{missing}: no such checkpoint"
    assert refusal(read_checkpoint, tmp_path).startswith(f"{tmp_path}: not a checkpoint of tensors: ")


def test_a_checkpoint_has_to_be_a_dictionary(tmp_path):
    path = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], path)

    assert refusal(read_checkpoint, path) == f"{path}: holds a list, a dictionary of weights is needed"


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_weights_are_found_where_training_programs_put_them(tmp_path, foreign, wrapper, prefix):
    path = tmp_path / "weights.pth"
    weights = weights_of(foreign)
    stored = {prefix + name: value for name, value in weights.items()}
    save_checkpoint(path, {wrapper: stored, "epoch": 3, "optimizer": {}} if wrapper else stored)

    network = load_network(path, TWO_CLASSES, f"{foreign}:Foreign")

    assert not network.training
    assert type(network).__name__ == "Foreign"
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def test_a_networks_own_submodule_may_be_named_as_a_wrapper_is(tmp_path, foreign, monkeypatch):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.import_module(foreign), "Holder", Holder, raising=False)
    weights = Holder().state_dict()
    save_checkpoint(tmp_path / "weights.pth", weights)

    network = load_network(tmp_path / "weights.pth", TWO_CLASSES, f"{foreign}:Holder")

    assert torch.equal(network.module.weight, weights["module.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, foreign, value):
    path = tmp_path / "weights.pth"
    weights = dict(weights_of(foreign))
    weights["last.bias"] = torch.tensor([0.0, value])
    save_checkpoint(path, weights)

    message = refusal(load_network, path, TWO_CLASSES, f"{foreign}:Foreign")

    assert message == f"{path}: last.bias holds values that are no numbers, or infinite"


def test_a_whole_model_is_refused_with_what_would_be_right(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(nn.Linear(2, 2), path)

    message = refusal(read_checkpoint, path)

    assert message == (
        f"{path}: not a checkpoint of tensors: it holds more than tensors and plain values:"
        ' torch.nn.modules.linear.Linear; save the weights alone, as in torch.save(checkpoint["state_dict"],'
        ' "weights.pth"), of a whole model its state_dict()'
    )


def test_the_arguments_of_a_timm_training_are_plain_values(tmp_path):
    path = tmp_path / "timm.pth"
    arguments = argparse.Namespace(lr=0.1, betas=[0.9, 0.99])
    torch.save({"args": arguments, "state_dict": {"weight": torch.ones(2)}}, path)

    assert read_checkpoint(path).state["args"] == arguments
    assert argparse.Namespace not in torch.serialization.get_safe_globals(), "for this file alone"


def test_code_among_the_arguments_of_a_training_is_refused_and_not_run(tmp_path):
    path, marker = tmp_path / "evil.pth", tmp_path / "was-run"
    torch.save({"args": argparse.Namespace(evil=Payload(marker))}, path)

    assert refusal(read_checkpoint, path).startswith(f"{path}: not a checkpoint of tensors: it holds more than")
    assert not marker.exists()


def test_a_checkpoint_that_cannot_be_written_names_its_file(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"weight": torch.zeros(1)})
    before = path.read_bytes()
    with full_at(20_000), pytest.raises(OSError) as caught:  # noqa: PT011  its file name matters, and is looked at
        save_checkpoint(path, {"weight": torch.zeros(10_000)})

    assert caught.value.filename == str(path)
    assert caught.value.strerror == "File too large", "the disk's own reason, which is another where it is full"
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pth"]


def test_the_projects_own_network_is_sized_by_the_classes(tmp_path):
    own = TissueNetwork(class_count=2, label_count=1, pretrained=False)
    save_checkpoint(tmp_path / "own.pth", {"model": own.state_dict(), "epoch": 1})

    network = load_network(tmp_path / "own.pth", TWO_CLASSES)

    assert not network.training
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in network.state_dict().items())
    message = refusal(load_network, tmp_path / "own.pth", WSSS4LUAD)
    assert message == (
        f"{tmp_path / 'own.pth'}: does not fit the network: segment.1.weight is (2, 32, 1, 1), not (4, 32, 1, 1)"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop("last.bias"), "last.bias is missing"),
        (lambda weights: weights.update({"last.bias": torch.zeros(3)}), "last.bias is (3,), not (2,)"),
        (lambda weights: weights.update({"extra": torch.zeros(1)}), "extra is not one of its weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, foreign, change, reason):
    path = tmp_path / "weights.pth"
    weights = dict(weights_of(foreign))
    change(weights)
    save_checkpoint(path, weights)

    message = refusal(load_network, path, TWO_CLASSES, f"{foreign}:Foreign")

    assert message == f"{path}: does not fit the network: {reason}"


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 3}, {"model": {}}, {"state_dict": {"weight": 1.0}}, {0: torch.zeros(1)}]
)
def test_a_dictionary_without_weights_is_refused_by_name(tmp_path, state):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, state)

    message = refusal(load_network, path, WSSS4LUAD)

    assert message == (
        f"{path}: holds no dictionary of weights, at its top or under model, state_dict, model_state_dict, averaged"
    )


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("no_such_module_anywhere:build", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        (f"{MODULE}:missing", f"AttributeError: module '{MODULE}' has no attribute 'missing'"),
        (f"{MODULE}:broken", "ValueError: the first line"),
        (f"{MODULE}:number", "returned a int, not a torch.nn.Module"),
        (f"{MODULE}:torch", "TypeError: 'module' object is not callable"),
    ],
)
def test_a_factory_that_gives_no_network_is_refused_in_one_line(tmp_path, foreign, factory, reason):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, weights_of(foreign))

    assert refusal(load_network, path, TWO_CLASSES, factory) == f"factory {factory}: {reason}"


@pytest.mark.parametrize("factory", ["", "module", "module:", ":callable", "module.callable"])
def test_a_factory_that_names_no_callable_is_refused(tmp_path, factory):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, {"weight": torch.zeros(1)})

    message = refusal(load_network, path, WSSS4LUAD, factory)

    assert message == f"factory {factory!r}: write package.module:callable"


@pytest.mark.parametrize("detail", [True, False])
def test_a_checkpoint_says_itself_how_fine_its_decoder_is(tmp_path, detail):
    path = tmp_path / "weights.pth"
    saved = TissueNetwork(pretrained=False, detail=detail)
    save_checkpoint(path, {"model": saved.state_dict()})

    loaded = load_network(path, WSSS4LUAD)

    assert (loaded.detail is not None) == detail
    assert torch.equal(loaded.segment[1].weight, saved.segment[1].weight)


@pytest.mark.parametrize("encoder", ["efficientnet-lite0", "efficientnet-lite2"])
def test_a_checkpoint_says_itself_which_encoder_it_has(tmp_path, encoder):
    path = tmp_path / "weights.pth"
    saved = TissueNetwork(encoder, pretrained=False)
    weights = {f"net.{name}": value for name, value in saved.state_dict().items()}
    of_a_loss = {f"loss.vit.blocks.{index}.norm.weight": torch.ones(1) for index in range(24)}
    save_checkpoint(path, {"model": of_a_loss | weights})

    loaded = load_network(path, WSSS4LUAD)

    assert len(loaded.blocks) == len(saved.blocks)
    assert torch.equal(loaded.classify[1].weight, saved.classify[1].weight)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_any_precision_is_brought_to_float32_with_all_of_its_weights(tmp_path, foreign, kind):
    path = tmp_path / "weights.pth"
    weights = weights_of(foreign)
    save_checkpoint(path, weights)
    module = sys.modules[foreign]
    module.of_a_kind = lambda: module.Foreign().to(kind)

    network = load_network(path, TWO_CLASSES, f"{foreign}:of_a_kind")

    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert network(torch.zeros(1, 3, 8, 8))["out"].dtype == torch.float32


def test_a_network_without_values_is_refused(tmp_path, foreign):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, weights_of(foreign))
    module = sys.modules[foreign]
    module.empty = lambda: module.Foreign().to("meta")

    message = refusal(load_network, path, TWO_CLASSES, f"{foreign}:empty")

    assert message == f"factory {foreign}:empty: first.weight is on torch's meta device; build it on the CPU"


def test_a_factory_may_be_any_installed_callable(tmp_path):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, TissueNetwork(pretrained=False).state_dict())

    assert isinstance(load_network(path, WSSS4LUAD, "model_export.network:TissueNetwork"), nn.Module)


def test_a_class_list_is_read(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(
        json.dumps(
            [
                {"name": "gland", "letter": "G", "color": [200, 30, 90]},
                {"name": "other", "letter": "O", "color": [20, 20, 20], "label": False},
            ]
        )
    )

    assert load_classes(path) == TWO_CLASSES
    assert all(isinstance(tissue, TissueClass) for tissue in load_classes(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not a class list in JSON: "),
        ("[", "not a class list in JSON: "),
        ('{"name": "gland"}', "valid tuple"),
        ('[{"name": "gland", "letter": "G"}]', "0.color: Field required"),
        ('[{"name": "gland", "letter": "G", "color": [0, 0, 256]}]', "0.color.2: "),
        ('[{"name": "gland", "letter": "G", "color": [0, 0, 1], "colour": 3}]', "0.colour: "),
        ("[]", "at least one class must be a label"),
        (
            '[{"name": "glass", "letter": "B", "color": [0, 0, 1], "label": false}]',
            "at least one class must be a label",
        ),
    ],
)
def test_a_wrong_class_list_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "classes.json"
    path.write_text(content)

    message = refusal(load_classes, path, kind=InvalidData)

    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_missing_class_list_is_refused_by_name(tmp_path):
    assert (
        refusal(load_classes, tmp_path / "no.json", kind=InvalidData) == f"{tmp_path / 'no.json'}: no such class list"
    )


def test_what_is_no_checkpoint_is_named_for_what_it_is(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n")
    pointer = refusal(read_checkpoint, path)
    save_checkpoint(path, {"weight": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    cut = refusal(read_checkpoint, path)
    path.write_bytes(b"")
    empty = refusal(read_checkpoint, path)

    refused = f"{path}: not a checkpoint of tensors: it is"
    assert pointer == f"{refused} a pointer of Git LFS, not the weights; `git lfs pull` fetches them"
    assert cut == f"{refused} cut off or damaged; copy it anew"
    assert empty == f"{refused} empty"


def test_torchscript_is_refused_without_a_warning(tmp_path):
    path = tmp_path / "weights.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that TorchScript is on its way out
        torch.jit.script(nn.Conv2d(3, 4, 1)).save(path)

    message = refusal(read_checkpoint, path)

    assert message.endswith(": it is a TorchScript program; save the network's state_dict()")


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells that they are a prototype
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(1, device="meta"), "is on torch's meta device, without values; save the real weights"),
        (nested(), "is a nested tensor; save a plain one"),
        (torch.zeros(2, 2).to_sparse(), "is a sparse tensor; save it as to_dense() gives it"),
    ],
)
def test_weights_without_plain_values_are_refused_by_name(tmp_path, value, reason):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, {"weight": value})

    assert refusal(load_network, path, WSSS4LUAD) == f"{path}: weight {reason}"


def test_a_factory_that_ends_the_program_or_has_lazy_layers_is_refused(tmp_path, foreign):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, weights_of(foreign))
    module = sys.modules[foreign]
    module.exits = lambda: sys.exit(2)
    module.lazy = lambda: nn.LazyConv2d(2, 1)

    assert "it ends the program, as what reads its arguments does" in refusal(
        load_network, path, TWO_CLASSES, f"{foreign}:exits"
    )
    assert "weight is of a lazy layer" in refusal(load_network, path, TWO_CLASSES, f"{foreign}:lazy")


@pytest.mark.parametrize("factory", ["app.models:build", "model_export:build"])
def test_a_package_that_has_the_name_of_the_projects_own_is_told(tmp_path, factory):
    path = tmp_path / "weights.pth"
    save_checkpoint(path, {"weight": torch.zeros(1)})

    message = refusal(load_network, path, TWO_CLASSES, factory)

    assert message.endswith(f"; {factory.split(':')[0].split('.')[0]} is this project's own package here: rename yours")
