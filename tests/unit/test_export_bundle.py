import hashlib
import importlib
import os
import shutil
import sys
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from app.inference.bundle import check_golden, load_bundle
from app.inference.session import open_session
from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import GRAPH_INPUT, GRAPH_OUTPUTS, ModelManifest
from model_export.bundle import new_folder, read_manifest, sha256_of
from model_export.errors import InvalidCheckpoint, InvalidData, VerificationFailed
from model_export.export import ModelCard, export_bundle, serving_graph
from model_export.trials import plan_trials
from model_export.verify import verify
from tests.full_disk import full_at
from tests.model_export_support import TWO_CLASSES, hidden_files, one_thread, write_module

MODULE = "foreign_of_the_bundle_tests"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Builds one of the foreign networks; the same seed gives the same weights."""
    path = write_module(tmp_path_factory.mktemp("module"), MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        module = importlib.import_module(MODULE)

    def build(name="Foreign", seed=0):
        torch.manual_seed(seed)
        return getattr(module, name)()

    yield build
    sys.modules.pop(MODULE)


def card(**changes):
    known = {
        "name": "foreign",
        "version": "2.1",
        "released": date(2026, 11, 29),
        "description": "Finds glands.",
        "classes": TWO_CLASSES,
        "mean": (124.0, 116.0, 104.0),
        "std": (58.0, 57.0, 57.5),
        "stride": 8,
        "window_px": 64,
        "margin_px": 8,
        "um_per_px": 0.5,
        "stain": "PD-L1 IHC",
        "training_data": ("drawn", "by hand"),
        "metrics": {"cv_tissue_miou": 0.5},
    }
    return ModelCard(**{**known, **changes})


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """A bundle of the foreign network. Read it, do not write to it."""
    target = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(network(), card(), target)
    return target


@pytest.fixture
def bundle(exported, tmp_path):
    """A copy of the bundle, for a test to write to."""
    return Path(shutil.copytree(exported, tmp_path / "place" / "bundle"))


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_holds_its_three_files_and_nothing_else(exported):
    assert set(content_of(exported)) == {"model.onnx", "manifest.json", "golden.npz"}
    assert hidden_files(exported.parent) == []
    assert exported.stat().st_mode & 0o777 == 0o755


def test_the_manifest_says_what_the_card_said_and_what_the_files_are(exported):
    manifest = ModelManifest.model_validate_json((exported / "manifest.json").read_bytes())

    said = card()
    of_both = ("name", "version", "released", "description", "classes", "stride", "window_px", "margin_px", "um_per_px")
    for name in (*of_both, "stain"):
        assert getattr(manifest, name) == getattr(said, name)
    assert manifest.training_data == said.training_data
    assert manifest.metrics == said.metrics
    assert (manifest.label_thresholds, manifest.temperature) == ((0.5,), 1.0)
    assert manifest.sha256 == hashlib.sha256((exported / "model.onnx").read_bytes()).hexdigest()
    assert manifest.golden_sha256 == hashlib.sha256((exported / "golden.npz").read_bytes()).hexdigest()
    assert set(manifest.producer) == {"torch", "onnx", "onnxscript", "mean", "std"}
    assert {entry.domain: entry.version for entry in onnx.load(exported / "model.onnx").opset_import}[""] == 20


def test_the_service_loads_the_bundle_and_reproduces_its_golden_pair(exported):
    bundle = load_bundle(exported)
    session = open_session(bundle.model, "cpu")

    check_golden(bundle, session)

    assert bundle.golden_image.shape == (1, 224, 224, 3)
    assert len(np.unique(bundle.golden.class_maps)) > 1, "a golden pair of one class would prove little"


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 64, 64), (4, 40, 16), (7, 8, 56)], ids=str)
def test_batch_height_and_width_are_free(exported, network, shape):
    images = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)

    result = open_session((exported / "model.onnx").read_bytes(), "cpu").run(images)

    with torch.inference_mode():
        class_maps, confidences, labels = serving_graph(network(), card())(torch.from_numpy(images))
    assert result.class_maps.shape == result.confidences.shape == shape
    assert (result.class_maps == class_maps.numpy()).mean() > 0.999
    assert np.abs(result.confidences.astype(int) - confidences.numpy()).max() <= 1
    np.testing.assert_allclose(result.label_probabilities, labels, atol=0.05)  # a pixel is 1/64 of the smallest image
    whole = min(shape[1], 32) * min(shape[2], 32)
    blocks = [
        (result.class_maps[:, top : top + 32, left : left + 32] == 0).sum(axis=(1, 2)) / whole
        for top in range(0, shape[1], 32)
        for left in range(0, shape[2], 32)
    ]
    np.testing.assert_allclose(result.label_probabilities[:, 0], np.max(blocks, axis=0), atol=1e-6)


def test_the_graphs_names_are_those_of_the_contract(exported):
    graph = onnx.load(exported / "model.onnx").graph

    assert [item.name for item in graph.input] == [GRAPH_INPUT]
    assert tuple(item.name for item in graph.output) == GRAPH_OUTPUTS


def test_nothing_in_the_bundle_tells_of_the_machine_it_was_made_on(exported):
    traces = (b".py", b"site-packages", b"Traceback", *map(os.fsencode, (Path.cwd(), Path.home(), MODULE)))

    for name in ("model.onnx", "manifest.json"):
        content = (exported / name).read_bytes()
        assert [trace for trace in traces if trace in content] == []


def test_the_same_weights_are_exported_to_the_same_bytes(exported, network, tmp_path):
    export_bundle(network(), card(), tmp_path / "again")

    assert content_of(tmp_path / "again")["model.onnx"] == content_of(exported)["model.onnx"]
    assert content_of(tmp_path / "again")["manifest.json"] == content_of(exported)["manifest.json"]


def test_verification_passes_for_the_weights_that_were_exported(exported, network):
    comparisons = verify(serving_graph(network(), card()), exported / "model.onnx")

    assert [comparison.shape for comparison in comparisons] == [trial.batch.shape for trial in plan_trials(8)]
    assert all(comparison.passed for comparison in comparisons)


def test_verification_refuses_other_weights(exported, network):
    with pytest.raises(VerificationFailed) as caught:
        verify(serving_graph(network(seed=1), card()), exported / "model.onnx")

    assert str(caught.value).startswith("model.onnx: PyTorch and ONNX Runtime disagree: 1x224x224x3: ")
    assert len(str(caught.value).splitlines()) == 1


def test_verification_refuses_another_normalisation(exported, network):
    with pytest.raises(VerificationFailed, match="disagree"):
        verify(serving_graph(network(), card(mean=(0.0, 0.0, 0.0))), exported / "model.onnx")


def test_thresholds_and_temperature_are_in_the_manifest_and_the_graph(network, tmp_path):
    calibrated = card(label_thresholds=(0.3,), temperature=2.0)

    export_bundle(network(), calibrated, tmp_path / "bundle")

    manifest = read_manifest(tmp_path / "bundle")
    assert (manifest.label_thresholds, manifest.temperature) == ((0.3,), 2.0)
    model = tmp_path / "bundle" / "model.onnx"
    assert all(comparison.passed for comparison in verify(serving_graph(network(), calibrated), model))
    with pytest.raises(VerificationFailed, match="disagree"):
        verify(serving_graph(network(), card()), model)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"{", "Invalid JSON: "), (b'{"name": "x"}', "version: Field required")],
)
def test_a_manifest_that_is_none_is_refused_in_one_line(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)

    with pytest.raises(InvalidData) as caught:
        read_manifest(tmp_path)

    assert str(caught.value).startswith(f"{tmp_path / 'manifest.json'}: {reason}")
    assert len(str(caught.value).splitlines()) == 1


def test_verification_refuses_a_graph_with_other_labels(exported, network):
    both = tuple(tissue.model_copy(update={"label": True}) for tissue in TWO_CLASSES)

    with pytest.raises(VerificationFailed) as caught:
        verify(serving_graph(network(), card(classes=both)), exported / "model.onnx")

    assert str(caught.value) == "model.onnx: label_probability is float32(1, 1), not float32(1, 2)"


def test_an_existing_folder_is_refused_and_left_alone(bundle, network):
    before = content_of(bundle)

    with pytest.raises(InvalidData) as caught:
        export_bundle(network(seed=1), card(), bundle)

    assert str(caught.value) == f"{bundle}: exists already; choose another place or pass --overwrite"
    assert content_of(bundle) == before


def test_a_bundle_is_replaced_when_it_may_be(bundle, network):
    (bundle / "notes.txt").write_text("of the old one")

    export_bundle(network(seed=1), card(version="3"), bundle, overwrite=True)

    assert load_bundle(bundle).manifest.version == "3"
    assert set(content_of(bundle)) == {"model.onnx", "manifest.json", "golden.npz"}
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path, network):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")

    with pytest.raises(InvalidData) as caught:
        export_bundle(network(), card(), precious, overwrite=True)

    assert str(caught.value).startswith(f"{precious}: holds something else than a bundle")
    assert (precious / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("name", "overwrite", "error", "reason"),
    [
        ("Choosy", True, InvalidCheckpoint, "made for 224 px"),
        ("Choosy", False, InvalidCheckpoint, "made for 224 px"),
        ("Branching", True, InvalidCheckpoint, "the network cannot be exported to ONNX: "),
        ("Branching", False, InvalidCheckpoint, "the network cannot be exported to ONNX: "),
        ("Noisy", True, VerificationFailed, "model.onnx: PyTorch and ONNX Runtime disagree: "),
    ],
)
def test_an_export_that_fails_leaves_the_place_as_it_was(bundle, network, capfd, name, error, reason, overwrite):
    before = content_of(bundle)
    target = bundle if overwrite else bundle.parent / "new"

    with pytest.raises(error) as caught:
        export_bundle(network(name), card(), target, overwrite)

    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert content_of(bundle) == before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "my model"}, "manifest.name: "),
        ({"version": ""}, "manifest.version: "),
        ({"window_px": 100}, "window_px must be a multiple of stride"),
        ({"margin_px": 32}, "twice margin_px and stride must fit into window_px"),
        ({"label_thresholds": (0.5, 0.5)}, "label_thresholds must hold one number for each label class"),
        ({"label_thresholds": (1.5,)}, "manifest.label_thresholds.0: "),
        ({"temperature": 0.0}, "manifest.temperature: "),
        ({"um_per_px": -0.5}, "manifest.um_per_px: "),
        ({"um_per_px": float("nan")}, "manifest.um_per_px: "),
        ({"classes": TWO_CLASSES[:1]}, "manifest.classes: "),
        ({"classes": (TWO_CLASSES[0], TWO_CLASSES[0])}, "two classes share a name"),
        ({"classes": (WSSS4LUAD[3], TWO_CLASSES[1])}, "at least one class must be a label"),
    ],
)
def test_a_card_that_makes_no_manifest_is_refused_before_anything_is_written(tmp_path, network, changes, reason):
    with pytest.raises(InvalidData) as caught:
        export_bundle(network(), card(**changes), tmp_path / "bundle")

    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_refused_by_name(tmp_path, network):
    (tmp_path / "file").write_text("a file")
    target = tmp_path / "file" / "bundle"

    with pytest.raises(InvalidData) as caught:
        export_bundle(network(), card(), target)

    assert str(caught.value).startswith(f"{target}: cannot be written: ")


def test_a_new_folder_appears_only_when_its_block_ends_well(tmp_path):
    target = tmp_path / "made" / "on" / "the way" / "new"

    with new_folder(target) as folder:
        (folder / "file").write_text("content")
        assert not target.exists()

    assert {name: content.decode() for name, content in content_of(target).items()} == {"file": "content"}
    assert hidden_files(target.parent) == []


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_folder_vanishes_when_its_block_fails(tmp_path, error, overwrite):
    target = tmp_path / "new"
    if overwrite:
        target.mkdir()
        (target / "manifest.json").write_text("old")

    with pytest.raises(type(error)), new_folder(target, overwrite) as folder:
        (folder / "file").write_text("content")
        raise error

    assert hidden_files(tmp_path) == []
    assert ([path.name for path in target.iterdir()] == ["manifest.json"]) if overwrite else not target.exists()


def test_a_folder_that_cannot_be_moved_away_stays(tmp_path, monkeypatch):
    target = tmp_path / "current"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    monkeypatch.chdir(target)

    with pytest.raises(OSError, match=r"busy|Invalid"), new_folder(Path(), overwrite=True) as folder:
        (folder / "file").write_text("content")

    assert [path.name for path in target.iterdir()] == ["manifest.json"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")
    replace = os.replace

    def full(source, destination):
        if destination == target and not (Path(source) / "manifest.json").exists():
            raise OSError(28, "No space left on device", str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"), new_folder(target, overwrite=True) as folder:
        (folder / "file").write_text("content")

    assert [path.name for path in target.iterdir()] == ["manifest.json"]
    assert hidden_files(tmp_path) == []


def test_what_is_no_bundle_is_not_replaced_whoever_asks(tmp_path):
    target = tmp_path / "notes"
    target.mkdir()
    (target / "notes.txt").write_text("kept")

    with pytest.raises(InvalidData) as caught, new_folder(target, overwrite=True):
        pytest.fail("the block was begun")

    assert str(caught.value) == f"{target}: holds something else than a bundle; --overwrite replaces bundles only"
    assert (target / "notes.txt").read_text() == "kept"
    assert hidden_files(tmp_path) == []


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")

    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_full_disk_is_told_by_the_bundles_name_and_no_fault_of_the_network(tmp_path, network):
    target = tmp_path / "bundle"

    with full_at(100), pytest.raises(OSError, match="File too large") as caught:
        export_bundle(network(), card(), target)

    assert caught.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []
