import importlib
import json
import re
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from app.errors import InvalidBundle
from app.inference.bundle import check_golden, find_precision, load_bundle, precisions_of
from app.inference.session import open_session
from app.pathology.classes import BACKGROUND, WSSS4LUAD
from app.pathology.geometry import Size
from app.pathology.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE, ModelManifest
from model_export import variant as variant_module
from model_export.answers import graph_in
from model_export.bundle import sha256_of
from model_export.checkpoint import save_checkpoint
from model_export.cli import main
from model_export.errors import InvalidData
from model_export.export import ModelCard, export_bundle, write_golden
from model_export.reduced_precision import to_int8
from model_export.runtime import OnnxGraph
from model_export.synthetic import draw_patch
from model_export.training.dataset import read_pairs
from model_export.variant import write_variant
from tests.model_export_support import hidden_files, one_thread, write_pairs, write_patches

command = importlib.import_module("model_export.cli.quantize")

FLOAT16, INT8 = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8
INTERESTING = ("precision", "variant", "sha256", "golden_sha256", "opset", "producer")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Small(nn.Module):
    """Has the shape of the project's network: an encoder down to stride 8, an enlargement, a decoder, two heads."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU6()),
            *(nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU6()),
        )
        self.first, self.second = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 1, bias=False)
        self.wide, self.narrow = nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 16, 1)
        self.segment, self.classify = nn.Conv2d(16, 4, 1), nn.Conv2d(32, 3, 1)

    def forward(self, images):
        x = self.encoder(images)
        x = x + self.second(torch.relu(self.first(x)))
        enlarged = functional.interpolate(x, scale_factor=2.0)
        fine = self.narrow(enlarged + torch.relu(self.wide(enlarged)))
        out = functional.interpolate(10 * self.segment(fine), scale_factor=4.0, mode="bilinear")
        return {"out": out, "labels": self.classify(x).amax(dim=(2, 3))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of the small network. Read it, do not write to it."""
    torch.manual_seed(1)
    network = Small().eval()
    with torch.inference_mode():  # no class wins everywhere, so that class maps have borders that a precision can move
        drawn = torch.from_numpy(draw_patch(0, Size(224, 224))[0]).permute(2, 0, 1)[None]
        logits = network((drawn - 127.0) / 128.0)["out"]
        network.segment.bias -= logits.mean(dim=(0, 2, 3)) / 10
    target = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(network, ModelCard("small", "1", stride=32, window_px=64, margin_px=8, stain="PAS"), target)
    return target


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 4)


@pytest.fixture(scope="module")
def varied(exported, pairs, tmp_path_factory):
    """A bundle with both variants. Read it, do not write to it."""
    bundle = Path(shutil.copytree(exported, tmp_path_factory.mktemp("varied") / "bundle"))
    for precision in ("int8", "fp16"):
        result = quantize(bundle, precision, pairs, "--max-lost", "100")
        assert result.exit_code == 0, result.output
    return bundle


@pytest.fixture
def bundle(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "place" / "bundle"))


@pytest.fixture
def copied(varied, tmp_path):
    return Path(shutil.copytree(varied, tmp_path / "place" / "bundle"))


def quantize(bundle, precision, pairs, *more):
    given = ("quantize", bundle, "--precision", precision, "--pairs", pairs, *more)
    return CliRunner().invoke(main, [str(argument) for argument in given])


def rewrite(bundle, **changes):
    path = bundle / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weight_types(model):
    return {tensor.data_type for tensor in onnx.load(model).graph.initializer}


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_variant_is_a_bundle_that_serves_like_its_parent(varied, precision):
    place = find_precision(varied, precision)
    loaded, parent = load_bundle(place), load_bundle(varied)
    session = open_session(loaded.model, "cpu")

    check_golden(loaded, session)

    assert place == varied / precision
    assert loaded.manifest.precision == precision
    assert loaded.manifest.variant.made_from == sha256_of(varied / MODEL_FILE) == parent.manifest.sha256
    assert loaded.manifest.sha256 != parent.manifest.sha256
    assert loaded.manifest.model_dump(exclude=set(INTERESTING)) == parent.manifest.model_dump(exclude=set(INTERESTING))
    agreement = (session.run(parent.golden_image).class_maps == parent.golden.class_maps).mean()
    assert agreement > (0.99 if precision == "fp16" else 0.95)
    assert len(np.unique(parent.golden.class_maps)) > 1, "class maps of one class would agree whatever was done"
    assert hidden_files(varied) == []


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_variant_is_for_its_parents_stain(varied, precision):
    assert load_bundle(varied / precision).manifest.stain == load_bundle(varied).manifest.stain == "PAS"


