import errno
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from app.inference.bundle import check_golden, load_bundle
from app.inference.session import open_session
from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import Size
from model_export.answers import Answer
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.cli import main
from model_export.cli.doubts import doubts_of_comparisons
from model_export.corruptions import CORRUPTIONS
from model_export.measured import read_measured
from model_export.network import network_for
from model_export.synthetic import draw_patch
from model_export.trials import plan_trials
from model_export.variant import write_variant
from model_export.verify import Comparison
from tests.model_export_support import (
    hidden_files,
    one_thread,
    write_mask,
    write_module,
    write_pair,
    write_pairs,
    write_patches,
    write_recipe,
)

ROOT = Path(__file__).parent.parent.parent
MODULE = "foreign_of_the_command_line_tests"
CLASSES = [
    {"name": "gland", "letter": "G", "color": [200, 30, 90]},
    {"name": "other", "letter": "O", "color": [20, 20, 20], "label": False},
]
START_SECONDS = 300


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ran(*arguments):
    """Run a command that has to succeed; return its lines."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout.splitlines()


def refused(*arguments):
    """Run a command that has to be refused; return its one line."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def as_process(*arguments, cwd=ROOT):
    command = [sys.executable, "-W", "error", "-m", "model_export", *(str(argument) for argument in arguments)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=START_SECONDS, check=False
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with pairs/, patches/ and a recipe. Read it, do not write to it."""
    root = tmp_path_factory.mktemp("data")
    write_pairs(root / "pairs", 4)
    write_patches(root / "patches", "1-2-3-[1, 0, 1].png", "1-2-4-[0, 1, 0].png")
    write_recipe(root / "tiny.toml")
    # After two steps the finer decoder is surer than any temperature mends, and that is refused, rightly.
    write_recipe(root / "coarse.toml", epochs=1, detail="false")
    return root


def training(data, run_folder, *more):
    return ("train", "--pairs", data / "pairs", "--recipe", data / "tiny.toml", "--run", run_folder, *more)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a finished run that held out the second half of the pairs."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    ran(*training(data, folder, "--patches", data / "patches", "--fold", "2/2"))
    return folder


@pytest.fixture(scope="module")
def scores(data, tmp_path_factory):
    """The folder of a finished cross-validation."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    lines = ran(*validation(data, folder))
    assert any("tissue_miou" in line and "+-" in line for line in lines)
    assert sum(line.startswith("note: every image counts as a slide of its own: ") for line in lines) == 1
    return folder


def validation(data, run_folder, *more):
    recipe = ("--recipe", data / "coarse.toml")
    return ("cross-validate", "--pairs", data / "pairs", *recipe, "--folds", 2, "--run", run_folder, *more)


@pytest.fixture(scope="module")
def bundle(trained, scores, tmp_path_factory):
    """The trained network, exported by a process of its own. Read it, do not write to it."""
    target = tmp_path_factory.mktemp("exported") / "bundle"
    given = ("--checkpoint", trained / "best.pth", "--out", target, "--name", "tiny", "--version", "1.0")
    given += ("--um-per-px", "1.0")
    process = as_process("export", *given, "--scores", scores / "scores.json")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert len(lines) == 1 + len(list(plan_trials(32, 1024))) + 1
    assert lines[0].startswith(
        f"note: {scores / 'scores.json'} is of networks trained with epochs 1, these weights with 2:"
    )
    assert lines[-1] == f"written: {target}"
    assert hidden_files(target.parent) == []
    return target


@contextmanager
def in_folder(folder):
    """Work in `folder`, and forget what was imported from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield
    sys.modules.pop(MODULE, None)


FOREIGN = (
    *("--factory", f"{MODULE}:Foreign", "--checkpoint", "foreign.pth", "--classes", "classes.json"),
    *("--mean", "0.485,0.456,0.406", "--std", "0.229, 0.224, 0.225"),
)
"""A network that is none of the project's; its files lie in the current folder."""

NAMED = ("--name", "foreign", "--version", "2.1", "--stride", 8, "--window", 64, "--margin", 8, "--um-per-px", 0.5)


@pytest.fixture(scope="module")
def abroad(tmp_path_factory):
    """A folder with a foreign network's module, weights, classes and bundle. Read it, do not write to it."""
    folder = tmp_path_factory.mktemp("abroad")
    write_module(folder, MODULE)
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    with in_folder(folder):
        sys.path.insert(0, "")
        torch.manual_seed(0)
        save_checkpoint(folder / "foreign.pth", {"state_dict": importlib.import_module(MODULE).Foreign().state_dict()})
        lines = ran("export", *FOREIGN, *NAMED, "--out", "bundle")
    assert len(lines) == len(list(plan_trials(8, 64))) + 1
    assert all("of pixels agree" in line for line in lines[:-1])
    assert lines[-1] == "written: bundle"
    return folder


@pytest.fixture
def foreign(abroad, tmp_path):
    """A copy of that folder, for a test to work in."""
    folder = Path(shutil.copytree(abroad, tmp_path / "abroad", ignore=shutil.ignore_patterns("__pycache__")))
    with in_folder(folder):
        yield folder


# train


def test_training_leaves_a_checkpoint_and_says_where(data, tmp_path):
    folder = tmp_path / "run"

    lines = ran(*training(data, folder, "--patches", data / "patches", "--fold", "1/2", "--threads", 1))

    counted = "pairs: 4; no table names their slides"
    assert lines[:2] == [counted, "images to learn from: 4 of wsss4luad; held out: 2"]
    assert lines[2].startswith("note: every image counts as a slide of its own: ")
    assert f"a row for each step: {folder / 'steps.csv'}" in lines
    assert lines[-1] == f"kept: {folder / 'best.pth'}"
    assert sum(line.startswith("epoch 2/2  validate  loss ") for line in lines) == 1
    assert {path.name for path in folder.iterdir()} == {
        *("recipe.json", "environment.json", "metrics.csv", "steps.csv", "best.pth", "last.pth"),
        *("scores.json", "grid.png", "curves.png"),
    }


def test_epochs_and_seed_on_the_command_line_win_over_the_recipe(data, tmp_path):
    ran(*training(data, tmp_path / "run", "--epochs", 1, "--seed", 77))

    asked = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]
    assert (asked["epochs"], asked["seed"], asked["batch_size"]) == (1, 77, 2)


