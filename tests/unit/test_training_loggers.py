import json
from types import SimpleNamespace

import pytest

from model_export.errors import InvalidData, Unavailable
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


def of_steps(run):
    header, *rows = (run / "steps.csv").read_text().splitlines()
    assert header == "step,epoch,learning_rate,loss"
    return [row.split(",")[0] for row in rows]


@pytest.mark.parametrize("spoil", ["1,1,0.", "1", "", "1,1,0.1,0.52,2,0.1,0.5\n", "rest of a line\n", ",,,\n"])
def test_a_step_is_kept_by_its_number_and_not_by_its_line(tmp_path, spoil):
    """A full disk cut the file off, and it has fewer lines than steps are done."""
    log(tmp_path, "csv", [1, 2])
    (tmp_path / "steps.csv").write_text("step,epoch,learning_rate,loss\n0,1,0.1,0.5\n" + spoil)

    log(tmp_path, "csv", [3], rows=[*phases(1), *phases(2)], steps_done=4)

    assert of_steps(tmp_path) == ["0", "4", "5"]


def test_a_file_that_was_removed_holds_each_later_step_once_whatever_comes(tmp_path):
    log(tmp_path, "csv", [1])
    (tmp_path / "steps.csv").unlink()

    for _ in range(2):
        with loggers.opened("csv", tmp_path, ASKED, phases(1), 2) as [logger]:
            logger.step(step(2, loss=9.0))  # and an interrupt
    log(tmp_path, "csv", [2], rows=phases(1), steps_done=2)

    assert of_steps(tmp_path) == ["2", "3"]


def test_a_step_that_stands_there_twice_is_kept_once(tmp_path):
    log(tmp_path, "csv", [1])
    header, *rows = (tmp_path / "steps.csv").read_text().splitlines(keepends=True)
    (tmp_path / "steps.csv").write_text("".join([header, *rows[:1], *rows, *rows]))

    log(tmp_path, "csv", [2], rows=phases(1), steps_done=2)

    assert of_steps(tmp_path) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("cut", ["", "step,epo"])
def test_a_file_without_a_whole_header_gets_one(tmp_path, cut):
    log(tmp_path, "csv", [1])
    (tmp_path / "steps.csv").write_text(cut)

    log(tmp_path, "csv", [2], rows=phases(1), steps_done=2)

    assert of_steps(tmp_path) == ["2", "3"]


def test_a_table_of_something_else_is_refused_by_name(tmp_path):
    (tmp_path / "steps.csv").write_text("epoch,loss\n1,0.5\n")

    with pytest.raises(InvalidData) as caught:
        log(tmp_path, "csv", [2], rows=phases(1), steps_done=2)

    path = tmp_path / "steps.csv"
    assert str(caught.value) == f"{path}: damaged, it has no column step; remove it to go on"
    assert path.read_text() == "epoch,loss\n1,0.5\n"


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


@pytest.fixture
def sent(monkeypatch):
    """What is sent to a stand-in for wandb: the numbers, by the ids of its runs."""
    found = {}

    def init(**given):
        rows = found.setdefault(given["id"], [])
        return SimpleNamespace(log=rows.append, define_metric=lambda *_, **__: None, finish=lambda: None)

    stand_in = SimpleNamespace(init=init, Settings=lambda **_: None)
    monkeypatch.setattr(loggers, "import_module", {"wandb": stand_in}.__getitem__)
    monkeypatch.setattr(loggers, "find_spec", lambda name: name)
    return found


def sent_of(rows, group):
    return [row["trained_step"] for row in rows if f"{group}/loss" in row]


def test_wandb_is_sent_each_step_and_each_epoch_once_whatever_interrupts(tmp_path, sent):
    log(tmp_path, "wandb", [1], more_steps=1)
    log(tmp_path, "wandb", [], rows=phases(1), steps_done=2)
    log(tmp_path, "wandb", [2], rows=phases(1), steps_done=2)
    log(tmp_path, "wandb", [2], rows=phases(1), steps_done=2)  # the first time it was not kept as done
    log(tmp_path, "wandb", [3], rows=[*phases(1), *phases(2)], steps_done=4)

    [rows] = sent.values()
    assert sent_of(rows, "step") == [0, 1, 2, 3, 4, 5]
    assert sent_of(rows, "train") == sent_of(rows, "validate") == [1, 3, 5]
    assert json.loads((tmp_path / "wandb" / "sent.json").read_text()) == {"step": 5, "epoch": 3}


def test_what_was_sent_is_noted_at_once(tmp_path, sent):
    with loggers.opened("wandb", tmp_path, ASKED, [], 0) as [_, logger]:
        logger.step(step(0))
        assert json.loads((tmp_path / "wandb" / "sent.json").read_text()) == {"step": 0, "epoch": 0}


def test_a_training_that_begins_anew_is_another_run_of_wandb(tmp_path, sent):
    log(tmp_path, "wandb", [1])
    log(tmp_path, "wandb", [1])

    first, second = sent.values()
    assert first == second


def test_a_run_of_wandb_whose_id_is_gone_is_followed_by_another(tmp_path, sent):
    log(tmp_path, "wandb", [1])
    (tmp_path / "wandb" / "id").unlink()
    log(tmp_path, "wandb", [2], rows=phases(1), steps_done=2)

    assert [sent_of(rows, "step") for rows in sent.values()] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("text", ["", "[]", '{"step": 3}', '{"step": null, "epoch": 1}'])
def test_a_damaged_note_of_what_was_sent_is_refused_by_name(tmp_path, sent, text):
    log(tmp_path, "wandb", [1])
    path = tmp_path / "wandb" / "sent.json"
    path.write_text(text)

    with pytest.raises(InvalidData) as caught:
        log(tmp_path, "wandb", [2], rows=phases(1), steps_done=2)

    assert str(caught.value) == f"{path}: not a step and an epoch; remove it to send all that follows"


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
