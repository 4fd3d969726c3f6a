import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import MANIFEST_FILE, MODEL_FILE
from app.settings import DEFAULT_BUNDLE, QUALITY_BUNDLE
from model_export.bundle import read_manifest
from model_export.checkpoint import save_checkpoint
from model_export.cli import main
from model_export.errors import InvalidCheckpoint
from model_export.export import ModelCard, serving_graph
from model_export.reduced_precision import to_int8
from model_export.trials import plan_trials
from model_export.views import AveragedViews, with_views
from tests.model_export_support import one_thread

COUNTS = (2, 4, 8)
IMAGES = torch.randn((2, 3, 64, 96), generator=torch.Generator().manual_seed(5))


class Lopsided(nn.Module):
    """Sees its neighbour above and to the left alone, and enlarges what it says from half the resolution."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = nn.Parameter(torch.randn((4, 3, 3, 3), generator=generator))
        self.weight.data[..., 2, :] = self.weight.data[..., :, 2] = 0

    def forward(self, images):
        logits = functional.conv2d(images, self.weight, stride=2, padding=1)
        return {"out": logits, "labels": logits[:, :3].amax(dim=(2, 3)) + images[:, :, 0, 0]}


class WithoutLabels(Lopsided):
    def forward(self, images):
        return super().forward(images)["out"]


class Words(nn.Module):
    def forward(self, images):
        return {"out": "logits"}


class Small(nn.Module):
    """An encoder with batch normalisation, and what the project's network answers."""

    def __init__(self):
        super().__init__()
        widths = (3, 64, 96, 128, 256)
        steps = list(zip(widths, widths[1:], (2, 2, 2, 1), strict=False))
        self.steps = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=i == 3) for i, o, s in steps)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in steps)
        self.segment, self.classify = nn.Conv2d(256, 4, 1), nn.Conv2d(256, 3, 1)

    def forward(self, images):
        for step, norm in zip(self.steps, self.norms, strict=True):
            images = norm(step(images)).relu()
        out = functional.interpolate(10 * self.segment(images), scale_factor=8.0, mode="bilinear")
        return {"out": out, "labels": self.classify(images).amax(dim=(2, 3))}


def small():
    """As after a training: nothing is there that could be left out unnoticed."""
    torch.manual_seed(0)
    network = Small().eval()
    for norm in network.norms:
        for values in (norm.weight.data, norm.running_var):
            values.uniform_(0.8, 1.2)
        for values in (norm.bias.data, norm.running_mean):
            values.normal_(0, 0.1)
    return network


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def run(command, *options):
    """Run a command on the network at the checkpoint that is the second of `options`."""
    classes = options[1].parent / "classes.json"
    classes.write_text(json.dumps([tissue.model_dump(mode="json") for tissue in WSSS4LUAD]), encoding="utf-8")
    numbers = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    return CliRunner().invoke(
        main, [command, "--factory", f"{__name__}:Small", "--classes", str(classes), *numbers, *map(str, options)]
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "best.pth"
    save_checkpoint(path, {"model": small().state_dict()})
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    """`small` in four views, of another stain."""
    out = tmp_path_factory.mktemp("exported") / "bundle"
    named = ("--name", "mine", "--version", "1.0.0", "--stain", "PD-L1 IHC")
    exported = run("export", "--checkpoint", checkpoint, "--views", 4, "--out", out, *named)
    assert exported.exit_code == 0, exported.output
    assert "note: the stain is 'PD-L1 IHC', not H&E: colours of images will not be judged" in exported.output
    return out


def by_hand(network, views):
    """What numpy's own turns make of each view, on average."""
    turns = [(t, k, m) for t in (False, True) for k, m in ((0, False), (2, False), (0, True), (2, True))][:views]
    maps, labels = [], []
    for transposed, quarters, mirrored in turns:
        image = np.rot90(IMAGES.numpy(), quarters, (2, 3))
        image = image[..., ::-1] if mirrored else image
        image = image.swapaxes(2, 3) if transposed else image
        with torch.inference_mode():
            outputs = network(torch.from_numpy(np.ascontiguousarray(image)))
        logits = outputs["out"].numpy()
        logits = logits.swapaxes(2, 3) if transposed else logits
        logits = logits[..., ::-1] if mirrored else logits
        maps.append(np.rot90(logits, -quarters, (2, 3)))
        labels.append(outputs["labels"].numpy())
    return np.mean(maps, axis=0), np.mean(labels, axis=0)


@pytest.mark.parametrize("views", COUNTS)
@torch.inference_mode()
def test_each_view_counts_once_where_it_lies_on_the_image(views):
    outputs = AveragedViews(Lopsided(), views)(IMAGES)
    logits, labels = by_hand(Lopsided(), views)

    np.testing.assert_allclose(outputs["out"].numpy(), logits, atol=1e-5)
    np.testing.assert_allclose(outputs["labels"].numpy(), labels, atol=1e-5)


@torch.inference_mode()
def test_eight_views_say_the_same_however_an_image_is_turned():
    network = AveragedViews(Lopsided(), 8)
    upright, turned = network(IMAGES), network(torch.rot90(IMAGES, 1, (2, 3)))

    np.testing.assert_allclose(torch.rot90(turned["out"], -1, (2, 3)), upright["out"], atol=1e-5)
    np.testing.assert_allclose(turned["labels"], upright["labels"], atol=1e-5)
    once = Lopsided()(IMAGES)["out"]
    assert (once - torch.rot90(Lopsided()(torch.rot90(IMAGES, 1, (2, 3)))["out"], -1, (2, 3))).abs().max() > 1


@torch.inference_mode()
def test_a_network_without_labels_is_left_without():
    assert AveragedViews(WithoutLabels(), 4)(IMAGES).keys() == {"out"}


def test_one_view_is_the_network_itself():
    network = Lopsided()

    assert with_views(network, 1) is network


def test_outputs_that_are_no_logits_are_refused_in_one_line():
    with pytest.raises(InvalidCheckpoint, match="must return logits"):
        serving_graph(AveragedViews(Words(), 2), ModelCard("mine", "1.0.0"))


def test_a_bundle_of_views_holds_the_weights_once(bundle):
    model = onnx.load(bundle / MODEL_FILE)

    assert sum(node.op_type == "Conv" for node in model.graph.node) == 4 * (len(small().steps) + 2)
    assert not [node.name for node in model.graph.node if node.op_type == "BatchNormalization"]
    weights = sum(values.nbytes for values in small().parameters())
    assert sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer) < 1.05 * weights