def test_a_finished_run_resumes_to_nothing_left_to_do(data, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")

    lines = ran(*training(data, folder, "--patches", data / "patches", "--fold", "2/2", "--resume"))

    assert "resuming after epoch 2" in lines
    assert not any(line.startswith("epoch") for line in lines)
    assert (folder / "last.pth").read_bytes() == (trained / "last.pth").read_bytes()


def test_resuming_an_empty_folder_starts_a_training(data, tmp_path):
    lines = ran(*training(data, tmp_path / "run", "--epochs", 1, "--resume"))

    assert lines[0] == f"{tmp_path / 'run'}: nothing to resume, this is the start"
    assert not any(line.startswith("resuming") for line in lines)
    assert (tmp_path / "run" / "best.pth").is_file()


def test_an_interrupt_keeps_the_epochs_that_were_done(data, tmp_path):
    folder = tmp_path / "run"
    code = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_module('model_export', run_name='__main__', alter_sys=True)"
    )
    arguments = training(data, folder, "--epochs", 100_000, "--threads", 1)
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("epoch 3/"):  # the second epoch is on disk
                    break
            process.send_signal(2)
            _, errors = process.communicate(timeout=START_SECONDS)
        finally:
            process.kill()

    assert process.returncode == 130
    assert errors == "interrupted: --resume goes on after the last whole epoch\n"
    assert read_checkpoint(folder / "last.pth").state["epochs_done"] >= 2
    assert read_checkpoint(folder / "best.pth").state["epoch"] >= 2
    assert hidden_files(folder) == []


def test_a_run_folder_that_lost_its_recipe_is_in_use_too(data, trained, tmp_path):
    shutil.copy(trained / "last.pth", tmp_path)

    line = refused(*training(data, tmp_path))

    assert line == f"{tmp_path}: holds a run already; pass --resume to go on, or choose another folder"
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_a_run_folder_in_use_is_refused_and_left_alone(data, trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}

    line = refused(*training(data, trained))

    assert line == f"{trained}: holds a run already; pass --resume to go on, or choose another folder"
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize(
    ("spoil", "named", "reason"),
    [
        (lambda root: shutil.rmtree(root / "pairs"), "pairs/img", "no such folder"),
        (lambda root: (root / "pairs/mask/02.png").unlink(), "pairs/mask/02.png", "missing"),
        (lambda root: cut(root / "pairs/img/01.png"), "pairs/img/01.png", "not a readable image"),
        (lambda root: cut(root / "pairs/mask/01.png"), "pairs/mask/01.png", "not a readable mask"),
        (
            lambda root: write_mask(root / "pairs/mask/03.png", np.zeros((64, 32), np.uint8)),
            "pairs/mask/03.png",
            "the mask is 32x64 px and its image 64x64 px",
        ),
        (
            lambda root: Image.fromarray(np.full((64, 64), 9, np.uint8)).save(root / "pairs/mask/00.png"),
            "pairs/mask/00.png",
            "index 9 is none of 0, 1, 2 and 3",
        ),
        (lambda root: shutil.rmtree(root / "patches"), "patches", "no such folder"),
        (lambda root: write_patches(root / "patches", "9.png"), "patches/9.png", "does not end in labels"),
        (lambda root: write_patches(root / "patches", "9-[1].png"), "patches/9-[1].png", "1 labels in the name"),
        (lambda root: (root / "tiny.toml").unlink(), "tiny.toml", "neither a recipe of the project (luad-labels,"),
        (lambda root: write_recipe(root / "tiny.toml", momentum=0.9), "tiny.toml", "momentum: no such field"),
        (lambda root: (root / "tiny.toml").write_text("epochs"), "tiny.toml", "not readable as TOML"),
        (lambda root: (root / "run").write_text("a file"), "run/fold", "Not a directory"),
    ],
)
def test_wrong_training_data_end_in_one_line_and_no_run_folder(data, tmp_path, spoil, named, reason):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    spoil(root)

    line = refused(*training(root, root / "run" / "fold", "--patches", root / "patches"))

    assert line.startswith(f"{root / named}: ")
    assert reason in line
    assert not (root / "run").is_dir()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((), "the recipe draws from lc25000: pass its folder with --lc25000"),
        (("--lc25000", "none"), f"{Path('none/lung_n')}: no such folder"),
    ],
)
def test_a_recipe_whose_source_is_not_there_is_refused_in_one_line(data, tmp_path, given, line):
    asked = ("train", "--pairs", data / "pairs", "--recipe", "luad-weak", "--run", tmp_path / "run")

    assert refused(*asked, *given) == line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fold", ["0/4", "third", "1/5"])
def test_a_fold_that_cannot_be_held_out_is_refused(data, tmp_path, fold):
    assert "fold" in refused(*training(data, tmp_path / "run", "--fold", fold))
    assert not (tmp_path / "run").exists()


# evaluate


def test_a_checkpoint_is_scored_on_what_its_training_held_out(data, trained, tmp_path):
    out = tmp_path / "out"

    note, scored, *lines = ran(
        "evaluate", "--pairs", data / "pairs", "--checkpoint", trained / "best.pth", "--out", out
    )

    assert note.startswith("note: best.pth is of the epoch with the least loss on these images")
    assert scored == "scored: 2 of 4 pairs, those held out"
    assert {path.name for path in out.iterdir()} == {"scores.json", "grid.png"}
    written = json.loads((out / "scores.json").read_text())
    confusion = np.array(written["confusion"])
    assert confusion.shape == (4, 4)
    assert confusion.sum() == 2 * 64 * 64
    assert written["scores"]["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert [line.split() for line in lines[:-1]] == [
        [name, f"{value:.4f}"] for name, value in written["scores"].items()
    ]
    kept = read_checkpoint(trained / "best.pth").state["epoch"]
    rows = read_checkpoint(trained / "last.pth").state["rows"]
    [logged] = [row for row in rows if (row["epoch"], row["phase"]) == (kept, "validate")]
    assert written["scores"]["tissue_miou"] == pytest.approx(logged["tissue_miou"], abs=1e-3)
    with Image.open(out / "grid.png") as grid:
        pixels = np.asarray(grid.convert("RGB"))
    rows_of_pictures = 2
    assert pixels.shape[0] > rows_of_pictures * 240
    assert pixels.shape[1] > 3 * 240
    colors = {tuple(int(channel) for channel in color) for color in np.unique(pixels.reshape(-1, 3), axis=0)}
    assert {tissue.color for tissue in WSSS4LUAD[:2]} <= colors


def test_what_was_held_out_is_known_by_name_wherever_it_stands(data, trained, tmp_path):
    root = shutil.copytree(data / "pairs", tmp_path / "pairs")
    for folder in ("img", "mask"):
        (root / folder / "00.png").unlink()
        shutil.copy(root / folder / "01.png", root / folder / "99.png")

    lines = ran("evaluate", "--pairs", root, "--checkpoint", trained / "last.pth", "--out", tmp_path / "out")

    assert not any(line.startswith("note: ") for line in lines)

    images = json.loads((tmp_path / "out" / "scores.json").read_text())["images"]
    assert [image["name"] for image in images] == ["02.png", "03.png"]