def test_each_variant_really_computes_in_its_precision(varied):
    assert INT8 not in weight_types(varied / MODEL_FILE)
    assert INT8 in weight_types(varied / "int8" / MODEL_FILE)
    assert FLOAT16 in weight_types(varied / "fp16" / MODEL_FILE)
    assert (varied / "fp16" / MODEL_FILE).stat().st_size < 0.75 * (varied / MODEL_FILE).stat().st_size


def test_weights_have_seven_bits_and_a_scale_each_channel(varied):
    graph = onnx.load(varied / "int8" / MODEL_FILE).graph
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == INT8]
    kernels = [weight.astype(int) for weight in weights if weight.ndim == 4]

    encoder, decoder = [(32, 24, 3, 3), (32, 32, 3, 3), (32, 32, 1, 1)], [(32, 32, 3, 3)]
    assert [kernel.shape for kernel in kernels] == encoder + decoder, "from stride 4 on, and what is wide behind that"
    for kernel in kernels:
        assert np.abs(kernel).max() <= 64
        largest = np.abs(kernel).reshape(len(kernel), -1).max(axis=1)
        assert (largest >= 63).all(), "a channel with a scale of its own uses all of its range"


def test_a_convolution_without_a_bias_is_corrected_too(varied):
    originals = [node for node in onnx.load(varied / MODEL_FILE).graph.node if node.op_type == "Conv"]
    assert [len(node.input) for node in originals].count(2) == 1
    graph = onnx.load(varied / "int8" / MODEL_FILE).graph
    makers = {name: node for node in graph.node for name in node.output}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in makers]

    assert len(convolutions) == 4
    for convolution in convolutions:
        assert arrays[makers[convolution.input[2]].input[0]].all(), "no channel's weights are rounded without a trace"


@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_an_answer_depends_on_no_batch_and_no_neighbour(varied, precision):
    session = open_session(load_bundle(find_precision(varied, precision)).model, "cpu")
    windows = np.stack([draw_patch(seed, Size(96, 64))[0] for seed in range(8)])
    windows[5] = 255  # a blank between them would move a scale that followed the batch
    alone = [session.run(window[None]) for window in windows]

    for size in (2, 3, 8):
        together = session.run(windows[8 - size :])
        for index in range(size):
            single = alone[8 - size + index]
            assert np.array_equal(together.class_maps[index], single.class_maps[0])
            assert np.array_equal(together.confidences[index], single.confidences[0])
            assert np.array_equal(together.label_probabilities[index], single.label_probabilities[0])


def test_what_it_costs_is_stated_as_it_was_measured(exported, bundle, pairs, monkeypatch):
    """Against the scores of a graph that says background everywhere, worked out by hand."""
    answering(monkeypatch, lambda _, class_map, __: class_map.fill(WSSS4LUAD.index(BACKGROUND)))
    assert quantize(bundle, "fp16", pairs, "--max-lost", "100").exit_code == 0
    stated = load_bundle(bundle / "fp16").manifest.variant

    manifest = load_bundle(exported).manifest
    known = read_pairs(pairs, WSSS4LUAD)
    scores, _ = variant_module._scored(exported / MODEL_FILE, manifest, known)
    truth = np.concatenate([sample.class_map.ravel() for sample in known])
    before = scores.pixel_scores()
    assert stated.mean_iou_lost == pytest.approx(100 * before["tissue_miou"], abs=1e-3)
    background = (truth == WSSS4LUAD.index(BACKGROUND)).mean()
    assert stated.pixel_accuracy_lost == pytest.approx(100 * (before["pixel_accuracy"] - background), abs=1e-3)
    assert (stated.images, stated.labels_judged) == (4, 12)