def test_int8_of_views_corrects_each_views_biases_for_itself(bundle, capfd):
    batches = [trial.batch for trial in plan_trials(32) if len(trial.batch) < 3]
    int8 = to_int8(bundle / MODEL_FILE, batches)
    assert capfd.readouterr() == ("", "")

    makers = {name: node for node in int8.graph.node for name in node.output}
    rounded = [node for node in int8.graph.node if node.op_type == "Conv" and node.input[1] in makers]
    weights, biases = ({makers[node.input[place]].input[0] for node in rounded} for place in (1, 2))
    assert len(biases) == len(rounded) == 4 * len(weights)


def test_a_bundle_of_views_says_how_many_and_is_verified_with_as_many(bundle, checkpoint, tmp_path):
    assert read_manifest(bundle).views == 4
    assert run("verify", "--checkpoint", checkpoint, "--bundle", bundle).output.endswith("verified\n")

    wrong = tmp_path / "wrong"
    shutil.copytree(bundle, wrong)
    said = json.loads((wrong / MANIFEST_FILE).read_text(encoding="utf-8"))
    (wrong / MANIFEST_FILE).write_text(json.dumps({**said, "views": 1}), encoding="utf-8")
    refused = run("verify", "--checkpoint", checkpoint, "--bundle", wrong)
    assert refused.exit_code == 2
    assert "PyTorch and ONNX Runtime disagree" in refused.output


def test_a_bundle_says_the_stain_that_was_stated(bundle):
    assert read_manifest(bundle).stain == "PD-L1 IHC"


@pytest.mark.parametrize(
    ("stain", "said"), [("", "at least 1 character"), ("a\nb", "in one line"), ("HE", "must be H&E")]
)
def test_a_stain_that_a_manifest_cannot_state_is_refused_before_the_export(checkpoint, tmp_path, stain, said):
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--name", "mine", "--version", "1")

    refused = run("export", *options, "--stain", stain)

    assert refused.exit_code != 0
    assert "manifest.stain" in refused.output
    assert said in refused.output
    assert not (tmp_path / "out").exists()


def test_a_number_of_views_that_is_none_of_them_is_refused(checkpoint, tmp_path):
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--name", "mine", "--version", "1")

    assert "'3' is not one of" in run("export", *options, "--views", 3).output


@pytest.mark.parametrize(("folder", "views"), [(DEFAULT_BUNDLE, 1), (QUALITY_BUNDLE, 4)])
def test_the_shipped_bundles_say_how_many_views_they_have(folder, views):
    for bundle in (folder, *(path.parent for path in folder.glob("*/manifest.json"))):
        assert read_manifest(bundle).views == views
        graph = onnx.load(bundle / MODEL_FILE).graph
        of_rgb = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 4 and tensor.dims[1] == 3}
        readers = [node for node in graph.node if node.op_type == "Conv" and of_rgb.intersection(node.input)]
        assert len(readers) == 2 * views  # the encoder's first, and that of the detail