def test_pairs_that_lack_what_was_held_out_are_refused(data, trained, tmp_path):
    root = shutil.copytree(data / "pairs", tmp_path / "pairs")
    for folder in ("img", "mask"):
        (root / folder / "03.png").unlink()

    line = refused("evaluate", "--pairs", root, "--checkpoint", trained / "best.pth", "--out", tmp_path / "out")

    reason = "its training held out 03.png, which the pairs lack; pass those that it was trained on, or --all"
    assert line == f"{trained / 'best.pth'}: {reason}"


def test_a_checkpoint_that_notes_nothing_held_out_is_scored_on_all_and_says_so(data, trained, tmp_path):
    checkpoint = read_checkpoint(trained / "best.pth").state
    save_checkpoint(tmp_path / "bare.pth", {"model": checkpoint["model"]})
    given = ("--pairs", data / "pairs", "--checkpoint", tmp_path / "bare.pth", "--out", tmp_path / "out")

    assert ran("evaluate", *given)[0] == (
        "note: the training of bare.pth held nothing out, or does not note what: if these pairs are not of its"
        " training, the scores are honest"
    )
    assert len(json.loads((tmp_path / "out" / "scores.json").read_text())["images"]) == 4
    assert "it does not note what" in refused("robustness", *given)


def test_scoring_what_was_learned_from_says_so(data, trained, tmp_path):
    checkpoint = ("--checkpoint", trained / "best.pth", "--out", tmp_path / "out", "--all")

    lines = ran("evaluate", "--pairs", data / "pairs", *checkpoint)

    assert lines[0] == "note: 2 of these 4 images may be ones that it learned from"
    assert lines[1].startswith("note: best.pth is of the epoch with the least loss on these images")
    assert lines[2] == "scored: 4 of 4 pairs"
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert np.array(written["confusion"]).sum() == 4 * 64 * 64


def test_all_scores_pairs_of_others_too(trained, tmp_path):
    for seed in range(2):
        write_pair(tmp_path / "pairs", f"theirs-{seed}.png", *draw_patch(seed, Size(64, 64)))
    given = ("--pairs", tmp_path / "pairs", "--checkpoint", trained / "best.pth", "--out", tmp_path / "out")

    assert refused("evaluate", *given).endswith("which the pairs lack; pass those that it was trained on, or --all")
    lines = ran("evaluate", *given, "--all")

    assert lines[0] == "note: 2 of these 2 images may be ones that it learned from"
    assert "scored: 2 of 2 pairs" in lines


@pytest.mark.parametrize("full", ["scores.json", "grid.png"])
def test_a_full_disk_is_told_in_one_line(data, trained, tmp_path, monkeypatch, full):
    def sync(handle):
        if full in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", sync)
    given = ("--pairs", data / "pairs", "--checkpoint", trained / "best.pth", "--out", tmp_path / "out")
    assert refused("evaluate", *given) == f"{tmp_path / 'out' / full}: No space left on device"
    assert hidden_files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "no such checkpoint"),
        (lambda path: path.write_bytes(b"garbage"), "not a checkpoint of tensors"),
        (lambda path: torch.save({"model": Image.new("RGB", (1, 1))}, path), "not a checkpoint of tensors"),
        (lambda path: save_checkpoint(path, {"model": {"weight": torch.zeros(1)}}), "does not fit the network"),
        (lambda path: save_checkpoint(path, {"epoch": 3}), "holds no dictionary of weights"),
        (lambda path: save_checkpoint(path, {"held_out": "2/4"}), "held_out is not a list of names"),
    ],
)
def test_a_wrong_checkpoint_ends_in_one_line_and_no_scores(data, tmp_path, write, reason):
    path = tmp_path / "weights.pth"
    write(path)

    line = refused("evaluate", "--pairs", data / "pairs", "--checkpoint", path, "--out", tmp_path / "out")

    assert line.startswith(f"{path}: {reason}")
    assert not (tmp_path / "out").exists()


# cross-validate


def test_cross_validation_sums_up_its_folds(data, scores):
    written = json.loads((scores / "scores.json").read_text())

    assert set(written) == {
        *("pooled", "mean", "sd", "count", "folds", "recipe", "views"),
        *("classes", "confusion", "calibration", "calibrated", "labels", "images"),
    }
    assert [image["name"] for image in written["images"]] == ["00.png", "01.png", "02.png", "03.png"]
    assert written["recipe"] == json.loads((scores / "fold-1" / "recipe.json").read_text())["recipe"]
    assert len(written["folds"]) == 2
    for name, mean in written["mean"].items():
        found = [fold[name] for fold in written["folds"] if name in fold]
        assert mean == pytest.approx(np.mean(found))
        assert written["count"][name] == len(found)
        assert written["sd"][name] == (pytest.approx(np.std(found, ddof=1)) if len(found) > 1 else None)
    confusions = []
    for part, names in (("fold-1", ("00.png", "01.png")), ("fold-2", ("02.png", "03.png"))):
        assert {path.name for path in (scores / part).iterdir()} >= {"last.pth", "scores.json", "grid.png"}
        confusions.append(np.array(json.loads((scores / part / "scores.json").read_text())["confusion"]))
        truth = np.stack([np.asarray(Image.open(data / "pairs" / "mask" / name)) for name in names])
        assert confusions[-1].sum(axis=1).tolist() == np.bincount(truth.ravel(), minlength=4).tolist()
    pooled = sum(confusions)
    assert written["confusion"] == pooled.tolist()
    assert written["pooled"]["pixel_accuracy"] == pytest.approx(np.trace(pooled) / pooled.sum())
    asked = [json.loads((scores / part / "recipe.json").read_text())["fold"] for part in ("fold-1", "fold-2")]
    assert asked == ["1/2", "2/2"]


def test_cross_validation_goes_on_where_it_stopped(data, scores, tmp_path):
    folder = Path(shutil.copytree(scores, tmp_path / "run"))
    shutil.rmtree(folder / "fold-2")
    (folder / "scores.json").unlink()
    kept = (folder / "fold-1" / "last.pth").stat().st_mtime_ns

    lines = ran(*validation(data, folder))

    assert (folder / "fold-1" / "last.pth").stat().st_mtime_ns == kept
    assert sum(line.startswith("epoch 1/1  train") for line in lines) == 1
    assert json.loads((folder / "scores.json").read_text()) == json.loads((scores / "scores.json").read_text())


def test_cross_validation_with_more_folds_than_pairs_is_refused(data, tmp_path):
    line = refused(*validation(data, tmp_path / "run", "--folds", 5))

    reason = "no slide is cut, and fold 1/5 would be empty; choose fewer folds"
    assert line == f"4 pairs of 4 slides cannot be split into 5 folds: {reason}"
    assert not (tmp_path / "run").exists()