def test_a_variant_that_loses_too_much_is_refused_and_leaves_nothing(bundle, pairs, monkeypatch):
    def worse(model, images):
        graph = to_int8(model, images)
        for tensor in graph.graph.initializer:  # the segmentation head's votes, turned around
            if list(tensor.dims)[:2] == [4, 16]:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return graph

    monkeypatch.setattr(variant_module, "to_int8", worse)
    result = quantize(bundle, "int8", pairs)

    assert result.exit_code == 2
    *_, line = result.output.splitlines()
    assert line.startswith("error: int8 loses ")
    assert line.endswith("that the network may have learned from, and 0.5 are allowed; nothing was written")
    assert sorted(path.name for path in bundle.iterdir()) == ["golden.npz", "manifest.json", "model.onnx"]


def answering(monkeypatch, change):
    """Have `change` see each image's number, and the variant's class map, (1, H, W), and labels, (1, L), of it."""

    class Changed(OnnxGraph):
        def __init__(self, model):
            super().__init__(model)
            self.variant, self.asked = model.parent.name != "bundle", count()

        def run(self, batch):
            class_map, confidence, probabilities = super().run(batch)
            if self.variant:
                change(next(self.asked), class_map, probabilities)
            return [class_map, confidence, probabilities]

    monkeypatch.setattr("model_export.answers.OnnxGraph", Changed)


def other_labels(many):
    def change(index, _, probabilities):
        if index < many:
            probabilities[0, 0] = 0.0 if probabilities[0, 0] >= 0.5 else 1.0

    return change


@pytest.mark.parametrize(
    ("changed", "more", "allowed"),
    [(1, (), None), (2, (), "2"), (2, ("--max-labels-changed", 17), None), (3, ("--max-labels-changed", 17), "17")],
)
def test_a_variant_that_changes_many_labels_is_refused_and_leaves_nothing(
    bundle, pairs, monkeypatch, changed, more, allowed
):
    answering(monkeypatch, other_labels(changed))

    result = quantize(bundle, "fp16", pairs, "--max-lost", 100, *more)

    assert (result.exit_code, (bundle / "fp16").exists()) == ((0, True) if allowed is None else (2, False))
    if allowed:
        *_, line = result.output.splitlines()
        assert line == (
            f"error: fp16 changes {changed} of 12 labels on 4 pairs that the network may have learned from,"
            f" and {allowed} % are allowed; nothing was written"
        )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_variant_whose_labels_are_no_numbers_is_refused_and_leaves_nothing(bundle, pairs, monkeypatch, wrong):
    answering(monkeypatch, lambda index, _, probabilities: probabilities.fill(wrong) if index == 1 else None)

    result = quantize(bundle, "fp16", pairs, "--max-lost", 100, "--max-labels-changed", 100)

    assert result.exit_code == 2
    *_, line = result.output.splitlines()
    assert line == (
        "error: fp16 says of labels what is no number, on 4 pairs that the network may have learned from:"
        " a value leaves its range; nothing was written"
    )
    assert not (bundle / "fp16").exists()


class Loud(Small):
    """Says what `Small` does, by way of values 100 million times as large."""

    def forward(self, images):
        loud = 1e8 * self.second(torch.relu(self.first(self.encoder(images))))
        out = functional.interpolate(self.segment(1e-8 * self.narrow(loud)), scale_factor=8.0, mode="bilinear")
        return {"out": out, "labels": self.classify(1e-8 * loud).amax(dim=(2, 3))}


