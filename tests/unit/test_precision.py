"""Which of a bundle's precisions is run."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from app.errors import InvalidBundle
from app.inference import model
from app.inference.model import load_segmenter
from app.inference.segmenter import ModelChoice
from app.pathology.manifest import GOLDEN_FILE, MANIFEST_FILE, MODEL_FILE
from app.settings import DEFAULT_BUNDLE


def copy_of_default(folder: Path, **changes: object) -> Path:
    folder.mkdir()
    for name in (MANIFEST_FILE, MODEL_FILE, GOLDEN_FILE):
        shutil.copy(DEFAULT_BUNDLE / name, folder / name)
    said = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(said | changes))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose int8 variant is the float32 graph: what it computes in is not what is looked at here."""
    whole = copy_of_default(tmp_path / "bundle")
    sha256 = json.loads((whole / MANIFEST_FILE).read_text())["sha256"]
    cost = {"images": 1, "mean_iou_lost": 0, "pixel_accuracy_lost": 0, "labels_changed": 0, "labels_judged": 3}
    variant = {"made_from": sha256, "measured_on": "one drawn patch", **cost}
    copy_of_default(whole / "int8", precision="int8", variant=variant)
    return whole


def spoil_golden(folder: Path) -> None:
    with np.load(folder / GOLDEN_FILE) as golden:
        arrays = dict(golden)
    np.savez(folder / GOLDEN_FILE, **{**arrays, "class_map": 3 - arrays["class_map"]})
    said = json.loads((folder / MANIFEST_FILE).read_text())
    digest = hashlib.sha256((folder / GOLDEN_FILE).read_bytes()).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(said | {"golden_sha256": digest}))


def run_in(bundle: Path, precision: str) -> str:
    choice = ModelChoice(bundle, "cpu", precision)  # type: ignore[arg-type]
    return load_segmenter(choice).manifest.precision


@pytest.mark.parametrize(("asked", "got"), [("auto", "int8"), ("int8", "int8"), ("fp32", "fp32")])
def test_a_cpu_runs_int8_where_the_bundle_has_it_unless_told(bundle, asked, got):
    assert run_in(bundle, asked) == got


def test_a_bundle_without_variants_runs_as_it_is(tmp_path):
    assert run_in(copy_of_default(tmp_path / "bundle"), "auto") == "fp32"


def test_a_precision_that_is_not_there_is_refused(bundle):
    with pytest.raises(InvalidBundle, match="has no fp16 variant"):
        run_in(bundle, "fp16")


def test_a_variant_of_another_model_ends_the_start(bundle):
    path = bundle / "int8" / MANIFEST_FILE
    said = json.loads(path.read_text())
    said["variant"]["made_from"] = "0" * 64
    path.write_text(json.dumps(said))
    with pytest.raises(InvalidBundle, match="made from model 000000000000"):
        run_in(bundle, "auto")


def test_a_variant_that_this_device_computes_otherwise_is_left_out_with_a_warning(bundle, caplog):
    spoil_golden(bundle / "int8")
    assert run_in(bundle, "auto") == "fp32"
    assert "int8 is not used on this device; running in fp32" in caplog.text


def test_the_same_asked_for_by_name_ends_the_start(bundle):
    spoil_golden(bundle / "int8")
    with pytest.raises(InvalidBundle, match="does not reproduce its golden pair"):
        run_in(bundle, "int8")


def test_a_bundle_whose_own_model_is_damaged_is_refused_also_where_its_variant_runs(bundle):
    (bundle / MODEL_FILE).write_bytes((bundle / MODEL_FILE).read_bytes()[:-1])
    with pytest.raises(InvalidBundle, match=f"{MODEL_FILE}: "):
        run_in(bundle, "auto")


def test_only_what_runs_is_loaded(bundle, monkeypatch):
    opened = []
    real = model.open_session
    monkeypatch.setattr(model, "open_session", lambda graph, device: (opened.append(device), real(graph, device))[1])
    assert run_in(bundle, "auto") == "int8"
    assert opened == ["cpu"]


def test_the_shipped_variants_are_of_the_shipped_model():
    assert run_in(DEFAULT_BUNDLE, "fp16") == "fp16"
    assert run_in(DEFAULT_BUNDLE, "auto") == "int8"