def test_the_recipes_table_of_slides_moves_a_folds_border(data, tmp_path):
    (tmp_path / "slides.csv").write_text("image,slide\n00.png,A\n01.png,A\n02.png,A\n")
    given = ("--recipe", write_recipe(tmp_path / "slides.toml", slides=f"'{tmp_path / 'slides.csv'}'", epochs=1))

    lines = ran(*training(data, tmp_path / "run", *given, "--fold", "1/2"))

    assert lines[:2] == ["pairs: 4, of 2 slides", "images to learn from: 1 of wsss4luad; held out: 3"]
    assert read_checkpoint(tmp_path / "run" / "best.pth").state["held_out"] == ["00.png", "01.png", "02.png"]


def test_a_table_of_slides_of_other_images_is_refused(data, tmp_path):
    table = tmp_path / "slides.csv"
    table.write_text("image,slide\n00,A\n01,A\n")  # without the suffix
    recipe = write_recipe(tmp_path / "slides.toml", slides=f"'{table}'")

    line = refused(*training(data, tmp_path / "run", "--recipe", recipe))

    assert line == f"{table}: names none of the pairs; its column image needs names such as 00.png"
    assert not (tmp_path / "run").exists()


# export and verify, of the project's own network


def test_the_service_takes_an_exported_training(bundle, scores):
    loaded = load_bundle(bundle)

    check_golden(loaded, open_session(loaded.model, "cpu"))

    assert (loaded.manifest.name, loaded.manifest.version, loaded.manifest.stride) == ("tiny", "1.0", 32)
    assert loaded.manifest.classes == WSSS4LUAD
    measured = read_measured(scores / "scores.json", WSSS4LUAD, 1)
    assert loaded.manifest.metrics == measured.metrics
    assert loaded.manifest.label_thresholds == measured.label_thresholds
    assert loaded.manifest.temperature == measured.temperature


def test_an_exported_training_is_verified_at_its_own_temperature(bundle, trained):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["temperature"] != 1, "a few steps of training were to leave the network too sure or too doubtful"

    assert ran("verify", "--checkpoint", trained / "best.pth", "--bundle", bundle)[-1] == "verified"


def test_scores_of_other_classes_are_not_put_into_a_bundle(foreign, scores):
    line = refused("export", *FOREIGN, *NAMED, "--out", "new", "--scores", scores / "scores.json")

    assert line.endswith("scores of the classes tumor, stroma, normal, background, not of gland, other")
    assert not Path("new").exists()


# a cross-validation's networks, scored again


def test_a_cross_validation_scores_again_as_it_did_and_in_more_views(data, scores, tmp_path):
    def again(name, *options):
        ran("evaluate", "--pairs", data / "pairs", "--run", scores, "--out", tmp_path / name, *options)
        return json.loads((tmp_path / name / "scores.json").read_text())

    once, before = again("once"), json.loads((scores / "scores.json").read_text())
    assert once["confusion"] == before["confusion"]
    assert once["pooled"] == pytest.approx(before["pooled"], abs=1e-6)
    assert once["recipe"] == before["recipe"]
    assert (tmp_path / "once" / "fold-2" / "grid.png").is_file()
    views = again("views", "--views", 4)
    assert views["pooled"].keys() >= {"tissue_miou", "miou_background_given", "accuracy_background_given"}
    assert views["pooled"] != once["pooled"]
    assert [image["name"] for image in views["images"]] == [image["name"] for image in once["images"]]


def test_a_cross_validation_is_never_scored_on_what_it_learned_from(data, scores):
    result = run("evaluate", "--pairs", data / "pairs", "--run", scores, "--out", "out", "--all")

    assert result.exit_code == 2
    assert "--all is of one checkpoint" in result.stderr


# robustness


def test_each_folds_network_is_scored_on_spoiled_images_of_its_own(data, scores, tmp_path):
    lines = ran("robustness", "--pairs", data / "pairs", "--run", scores, "--out", tmp_path / "out")

    assert len(lines) == len(CORRUPTIONS) + 1
    written = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert written["images"] == ["00.png", "01.png", "02.png", "03.png"]
    pooled = json.loads((scores / "scores.json").read_text())["pooled"]
    assert written["corruptions"]["none"] == {name: pooled[name] for name in written["corruptions"]["none"]}
    assert (tmp_path / "out" / "robustness.md").read_text().count("\n") == len(CORRUPTIONS) + 2


def test_robustness_of_weights_that_were_chosen_on_these_images_says_so(data, trained, tmp_path):
    given = ("--pairs", data / "pairs", "--checkpoint", trained / "best.pth", "--out", tmp_path / "out")

    assert ran("robustness", *given)[0].startswith("note: best.pth is of the epoch with the least loss on these images")


def test_a_checkpoint_that_held_nothing_out_has_no_robustness(data, tmp_path):
    ran(*training(data, tmp_path / "run", "--epochs", 1))
    checkpoint = ("--checkpoint", tmp_path / "run" / "best.pth", "--out", tmp_path / "out")

    line = refused("robustness", "--pairs", data / "pairs", *checkpoint)

    assert line.startswith(f"{tmp_path / 'run' / 'best.pth'}: its training held nothing out")


@pytest.mark.parametrize(
    ("command", "choice"), [("evaluate", "--run, --checkpoint or --bundle"), ("robustness", "--run or --checkpoint")]
)
@pytest.mark.parametrize("given", [(), ("--run", "run", "--checkpoint", "best.pth")])
def test_scoring_wants_a_run_or_a_checkpoint(data, command, choice, given):
    result = run(command, "--pairs", data / "pairs", "--out", "out", *given)

    assert result.exit_code == 2
    assert f"pass either {choice}\n" in result.stderr


# evaluate, of a bundle


