"""What `evaluate` and `robustness` refuse, and when: before they work, or at the latest before they predict."""

import errno
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from model_export import atomic, robustness
from model_export.atomic import require_writable
from model_export.checkpoint import save_checkpoint
from model_export.cli import main
from model_export.network import TissueNetwork
from model_export.training import scores
from tests.model_export_support import hidden_files, one_thread, write_pairs

COMMANDS = pytest.mark.parametrize("command", ["evaluate", "robustness"])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


def refused(*arguments):
    """Run a command that has to be refused; return its one line."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"), 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights of an untrained network that held out both pairs."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    save_checkpoint(path, {"model": TissueNetwork(pretrained=False).state_dict(), "held_out": ["00.png", "01.png"]})
    return path


@COMMANDS
@pytest.mark.parametrize("owned", ["recipe.json", "last.pth", "fold-1/recipe.json", "fold-2/last.pth"])
@pytest.mark.parametrize("given", [("--run", "run"), ("--checkpoint", "last.pth")])
def test_scores_do_not_go_over_those_of_a_run(tmp_path, command, owned, given):
    (tmp_path / owned).parent.mkdir(exist_ok=True)
    (tmp_path / owned).write_text("a run's")
    (tmp_path / "scores.json").write_text("its own scores")

    line = refused(command, "--pairs", tmp_path / "none", *given, "--out", tmp_path)  # none of the rest is read

    reason = f"the folder of a run, which keeps its own scores there; pass --out {tmp_path / 'scores'}"
    assert line == f"{tmp_path}: {reason}"
    assert (tmp_path / "scores.json").read_text() == "its own scores"


@COMMANDS
def test_scores_go_over_earlier_ones_of_the_same_command(tmp_path, command):
    (tmp_path / "fold-1").mkdir()
    for name in ("scores.json", "grid.png", "fold-1/scores.json", "fold-1/grid.png", "robustness.json"):
        (tmp_path / name).write_text("earlier")

    line = refused(command, "--pairs", tmp_path, "--run", tmp_path / "none", "--out", tmp_path)

    assert line.startswith(f"{tmp_path / 'none'}: holds no fold-1/last.pth; ")


@COMMANDS
def test_a_place_that_cannot_be_written_to_is_told_before_the_first_prediction(
    pairs, checkpoint, tmp_path, monkeypatch, command
):
    for module in (scores, robustness):
        monkeypatch.setattr(module, "predict", lambda *_: pytest.fail("it predicted"))
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"

    line = refused(command, "--pairs", pairs, "--checkpoint", checkpoint, "--out", out)

    assert line == f"{out}: Not a directory"


def test_results_of_other_images_are_refused_before_the_first_prediction(pairs, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(robustness, "predict", lambda *_: pytest.fail("it predicted"))
    before = tmp_path / "before.json"
    before.write_text('{"images": ["00.png"], "corruptions": {"none": {"tissue_miou": 0.5}}}')
    given = ("--pairs", pairs, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--before", before)

    assert refused("robustness", *given) == f"{before}: of other images than these: it lacks 01.png"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [("robustness",), ("evaluate", "--all")])
def test_all_is_advised_where_it_is_an_option_that_was_not_given(pairs, checkpoint, tmp_path, command):
    fewer = Path(shutil.copytree(pairs, tmp_path / "pairs"))
    for folder in ("img", "mask"):
        (fewer / folder / "01.png").unlink()
    given = ("--pairs", fewer, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    reason = "its training held out 01.png, which the pairs lack; pass those that it was trained on"

    assert refused(command[0], *given) == f"{checkpoint}: {reason}" + (", or --all" if command[1:] else "")


@COMMANDS
def test_a_checkpoint_is_read_once_for_all_that_is_asked_of_it(pairs, checkpoint, tmp_path, monkeypatch, command):
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: (read.append(path), load(path, **how))[1])
    monkeypatch.setattr(robustness, "predict", lambda *_: pytest.fail("far enough"))
    (tmp_path / "file").write_text("in the way")
    given = ("--pairs", pairs, "--checkpoint", checkpoint, "--out", tmp_path / "file" / "out")

    assert refused(command, *given).endswith("Not a directory")

    assert read == [checkpoint]


def test_a_folder_to_write_to_is_made_and_left_empty(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    require_writable(tmp_path / "new" / "folder")

    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_a_folder_that_takes_no_file_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic.Path, "touch", refuse)  # root may write anywhere

    with pytest.raises(PermissionError) as caught:
        require_writable(tmp_path)

    assert caught.value.filename == str(tmp_path)
    assert hidden_files(tmp_path) == []