def test_a_network_whose_values_leave_fp16s_range_is_refused_though_a_cpu_does_not_show_it(tmp_path, pairs):
    torch.manual_seed(1)
    card = ModelCard("loud", "1", stride=32, window_px=64, margin_px=8, stain="PAS")
    export_bundle(Loud().eval(), card, tmp_path / "loud")
    result = quantize(tmp_path / "loud", "fp16", pairs, "--max-lost", 100, "--max-labels-changed", 100)
    assert result.exit_code == 2
    *_, line = result.output.splitlines()
    assert re.fullmatch(
        r"error: fp16 ends at 65504, and between convolutions the network's values reach \d{6,} on 4 pairs that the"
        r" network may have learned from; nothing was written",
        line,
    )
    assert not (tmp_path / "loud" / "fp16").exists()


class Standardised(nn.Module):
    """Computes its weights from parameters, as networks with weight standardisation do."""

    def __init__(self, channels):
        super().__init__()
        self.stem, self.segment = nn.Conv2d(3, channels, 4, 4), nn.Conv2d(channels, 4, 1)
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))

    def forward(self, images):
        mean, std = (of((1, 2, 3), keepdim=True) for of in (self.weight.mean, self.weight.std))
        features = functional.conv2d(self.stem(images), (self.weight - mean) / (std + 1e-5), padding=1)
        return {"out": functional.interpolate(self.segment(features), scale_factor=4.0)}


@pytest.mark.parametrize("channels", [16, 64])  # the exporter makes a constant called mean of the former
def test_a_network_that_computes_its_weights_is_exported_and_has_no_int8_where_they_are_no_constants(
    tmp_path, pairs, channels
):
    torch.manual_seed(1)
    card = ModelCard("standardised", "1", stride=32, window_px=64, margin_px=8)
    export_bundle(Standardised(channels).eval(), card, tmp_path / "bundle")

    result = quantize(tmp_path / "bundle", "int8", pairs, "--max-lost", 100, "--max-labels-changed", 100)

    weights = {tensor.name for tensor in onnx.load(tmp_path / "bundle" / MODEL_FILE).graph.initializer}
    nodes = onnx.load(tmp_path / "bundle" / MODEL_FILE).graph.node
    are_constant = all(node.input[1] in weights for node in nodes if node.op_type == "Conv")
    assert are_constant == (channels == 16)
    assert result.exit_code == (0 if are_constant else 2)
    if not are_constant:
        *_, line = result.output.splitlines()
        assert line.endswith("no convolution that int8 would speed up; it is for encoders of many channels")
    assert (tmp_path / "bundle" / "int8").exists() == are_constant


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-1", "101"])
def test_what_may_be_lost_is_a_number_of_a_range(tmp_path, number):
    result = quantize(tmp_path / "none", "int8", tmp_path, "--max-lost", number)

    assert result.exit_code == 2
    assert "Invalid value for '--max-lost': " in result.stderr


@pytest.mark.parametrize("known", [[], ["--patches"]])
def test_int8_without_an_image_to_take_its_scales_from_is_refused_before_any_work(bundle, pairs, tmp_path, known):
    checkpoint = tmp_path / "last.pth"
    save_checkpoint(checkpoint, {"held_out": [sample.name for sample in read_pairs(pairs, WSSS4LUAD)]})
    more = [*known, write_patches(tmp_path / "patches", "1-[1, 0, 1].png")] if known else []

    result = quantize(bundle, "int8", pairs, "--checkpoint", checkpoint, *more)

    said = f"{pairs}: holds nothing but what the training held out, and int8 takes its scales from other images;"
    assert result.exit_code == 2
    assert (result.stderr == f"error: {said} pass all pairs of the training, or --patches\n") == (not known)


def test_the_same_images_give_the_same_bytes(varied, bundle, pairs):
    assert quantize(bundle, "int8", pairs, "--max-lost", "100").exit_code == 0

    for name in (MODEL_FILE, MANIFEST_FILE):
        assert (bundle / "int8" / name).read_bytes() == (varied / "int8" / name).read_bytes()


def test_a_variant_that_is_there_is_replaced_only_when_asked(copied, pairs):
    (copied / "int8" / "notes.txt").write_text("of the old one")

    refused = quantize(copied, "int8", pairs, "--max-lost", "100")
    assert (refused.exit_code, "exists already" in refused.output) == (2, True)
    assert (copied / "int8" / "notes.txt").exists()

    assert quantize(copied, "int8", pairs, "--max-lost", "100", "--overwrite").exit_code == 0
    assert not (copied / "int8" / "notes.txt").exists()