def painted(root, class_map, image, name="00.png"):
    """Write a pair whose mask has the foreign network's colours."""
    for folder in ("img", "mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "img" / name)
    write_mask(root / "mask" / name, class_map, [each["color"] for each in CLASSES])


def test_a_bundle_is_scored_by_its_own_classes_as_the_service_would_answer(foreign, tmp_path):
    """On pairs painted as the bundle answers, one of which is larger than its window of 64 px, all is right."""
    session = open_session(load_bundle(foreign / "bundle").model, "cpu")
    image = draw_patch(3, Size(112, 64))[0]
    halves = session.run(np.stack([image[:, :64], image[:, 48:]])).class_maps
    painted(tmp_path, np.hstack([halves[0][:, :56], halves[1][:, 8:]]), image)
    small = draw_patch(4, Size(61, 33))[0]
    padded = np.pad(small, ((0, 7), (0, 3), (0, 0)), mode="reflect")
    painted(tmp_path, session.run(padded[None]).class_maps[0, :33, :61], small, "01.png")

    note, scored, *lines = ran("evaluate", "--pairs", tmp_path, "--bundle", "bundle", "--out", tmp_path / "out")

    assert note.startswith("note: a bundle does not say which images its network learned from: ")
    assert scored == "scored: 2 pairs, in fp32"
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"]["pixel_accuracy"] == written["scores"]["tissue_miou"] == 1.0
    assert written["classes"] == ["gland", "other"]
    assert np.array(written["confusion"]).sum() == 112 * 64 + 61 * 33
    assert written["calibration"]["ece"] == written["scores"]["ece"]
    assert sorted(written["calibration"]) == ["bins", "ece"]
    assert [line.split() for line in lines[:-1]] == [
        [name, f"{value:.4f}"] for name, value in written["scores"].items()
    ]
    assert (tmp_path / "out" / "grid.png").is_file()
    assert lines[-1] == f"written: {tmp_path / 'out'}"


def test_a_bundle_is_scored_without_a_place_to_write_to(foreign, tmp_path):
    painted(tmp_path, np.zeros((16, 16), np.uint8), np.full((16, 16, 3), 90, np.uint8))

    lines = ran("evaluate", "--pairs", tmp_path, "--bundle", "bundle")

    assert any(line.startswith("pixel_accuracy ") for line in lines)
    assert not any(line.startswith(("written: ", "note: of this bundle")) for line in lines)


def test_who_scores_a_bundle_in_fp32_is_told_that_a_cpu_runs_int8_of_it(foreign, tmp_path):
    painted(tmp_path, np.zeros((16, 16), np.uint8), np.full((16, 16, 3), 90, np.uint8))
    (foreign / "bundle" / "int8").mkdir()

    _, note, scored, *_ = ran("evaluate", "--pairs", tmp_path, "--bundle", "bundle")

    assert note.startswith("note: of this bundle the service runs int8 on a CPU")
    assert scored == "scored: 1 pairs, in fp32"


def test_the_labels_of_a_bundle_are_given_by_its_own_thresholds(foreign, tmp_path, monkeypatch):
    manifest = foreign / "bundle" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "label_thresholds": [0.2]}))
    gland = np.zeros((16, 16), np.uint8)
    painted(tmp_path, gland, np.full((16, 16, 3), 90, np.uint8))
    said = Answer(gland, np.full_like(gland, 255), np.array([0.3], np.float32))
    monkeypatch.setattr(importlib.import_module("model_export.evaluate"), "answers", lambda *_: [said])

    ran("evaluate", "--pairs", tmp_path, "--bundle", "bundle", "--out", tmp_path / "out")

    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (written["labels"]["thresholds"], written["labels"]["truth"]) == ([0.2], [[True]])
    assert written["labels"]["f1"] == [1.0]
    assert written["scores"]["label_accuracy"] == 1.0


def test_the_confidences_of_a_bundle_are_scored_window_by_window(foreign, tmp_path):
    """Against the confidences of its two windows, worked out by hand where all of the map is said to be gland."""
    session = open_session(load_bundle(foreign / "bundle").model, "cpu")
    image = draw_patch(3, Size(112, 64))[0]
    said = session.run(np.stack([image[:, :64], image[:, 48:]]))
    maps, confidences = (
        np.hstack([both[0][:, :56], both[1][:, 8:]])[::4, ::4] for both in (said.class_maps, said.confidences)
    )
    painted(tmp_path, np.zeros((64, 112), np.uint8), image)

    ran("evaluate", "--pairs", tmp_path, "--bundle", "bundle", "--out", tmp_path / "out")

    confidence, right = confidences.ravel() / 255, maps.ravel() == 0
    assert 0 < right.mean() < 1
    found = np.minimum((confidence.astype(np.float32) * 15).astype(int), 14)
    gaps = [abs((confidence - right)[found == one].sum()) for one in range(15)]
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"]["ece"] == pytest.approx(sum(gaps) / confidence.size)
    assert sum(one["count"] for one in written["calibration"]["bins"]) == confidence.size


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("--bundle", "bundle", "--checkpoint", "foreign.pth"), "--bundle goes without --run, --checkpoint, --all and"),
        (("--bundle", "bundle", "--all"), "--bundle goes without --run, --checkpoint, --all and --views"),
        (("--bundle", "bundle", "--views", 2), "--bundle goes without --run, --checkpoint, --all and --views"),
        (("--checkpoint", "foreign.pth", "--out", "out", "--precision", "int8"), "--precision is of a --bundle"),
        (("--checkpoint", "foreign.pth"), "Missing option '--out'."),
    ],
)
def test_what_does_not_go_with_a_bundle_is_a_usage_error(foreign, given, reason):
    result = run("evaluate", "--pairs", "none", *given)

    assert result.exit_code == 2
    assert f"Error: {reason}" in result.stderr


@pytest.mark.parametrize(
    ("spoil", "given", "reason"),
    [
        (lambda bundle: None, ("--precision", "int8"), f"{Path('bundle/int8')}: no such variant; quantize makes one"),
        (
            lambda bundle: (bundle / "model.onnx").write_bytes(b"another"),
            (),
            f"{Path('bundle/model.onnx')}: is not the file that its manifest names",
        ),
        (shutil.rmtree, (), f"{Path('bundle/manifest.json')}: no such file"),
        (
            lambda bundle: shutil.copytree(bundle, bundle / "fp16"),
            ("--precision", "fp16"),
            f"{Path('bundle/fp16')}: holds an fp32 model, not the fp16 variant; run quantize again",
        ),
    ],
)
def test_what_is_no_whole_bundle_is_not_scored(foreign, spoil, given, reason):
    spoil(foreign / "bundle")

    assert refused("evaluate", "--pairs", "none", "--bundle", "bundle", *given).startswith(reason)


# quantize, of the project's own network


def test_what_another_network_held_out_is_not_believed(bundle, data, scores, tmp_path):
    copied = shutil.copytree(bundle, tmp_path / "bundle")
    other = scores / "fold-1" / "last.pth"
    given = ("--precision", "int8", "--pairs", data / "pairs", "--checkpoint", other, "--max-lost", 100)

    assert refused("quantize", copied, *given).startswith(f"{other}: not what {copied} was exported from, or not by")
    assert not (copied / "int8").exists()


def test_the_pairs_that_a_checkpoint_held_out_are_judged_and_not_calibrated_on(
    bundle, data, trained, tmp_path, monkeypatch
):
    seen = []
    command = importlib.import_module("model_export.cli.quantize")
    monkeypatch.setattr(command, "write_variant", lambda *args: (seen.append(args[2]), write_variant(*args))[1])
    copied = shutil.copytree(bundle, tmp_path / "bundle")
    images = ("--pairs", data / "pairs", "--patches", data / "patches")

    ran("quantize", copied, "--precision", "int8", *images, "--checkpoint", trained / "best.pth", "--max-lost", 100)

    assert [sample.name for sample in seen[0].judged] == ["02.png", "03.png"]
    assert len(seen[0].calibration) == 2 + 2
    held_out = {sample.image.tobytes() for sample in seen[0].judged}
    assert not held_out.intersection(image.tobytes() for image in seen[0].calibration)
    assert load_bundle(copied / "int8").manifest.variant.measured_on == "2 pairs that the network never saw"


def test_a_checkpoint_is_checked_by_the_weights_that_its_bundle_was_asked_for(data, trained, tmp_path):
    given = ("--checkpoint", trained / "last.pth")
    named = ("--out", tmp_path / "bundle", "--name", "x", "--version", "1", "--window", 128, "--margin", 32)
    ran("export", *given, *named, "--weights", "network")

    lines = ran(
        *("quantize", tmp_path / "bundle", "--precision", "fp16", "--pairs", data / "pairs", *given),
        *("--max-lost", 100, "--max-labels-changed", 100),
    )

    assert lines[-1].startswith("written: ")


# export and verify, of anyone's network


def test_a_foreign_network_becomes_a_bundle_that_the_service_takes(abroad):
    loaded = load_bundle(abroad / "bundle")

    check_golden(loaded, open_session(loaded.model, "cpu"))

    assert (loaded.manifest.name, loaded.manifest.version) == ("foreign", "2.1")
    assert (loaded.manifest.stride, loaded.manifest.window_px, loaded.manifest.margin_px) == (8, 64, 8)
    assert [tissue.name for tissue in loaded.manifest.classes] == ["gland", "other"]
    assert loaded.manifest.stain == "H&E"
    assert (loaded.manifest.metrics, loaded.manifest.label_thresholds) == ({}, (0.5,))


def test_verification_passes_for_the_right_weights(foreign):
    lines = ran("verify", *FOREIGN, "--bundle", "bundle")

    assert len(lines) == len(list(plan_trials(8, 64))) + 1
    assert lines[-1] == "verified"


def test_verification_refuses_other_weights(foreign):
    weights = read_checkpoint(foreign / "foreign.pth").state["state_dict"]
    weights["last.bias"] += torch.tensor([1.0, -1.0])
    save_checkpoint(foreign / "foreign.pth", weights)

    line = refused("verify", *FOREIGN, "--bundle", "bundle")

    assert line.startswith("model.onnx: PyTorch and ONNX Runtime disagree: ")
    assert line.endswith(
        "; is the bundle of this --checkpoint, and of the same --weights, --factory, --mean and --std?"
    )


def test_verification_refuses_a_bundle_of_lower_precision(foreign):
    path = foreign / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    cost = {"mean_iou_lost": 0, "pixel_accuracy_lost": 0, "labels_changed": 0, "labels_judged": 1}
    variant = {"made_from": "0" * 64, "measured_on": "drawn ones", "images": 1, **cost}
    path.write_text(json.dumps({**manifest, "precision": "fp16", "variant": variant}))

    line = refused("verify", *FOREIGN, "--bundle", "bundle")

    assert line == "bundle: is fp16, which never answers as the weights do; pass the fp32 bundle it is of"


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
def test_verification_refuses_what_the_service_would_refuse(foreign, name):
    path = foreign / "bundle" / name
    path.write_bytes(path.read_bytes() + b"\0")
    line = refused("verify", *FOREIGN, "--bundle", "bundle")
    assert line == f"{Path('bundle') / name}: is not the file that its manifest names; export the bundle anew"
    path.unlink()
    assert refused("verify", *FOREIGN, "--bundle", "bundle") == f"{Path('bundle') / name}: no such file"


def test_verification_refuses_classes_in_another_order(foreign):
    path = foreign / "bundle" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "classes": manifest["classes"][::-1]}))
    line = refused("verify", *FOREIGN, "--bundle", "bundle")
    assert line == "bundle: its classes are other, gland, and not gland, other; state the network's by --classes"


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_is_replaced_when_asked_to(foreign):
    again = ("export", *FOREIGN, *NAMED, "--out", "bundle")
    assert refused(*again) == "bundle: exists already; choose another place or pass --overwrite"

    ran(*again, "--overwrite", "--description", "the second", "--released", "2026-11-29")
    second = load_bundle(foreign / "bundle").manifest
    assert (second.description, second.released) == ("the second", date(2026, 11, 29))
    assert hidden_files(foreign) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (("--checkpoint", "none.pth"), "none.pth: no such checkpoint"),
        (("--classes", "none.json"), "none.json: no such class list"),
        (("--classes", f"{MODULE}.py"), f"{MODULE}.py: not a class list in JSON"),
        (("--scores", "none.json"), "none.json: not the scores of a cross-validation"),
        (("--scores", "classes.json"), "classes.json: not the scores of a cross-validation"),
        (("--scores", f"{MODULE}.py"), f"{MODULE}.py: not the scores of a cross-validation"),
        (("--factory", f"{MODULE}:broken"), f"factory {MODULE}:broken: ValueError: the first line"),
        (("--factory", f"{MODULE}:Branching"), "the network cannot be exported to ONNX: "),
        (("--factory", f"{MODULE}:Choosy"), "the network does not run on a 16x16 px image: made for 224 px"),
        (("--factory", "nothing"), "factory 'nothing': write package.module:callable"),
        (("--name", "two words"), "manifest.name: "),
        (("--window", 100), "manifest: "),
        (("--um-per-px", 0), "manifest.um_per_px: "),
    ],
)
def test_wrong_input_to_an_export_ends_in_one_line_and_no_bundle(foreign, changed, reason):
    before = {name for name in content_of(foreign) if "__pycache__" not in name}

    line = refused("export", *FOREIGN, *NAMED, "--out", "new", *changed)

    assert line.startswith(reason)
    assert {name for name in content_of(foreign) if "__pycache__" not in name} == before
    assert hidden_files(foreign) == []


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--mean", "0.5,0.5"),
        ("--mean", "0.5"),
        ("--mean", "red,green,blue"),
        ("--mean", "127,127,127"),
        ("--mean", "nan,0,0"),
        ("--mean", "-0.5,0,0"),
        ("--std", "0.2,0.2,0"),
        ("--std", ""),
    ],
)
def test_wrong_channel_numbers_are_a_usage_error(tmp_path, option, text):
    named = ("--checkpoint", "weights.pth", "--name", "x", "--version", "1", "--out", tmp_path / "bundle")

    result = run("export", *named, option, text)

    assert result.exit_code == 2
    assert f"Invalid value for '{option}': three numbers for RGB in 0 to 1" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("given", [("--mean", "0.5,0.5,0.5"), ("--std", "0.2,0.2,0.2")])
def test_a_mean_without_its_deviation_is_a_usage_error(tmp_path, given):
    named = ("--checkpoint", "weights.pth", "--name", "x", "--version", "1", "--out", tmp_path / "bundle")

    result = run("export", *named, *given)

    assert result.exit_code == 2
    assert "pass both --mean and --std, or neither" in result.stderr


