import json
import shutil
from dataclasses import replace

import pytest
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidCheckpoint, InvalidData
from model_export.training.environment import read_environment
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware
from model_export.training.learner import Learner
from model_export.training.run_state import RunState
from tests.model_export_support import drawn_samples, one_thread, recipe

SAMPLES = drawn_samples(4)
FOLD = Fold(1, 2)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def run_state(run, learned=SAMPLES[:2], held_out=SAMPLES[2:], fold=FOLD, **changes):
    training = {"wsss4luad": learned}
    return RunState(run, WSSS4LUAD, recipe(**changes), training, held_out, fold, Hardware())


def learner(seed=3):
    return Learner(WSSS4LUAD, recipe(seed=seed), Hardware())


def rows_of(epoch, train, validate=None):
    losses = {"train": train} if validate is None else {"train": train, "validate": validate}
    return [{"epoch": epoch, "phase": phase, "loss": loss} for phase, loss in losses.items()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run whose two epochs are done. Read it, do not write to it."""
    run = tmp_path_factory.mktemp("finished")
    state, taught = run_state(run), learner()
    state.start()
    state.keep(taught, rows_of(1, 2.0, 1.0))
    state.keep(taught, rows_of(2, 1.5, 1.25))
    return run


def test_a_resumed_state_is_the_one_that_was_kept(finished):
    state, other = run_state(finished), learner(seed=4)

    assert state.resume(other)

    assert (state.epochs_done, state.best_loss) == (2, 1.0)
    assert state.rows == [*rows_of(1, 2.0, 1.0), *rows_of(2, 1.5, 1.25)]
    for name, value in learner().network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name])


def test_the_best_weights_are_those_of_the_least_validation_loss(finished):
    assert read_checkpoint(finished / "best.pth").state["epoch"] == 1


def test_where_nothing_is_held_out_the_last_weights_are_the_best(tmp_path):
    state, taught = run_state(tmp_path, held_out=[], fold=Fold()), learner()
    state.start()
    for epoch, loss in ((1, 1.0), (2, 2.0)):
        state.keep(taught, rows_of(epoch, loss))
        assert read_checkpoint(tmp_path / "best.pth").state["epoch"] == epoch


def test_there_is_nothing_to_resume_in_a_new_folder(tmp_path):
    assert not run_state(tmp_path / "new").resume(learner())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        (
            {"epochs": 3},
            "2 epochs, not 3: the learning rate falls over all epochs, so a run is not lengthened",
        ),
        ({"fold": Fold(0, 2)}, "fold 2/2, not 1/2"),
    ],
)
def test_resuming_with_another_recipe_or_fold_is_refused(finished, other, reason):
    with pytest.raises(InvalidCheckpoint) as caught:
        run_state(finished, **other).resume(learner())

    assert str(caught.value) == f"{finished / 'last.pth'}: started with {reason}; choose another run folder"


def other_pixel(sample):
    image = sample.image.copy()
    image[5, 7, 1] ^= 1
    return replace(sample, image=image)


@pytest.mark.parametrize(
    ("learned", "held"),
    [
        (lambda samples: samples[:1], lambda samples: samples),
        (lambda samples: [other_pixel(samples[0]), *samples[1:]], lambda samples: samples),
        (lambda samples: [replace(samples[0], name="renamed.png"), *samples[1:]], lambda samples: samples),
        (lambda samples: samples[::-1], lambda samples: samples),
        (lambda samples: samples, lambda samples: [samples[0], replace(samples[1], class_map=samples[0].class_map)]),
    ],
)
def test_resuming_with_other_images_is_refused(finished, learned, held):
    with pytest.raises(InvalidCheckpoint) as caught:
        run_state(finished, learned(SAMPLES[:2]), held(SAMPLES[2:])).resume(learner())

    reason = "started with other images, or others held out; choose another run folder"
    assert str(caught.value) == f"{finished / 'last.pth'}: {reason}"


@pytest.mark.parametrize("state", [{}, {"network": {}}, {"network": 7}])
def test_resuming_from_something_else_than_a_state_is_refused(tmp_path, state):
    fresh = run_state(tmp_path)
    save_checkpoint(tmp_path / "last.pth", {"asked": fresh.asked, "data": fresh.data, **state})

    with pytest.raises(InvalidCheckpoint) as caught:
        fresh.resume(learner())

    assert str(caught.value) == f"{tmp_path / 'last.pth'}: not the state of a training"


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (lambda recipe: recipe.pop("blur"), "without blur"),
        (lambda recipe: recipe.update(label_smoothing=0.0), "with label_smoothing"),
    ],
)
def test_a_run_of_a_program_that_knew_other_settings_is_not_gone_on_with(finished, tmp_path, change, other):
    state = read_checkpoint(finished / "last.pth").state
    change(state["asked"]["recipe"])
    save_checkpoint(tmp_path / "last.pth", state)

    with pytest.raises(InvalidCheckpoint) as caught:
        run_state(tmp_path).resume(learner())

    reason = f"started with a recipe {other}, by another version of the program; choose another run folder"
    assert str(caught.value) == f"{tmp_path / 'last.pth'}: {reason}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"epochs_done": 99}, ": 99 of 2 epochs are done"),
        ({"epochs_done": -1}, ": -1 of 2 epochs are done"),
        ({"epochs_done": "1"}, ": '1' of 2 epochs are done"),
        ({"epochs_done": 1}, ": its rows are not of 1 epochs"),
        ({"rows": []}, ": its rows are not of 2 epochs"),
        ({"rows": [{}]}, ""),
        ({"best_loss": None}, ": a loss is no number"),
        ({"optimizer": 7}, ""),
    ],
)
def test_resuming_from_an_impossible_state_is_refused(finished, tmp_path, changes, reason):
    save_checkpoint(tmp_path / "last.pth", {**read_checkpoint(finished / "last.pth").state, **changes})

    with pytest.raises(InvalidCheckpoint) as caught:
        run_state(tmp_path).resume(learner())

    assert str(caught.value) == f"{tmp_path / 'last.pth'}: not the state of a training{reason}"


def test_a_training_that_begins_anew_counts_its_time_anew(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    noted = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    (run / "environment.json").write_text(json.dumps({**noted, "seconds": 1000.0}), encoding="utf-8")
    state = run_state(run)

    state.start()
    state.keep(learner(), rows_of(1, 1.0, 1.0))

    assert read_environment(run)["seconds"] < 1000.0


@pytest.mark.parametrize("text", ["{", "3"])
def test_a_damaged_note_of_the_run_is_named(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(InvalidData, match=r"environment\.json: not JSON of an object: .*; remove it to go on"):
        read_environment(tmp_path)