def test_what_is_no_whole_float32_bundle_is_refused(copied, pairs):
    result = quantize(copied / "int8", "fp16", pairs)
    assert result.exit_code == 2
    assert "is int8 already; variants are made of an fp32 bundle" in result.output

    (copied / MODEL_FILE).write_bytes(b"another")
    result = quantize(copied, "int8", pairs, "--overwrite")
    assert result.exit_code == 2
    assert f"{copied / MODEL_FILE}: is not the file that its manifest names" in result.output


def test_a_network_that_gains_nothing_by_int8_is_refused_in_one_line(tmp_path, pairs):
    class Shallow(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = nn.Conv2d(3, 4, 3, 1, 1)

        def forward(self, images):
            return {"out": self.only(images)}

    export_bundle(Shallow().eval(), ModelCard("shallow", "1", stride=32, window_px=64, margin_px=8), tmp_path / "b")
    result = quantize(tmp_path / "b", "int8", pairs)

    assert result.exit_code == 2
    assert "no convolution that int8 would speed up" in result.output.splitlines()[-1]
    assert quantize(tmp_path / "b", "fp16", pairs, "--max-lost", "100").exit_code == 0


def test_a_stale_variant_is_refused_in_one_line(copied):
    rewrite(copied, sha256="1" * 64)

    with pytest.raises(InvalidBundle) as caught:
        find_precision(copied, "int8")

    assert f"{copied / 'int8'}: was made from model " in str(caught.value)
    assert "the bundle's is 111111111111..." in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_variant_whose_parent_now_means_something_else_is_refused(copied):
    rewrite(copied, label_thresholds=[0.1, 0.2, 0.3])
    with pytest.raises(InvalidBundle, match="int8: its manifest says otherwise than"):
        find_precision(copied, "int8")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda bundle: rewrite(bundle, sha256="1" * 64), "was made from model "),
        (lambda bundle: rewrite(bundle, label_thresholds=[0.1, 0.2, 0.3]), "its manifest says otherwise than"),
        (lambda bundle: rewrite(bundle / "int8", precision="fp16"), "holds an fp16 model, not the int8 variant"),
    ],
)
def test_what_is_not_served_as_a_variant_is_not_scored_as_one_either(copied, spoil, reason):
    spoil(copied)

    with pytest.raises(InvalidData, match=f"{re.escape(str(copied / 'int8'))}: {reason}.*; run quantize again"):
        graph_in(copied, "int8")


def test_precisions_are_found_where_they_lie(copied):
    assert precisions_of(copied) == ("fp32", "fp16", "int8")
    assert precisions_of(copied / "int8") == ("int8",)
    assert find_precision(copied, "fp32") == copied
    assert find_precision(copied / "int8", "int8") == copied / "int8"
    with pytest.raises(InvalidBundle, match="is an int8 variant; fp32 is in the bundle that holds it"):
        find_precision(copied / "int8", "fp32")

    shutil.rmtree(copied / "int8")
    assert precisions_of(copied) == ("fp32", "fp16")
    with pytest.raises(InvalidBundle, match="has no int8 variant; python -m model_export quantize makes one"):
        find_precision(copied, "int8")

    shutil.copytree(copied / "fp16", copied / "int8")
    with pytest.raises(InvalidBundle, match="holds an fp16 model, not the int8 variant"):
        find_precision(copied, "int8")


def test_a_manifest_states_where_a_lower_precision_comes_from_and_older_ones_stay_valid(varied):
    stated = json.loads((varied / "int8" / MANIFEST_FILE).read_text())
    plain = json.loads((varied / MANIFEST_FILE).read_text())

    for name in ("precision", "variant"):
        del plain[name]
    assert ModelManifest.model_validate(plain).precision == "fp32"
    for wrong in ({**stated, "variant": None}, {**stated, "precision": "fp32"}):
        with pytest.raises(ValueError, match="variant must be stated for fp16 and int8, and for nothing else"):
            ModelManifest.model_validate(wrong)