@pytest.mark.parametrize("given", [(), ("--mean", "0.5,0.5,0.5"), ("--std", "0.2,0.2,0.2")])
@pytest.mark.parametrize(
    "command", [("export", "--name", "x", "--version", "1", "--out", "new"), ("verify", "--bundle", "bundle")]
)
def test_a_network_of_ones_own_without_its_mean_and_deviation_is_a_usage_error(foreign, command, given):
    result = run(*command, "--checkpoint", "foreign.pth", "--factory", f"{MODULE}:Foreign", *given)

    assert result.exit_code == 2
    *_, line = result.stderr.splitlines()
    assert line == (
        "Error: --factory needs --mean and --std, as the network was trained with, for RGB in 0 to 1: ImageNet's are"
        " 0.485,0.456,0.406 and 0.229,0.224,0.225; 0,0,0 and 1,1,1 leave 0 to 1 as it is"
    )
    assert not Path("new").exists()


@pytest.mark.parametrize(
    "command", [("export", "--name", "x", "--version", "1", "--out", "new"), ("verify", "--bundle", "bundle")]
)
def test_a_network_of_ones_own_without_its_classes_is_a_usage_error(foreign, command):
    numbers = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
    result = run(*command, "--checkpoint", "foreign.pth", "--factory", f"{MODULE}:Foreign", *numbers)

    assert result.exit_code == 2
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: --factory needs --classes: a JSON list of the network's classes in the order of its")
    assert not Path("new").exists()


def test_images_of_ones_own_are_compared_on_and_the_first_is_the_golden_pairs(foreign):
    """One is cut to the window of 64 px, the other padded to the stride of 8 px."""
    large, small = draw_patch(5, Size(80, 72))[0], draw_patch(6, Size(30, 17))[0]
    for name, image in (("large.png", large), ("small.png", small)):
        Image.fromarray(image).save(name)

    lines = ran("export", *FOREIGN, *NAMED, "--out", "new", "--trial", "large.png", "--trial", "small.png")

    shapes = [line.split(":")[0] for line in lines if "pixels agree" in line]
    assert shapes[-3:] == ["1x64x64x3", "1x24x32x3", "1x64x64x3"]
    loaded = load_bundle(foreign / "new")
    np.testing.assert_array_equal(loaded.golden_image, large[None, :64, :64])
    check_golden(loaded, open_session(loaded.model, "cpu"))
    assert refused("export", *FOREIGN, *NAMED, "--out", "other", "--trial", "none.png").startswith("none.png: ")


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ([{}, {"name": "Background", "label": True}], "note: Background is a label: patches will be labelled with it"),
        ([{}, {"name": "stroma", "label": True}], 'note: no class has "label": false: if one of them stands for'),
        ([{"name": "glass", "label": False}, {"name": "stroma", "label": True}], None),
    ],
)
def test_a_class_that_is_hardly_a_label_is_noted(foreign, monkeypatch, changes, start):
    command = importlib.import_module("model_export.cli.export")
    monkeypatch.setattr(command, "export_bundle", lambda *_: [Comparison((1, 64, 64, 3), 1.0, 0, 0.0)])
    classes = [{**known, **change} for known, change in zip(CLASSES, changes, strict=True)]
    (foreign / "classes.json").write_text(json.dumps(classes))

    notes = [line for line in ran("export", *FOREIGN, *NAMED, "--out", "new") if line.startswith("note: ")]

    assert len(notes) == (start is not None)
    assert all(note.startswith(start) for note in notes)


def test_a_bundle_that_names_no_pixel_spacing_is_noted(foreign, monkeypatch):
    command = importlib.import_module("model_export.cli.export")
    monkeypatch.setattr(command, "export_bundle", lambda *_: [Comparison((1, 64, 64, 3), 1.0, 0, 0.0)])

    lines = ran("export", *FOREIGN, *NAMED[:-2], "--out", "new")

    assert [line for line in lines if line.startswith("note: ")] == [
        "note: without --um-per-px nothing is rescaled: patches are seen as they come, and of a slide the finest level;"
        " state the um/px of the training images if you know it"
    ]


def test_averaged_weights_are_noted_and_exported_when_asked_for(foreign):
    weights = read_checkpoint(foreign / "foreign.pth").state["state_dict"]
    averaged = {name: value + 0.5 for name, value in weights.items()}
    save_checkpoint(foreign / "foreign.pth", {"state_dict": weights, "state_dict_ema": averaged})
    other = "note: foreign.pth: the weights under state_dict are taken; it also holds state_dict_ema: `export "
    asked = ("--weights", "state_dict_ema")

    lines = ran("export", *FOREIGN, *NAMED, "--out", "averaged", *asked)

    assert not any(line.startswith("note: foreign.pth") for line in lines)
    assert ran("verify", *FOREIGN, "--bundle", "averaged", *asked)[-1] == "verified"
    assert ran("verify", *FOREIGN, "--bundle", "bundle")[0].startswith(other)
    refused("verify", *FOREIGN, "--bundle", "averaged")
    assert refused("export", *FOREIGN, *NAMED, "--out", "new", "--weights", "ema").endswith(
        "holds no weights under ema; keys that --weights can take: state_dict, state_dict_ema"
    )


def test_a_manifest_says_which_weights_its_bundle_is_of(foreign, bundle):
    foreign_ones = load_bundle(foreign / "bundle").manifest.producer
    own = load_bundle(bundle).manifest.producer

    assert foreign_ones["checkpoint_sha256"] == hashlib.sha256((foreign / "foreign.pth").read_bytes()).hexdigest()
    assert foreign_ones["factory"] == f"{MODULE}:Foreign"
    assert (foreign_ones["mean"], foreign_ones["std"]) == ("0.485,0.456,0.406", "0.229,0.224,0.225")
    assert "factory" not in own
    assert (own["mean"], own["std"]) == ("0.49803922,0.49803922,0.49803922", "0.50196078,0.50196078,0.50196078")


@pytest.mark.parametrize(
    ("compared", "start"),
    [
        ({"class_pixels": (3, 997)}, "note: the network calls 99.7% of all pixels that were compared other, so that"),
        ({"class_pixels": (10, 990)}, None),
        (
            {"labels_unit_range": True},
            "note: all that the network says of the labels lies in 0 to 1, as after a sigmoid",
        ),
        ({"seam": 0.034}, "note: of 3.4% of the pixels inside the margins of two overlapping windows, the network is"),
        ({"seam": 0.004}, None),
        (
            {"seam": 0.117, "own": True},
            "note: of 11.7% of the pixels inside the margins of two overlapping windows of an image of your own, the",
        ),
        ({"seam": 0.031, "own": True}, None),
        ({}, None),
    ],
)
def test_what_is_odd_in_a_comparison_is_noted(foreign, monkeypatch, compared, start):
    command = importlib.import_module("model_export.cli.export")
    found = Comparison((1, 64, 64, 3), 1.0, 0, 0.0, **compared)
    monkeypatch.setattr(command, "export_bundle", lambda *_: [found])

    lines = ran("export", *FOREIGN, *NAMED, "--out", "new")

    notes = [line for line in lines if line.startswith("note: ")]
    assert len(notes) == (start is not None)
    assert all(note.startswith(start) for note in notes)


