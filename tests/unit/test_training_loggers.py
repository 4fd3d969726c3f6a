import pytest

from model_export.errors import Unavailable
from model_export.training import loggers

ASKED = {"recipe": {"seed": 3}, "fold": "1/4"}


def step(index, loss=0.5):
    return {"step": index, "epoch": index // 2 + 1, "learning_rate": 0.1, "loss": loss}


def phases(epoch):
    return [
        {"epoch": epoch, "phase": "train", "loss": 0.5},
        {"epoch": epoch, "phase": "validate", "loss": 0.25, "tissue_miou": 0.75},
    ]


def log(run, kind, epochs, rows=(), steps_done=0, more_steps=0):
    """Log whole epochs of two steps each, and then some steps of one that is interrupted."""
    run.mkdir(exist_ok=True)
    with loggers.opened(kind, run, ASKED, rows, steps_done) as told:
        for logger in told:
            for epoch in epochs:
                for index in (2 * epoch - 2, 2 * epoch - 1):
                    logger.step(step(index))
                logger.epoch(phases(epoch), 2 * epoch - 1)
            for index in range(more_steps):
                logger.step(step(2 * len(epochs) + index, loss=9.0))


def test_csv_files_tell_steps_and_epochs(tmp_path):
    log(tmp_path, "csv", [1])

    assert (tmp_path / "steps.csv").read_text() == "step,epoch,learning_rate,loss\n0,1,0.1,0.5\n1,1,0.1,0.5\n"
    assert (tmp_path / "metrics.csv").read_text() == (
        "epoch,phase,loss,tissue_miou\n1,train,0.5,\n1,validate,0.25,0.75\n"
    )


@pytest.mark.parametrize("spoil", ["", "3,2,0.1", "3,2,0.1,9.0\n4,3,0.1,9.0\n"])
def test_what_an_interrupt_left_is_dropped(tmp_path, spoil):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    log(whole, "csv", [1, 2])

    log(parted, "csv", [1], more_steps=1)
    with (parted / "steps.csv").open("a") as file:
        file.write(spoil)
    log(parted, "csv", [2], rows=phases(1), steps_done=2)

    for name in ("steps.csv", "metrics.csv"):
        assert (parted / name).read_bytes() == (whole / name).read_bytes()


def test_a_new_training_starts_its_files_anew(tmp_path):
    log(tmp_path, "csv", [], more_steps=1)
    log(tmp_path, "csv", [1])

    assert (tmp_path / "steps.csv").read_text().count("\n") == 3


def test_a_step_is_on_disk_at_once(tmp_path):
    with loggers.opened("csv", tmp_path, ASKED, [], 0) as [logger]:
        logger.step(step(0))
        assert (tmp_path / "steps.csv").read_text().endswith("0,1,0.1,0.5\n")


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)

    with (
        pytest.raises(Unavailable, match=f"^--logger {kind} needs the extra 'track': pip install "),
        loggers.opened(kind, tmp_path, ASKED, [], 0),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log(tmp_path, "tensorboard", [1], more_steps=1)
    log(tmp_path, "tensorboard", [2], rows=phases(1), steps_done=2)

    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("step/loss")] == [(at, 0.5) for at in range(4)]
    assert [(event.step, event.value) for event in shown.Scalars("validate/tissue_miou")] == [(1, 0.75), (3, 0.75)]
    assert "train/epoch" not in shown.Tags()["scalars"]


def test_wandb_works_offline_and_goes_on_with_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    log(tmp_path, "wandb", [1])
    first = (tmp_path / "wandb" / "id").read_text()
    log(tmp_path, "wandb", [2], rows=phases(1), steps_done=2)

    assert (tmp_path / "wandb" / "id").read_text() == first
    kept = list((tmp_path / "wandb").glob(f"offline-run-*/run-{first}.wandb"))
    assert kept
    assert all(path.stat().st_size for path in kept)