def test_a_variant_of_another_model_fails_its_golden_pair(copied):
    loaded = load_bundle(copied / "int8")
    other = loaded.golden.class_maps.copy()
    other[:, :4] = 3 - other[:, :4]  # 1.8 % of the pixels
    changed = type(loaded)(
        loaded.manifest,
        loaded.model,
        loaded.golden_image,
        type(loaded.golden)(other, loaded.golden.confidences, loaded.golden.label_probabilities),
    )
    with pytest.raises(InvalidBundle, match="does not reproduce its golden pair"):
        check_golden(changed, open_session(loaded.model, "cpu"))


def test_pairs_that_nobody_learned_from_are_called_so_when_that_is_said(bundle, pairs):
    result = quantize(bundle, "fp16", pairs, "--max-lost", "100", "--unseen")

    assert result.exit_code == 0, result.output
    assert not any(line.startswith("note: ") for line in result.output.splitlines())
    assert load_bundle(bundle / "fp16").manifest.variant.measured_on == "4 pairs that the network never saw"


@pytest.fixture
def trials(monkeypatch):
    """What variants were made with and judged on."""
    seen = []
    monkeypatch.setattr(command, "write_variant", lambda *args: (seen.append(args[2]), write_variant(*args))[1])
    return seen


@pytest.mark.parametrize(("precision", "judged"), [("int8", ["00.png", "02.png"]), ("fp16", None)])
def test_of_unseen_pairs_int8_is_calibrated_on_others_than_it_is_judged_on(bundle, pairs, trials, precision, judged):
    known = read_pairs(pairs, WSSS4LUAD)

    result = quantize(bundle, precision, pairs, "--max-lost", "100", "--unseen")

    assert result.exit_code == 0, result.output
    [trial] = trials
    judged = judged or [sample.name for sample in known]
    assert [sample.name for sample in trial.judged] == judged
    rest = [sample.image for sample in known if sample.name not in judged]
    assert [image.tobytes() for image in trial.calibration] == [image.tobytes() for image in rest]
    stated = load_bundle(bundle / precision).manifest.variant
    assert (stated.images, stated.measured_on) == (len(judged), f"{len(judged)} pairs that the network never saw")


def test_of_unseen_pairs_all_are_judged_where_int8_is_calibrated_on_patches(bundle, pairs, trials, tmp_path):
    patches = write_patches(tmp_path / "patches", "1-[1, 0, 1].png")

    result = quantize(bundle, "int8", pairs, "--max-lost", "100", "--unseen", "--patches", patches)

    assert result.exit_code == 0, result.output
    [trial] = trials
    assert (len(trial.judged), len(trial.calibration)) == (4, 1)


def test_one_unseen_pair_cannot_both_calibrate_and_judge(bundle, tmp_path):
    one = write_pairs(tmp_path / "one", 1)

    said = f"{one}: holds nothing but what is judged, and int8 takes its scales from other images;"
    assert quantize(bundle, "int8", one, "--unseen").stderr == f"error: {said} pass more pairs, or --patches\n"


def test_what_a_checkpoint_notes_is_not_said_by_hand_too(bundle, pairs):
    result = quantize(bundle, "fp16", pairs, "--unseen", "--checkpoint", "last.pth")

    assert result.exit_code == 2
    assert "--unseen goes without --checkpoint" in result.output


def test_a_variants_golden_pair_is_of_its_parents_image(bundle, pairs):
    own = draw_patch(9, Size(64, 32))[0][None]
    write_golden(own, bundle / MODEL_FILE, bundle / GOLDEN_FILE)
    assert "golden.npz: is not the file" in quantize(bundle, "fp16", pairs).output
    rewrite(bundle, golden_sha256=sha256_of(bundle / GOLDEN_FILE))

    assert quantize(bundle, "fp16", pairs, "--max-lost", "100").exit_code == 0

    loaded = load_bundle(bundle / "fp16")
    np.testing.assert_array_equal(loaded.golden_image, own)
    check_golden(loaded, open_session(loaded.model, "cpu"))