@pytest.mark.parametrize(
    ("seams", "of_window", "told"),
    [
        ([None], 0.0, "image 1 is"),
        ([0.0, None], 0.0, "image 2 is"),
        ([None, 0.0, None], 0.0, "images 1, 3 are"),
        ([0.0], 0.0, None),
        ([None], None, None),
        ([], 0.0, None),
    ],
)
def test_images_of_ones_own_that_are_too_small_to_show_seams_are_noted(seams, of_window, told):
    own = [Comparison((1, 64, 64, 3), 1.0, 0, 0.0, own=True, seam=seam) for seam in seams]
    found = [Comparison((1, 96, 96, 3), 1.0, 0, 0.0), *own, Comparison((1, 512, 512, 3), 1.0, 0, 0.0, seam=of_window)]

    assert doubts_of_comparisons(found, WSSS4LUAD) == [
        f"note: trial {told} too small to look for seams: both sides must exceed 2 x --margin + --stride"
    ] * (told is not None)


def test_an_export_of_the_projects_network_without_scores_says_what_the_bundle_lacks(tmp_path, monkeypatch):
    command = importlib.import_module("model_export.cli.export")
    monkeypatch.setattr(command, "export_bundle", lambda *_: [Comparison((1, 64, 64, 3), 1.0, 0, 0.0)])
    save_checkpoint(tmp_path / "new.pth", {"model": network_for(WSSS4LUAD, pretrained=False).state_dict()})
    named = ("--name", "x", "--version", "1", "--out", "new", "--um-per-px", 1)

    lines = ran("export", "--checkpoint", tmp_path / "new.pth", *named)

    assert [line for line in lines if line.startswith("note: ")] == [
        "note: without --scores the threshold of each label is 0.5, the temperature is 1 and the bundle states no"
        " scores: pass the scores.json of a cross-validation of the same recipe"
    ]


def test_scores_beside_weights_they_may_not_be_of_are_noted(trained, scores, tmp_path, monkeypatch):
    command = importlib.import_module("model_export.cli.export")
    monkeypatch.setattr(command, "export_bundle", lambda *_: [Comparison((1, 64, 64, 3), 1.0, 0, 0.0)])
    state = read_checkpoint(scores / "fold-1" / "last.pth").state
    save_checkpoint(tmp_path / "last.pth", {**state, "epochs_done": 0})
    save_checkpoint(tmp_path / "bare.pth", {"averaged": state["averaged"]})
    table = scores / "scores.json"

    def notes(checkpoint, *more):
        given = (*more, "--checkpoint", checkpoint, "--scores", table, "--name", "x", "--version", "1", "--out", "new")
        given += ("--um-per-px", 1)
        return [line for line in ran("export", *given) if line.startswith("note: ")]

    [unfinished], [unknown] = notes(tmp_path / "last.pth"), notes(tmp_path / "bare.pth")

    assert unfinished.startswith(f"note: {table} is of finished trainings, these weights of epoch 0 of 1: ")
    assert unknown.startswith("note: these weights do not note by which recipe they were trained")
    assert notes(scores / "fold-1" / "last.pth") == []
    assert notes(scores / "fold-1" / "last.pth", "--weights", "averaged") == []
    assert notes(scores / "fold-1" / "last.pth", "--weights", "network") == [
        f"note: {table} is of averaged weights, these are under network: its scores, thresholds and temperature may"
        " not be theirs"
    ]


@pytest.mark.parametrize(
    "command", ["", "train", "evaluate", "cross-validate", "robustness", "report", "export", "verify"]
)
def test_every_command_has_help(command):
    assert ran(*command.split(), "--help")[0].startswith("Usage: ")


def test_a_process_ends_with_exit_code_2_and_one_line(data, tmp_path):
    process = as_process("train", "--pairs", tmp_path / "none", "--run", "run", cwd=tmp_path)

    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == f"error: {tmp_path / 'none' / 'img'}: no such folder\n"
    assert list(tmp_path.iterdir()) == []


# report, and folds side by side


def test_folds_side_by_side_score_as_one_after_the_other(data, scores, tmp_path):
    process = as_process(*validation(data, tmp_path / "run", "--jobs", 2, "--threads", 1))

    assert process.returncode == 0, process.stdout + process.stderr
    lines = process.stdout.splitlines()
    for fold in ("fold 1/2", "fold 2/2"):
        assert any(line.startswith(f"{fold}  epoch 1/1  validate  loss ") for line in lines)
    theirs, ours = (json.loads((folder / "scores.json").read_text()) for folder in (scores, tmp_path / "run"))
    assert ours == theirs


def test_a_fold_that_fails_ends_a_cross_validation_in_one_line(data, tmp_path):
    (tmp_path / "run" / "fold-1").mkdir(parents=True)
    (tmp_path / "run" / "fold-1" / "last.pth").write_bytes(b"garbage")

    process = as_process(*validation(data, tmp_path / "run", "--jobs", 2))

    assert process.returncode == 2
    assert any(line.startswith("fold 1/2  error: ") for line in process.stdout.splitlines())
    [line] = process.stderr.splitlines()
    assert line.startswith("error: fold 1/2 ended with status 2; ")


def test_wrong_data_end_a_cross_validation_before_its_first_fold(data, tmp_path):
    root = Path(shutil.copytree(data, tmp_path / "data"))
    (root / "pairs" / "mask" / "01.png").unlink()

    line = refused(*validation(root, tmp_path / "run", "--jobs", 2))

    assert line.startswith(f"{root / 'pairs' / 'mask' / '01.png'}: missing; ")
    assert not (tmp_path / "run").exists()


def test_a_report_is_one_page_in_the_run_folder(scores, tmp_path):
    folder = shutil.copytree(scores, tmp_path / "run", ignore=shutil.ignore_patterns("*.pth"))

    assert ran("report", folder) == [f"written: {folder / 'report.html'}"]

    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (folder / "curves.png").is_file()


def test_a_report_of_no_run_is_refused(tmp_path):
    line = refused("report", tmp_path)

    assert line == f"{tmp_path}: no run here: neither recipe.json nor fold-1/recipe.json"


def test_a_report_of_damaged_scores_is_refused(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "scores.json").write_text('{"images": [{}]}')

    assert refused("report", tmp_path) == f"{tmp_path / 'scores.json'}: images.0.name: Field required"
    assert not (tmp_path / "report.html").exists()
