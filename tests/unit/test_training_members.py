"""Several trainings whose weights are averaged into one network."""

import json
from contextlib import contextmanager

import pytest
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.checkpoint import load_checkpoint
from model_export.config import MAX_SEED
from model_export.errors import InvalidData
from model_export.factory import load_network
from model_export.held_out import chosen_by_score, notes_held_out
from model_export.report.page import write_report
from model_export.report.record import read_record
from model_export.training.folds import Fold
from model_export.training.loop import Trainer
from model_export.training.members import mean_of, members_of
from model_export.training.pipeline import train_recipe
from tests.model_export_support import Silent, drawn_samples, one_thread, recipe

SAMPLES = drawn_samples(4)
FOLD = Fold(1, 2)
TWO = recipe(members=2)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def train(run, asked=TWO, progress=None):
    held_out = SAMPLES[2:]
    return train_recipe(run, WSSS4LUAD, asked, {"wsss4luad": SAMPLES[:2]}, held_out, FOLD, progress or Silent())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its network. Read it, do not write to it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with one_thread():
        return run, train(run)


class InterruptedInTheSecondMember(Silent):
    def __init__(self):
        self.seen = 0

    @contextmanager
    def bar(self, steps, title):
        self.seen += title == "epoch 2"
        if self.seen == 2:
            raise KeyboardInterrupt
        yield steps


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_members_have_a_seed_each_and_begin_with_the_firsts_weights():
    asked = recipe(members=3, seed=MAX_SEED)

    assert [(one.members, one.seed, one.weights_seed) for one in members_of(asked)] == [
        (1, MAX_SEED, MAX_SEED),
        (1, 0, MAX_SEED),
        (1, 1, MAX_SEED),
    ]
    assert [one.weights_seed for one in members_of(recipe(members=2, seed=3, weights_seed=7))] == [7, 7]


def test_members_begin_alike_and_see_other_crops(tmp_path):
    trainers = [
        Trainer(tmp_path / str(one.seed), WSSS4LUAD, one, {"wsss4luad": SAMPLES}, [], Fold()) for one in members_of(TWO)
    ]
    first, second = trainers

    assert same(first.network.state_dict(), second.network.state_dict())
    assert not torch.equal(first.source.batch(0).images, second.source.batch(0).images)


def test_the_mean_is_of_weights_and_statistics_and_not_of_counters():
    states = [
        {"weight": torch.tensor([1.0, 3.0]), "batches": torch.tensor(4)},
        {"weight": torch.tensor([2.0, -3.0]), "batches": torch.tensor(9)},
    ]

    mean = mean_of(states)

    assert mean["weight"].tolist() == [1.5, 0.0]
    assert mean["weight"].dtype == torch.float32
    assert mean["batches"].item() == 4


def test_the_network_that_is_kept_is_the_mean_of_its_members(finished):
    run, network = finished
    members = [load_network(run / f"member-{number}" / "last.pth", WSSS4LUAD).state_dict() for number in (1, 2)]

    assert not same(*members)
    for name in ("best.pth", "last.pth"):
        kept = load_network(run / name, WSSS4LUAD).state_dict()
        assert same(kept, mean_of(members))
        assert same(kept, network.state_dict())
    assert not network.training


def test_statistics_of_the_mean_are_taken_of_itself(tmp_path):
    network = train(tmp_path / "run", recipe(members=2, statistics_batches=2))
    members = [load_network(tmp_path / f"run/member-{number}/last.pth", WSSS4LUAD).state_dict() for number in (1, 2)]

    mean, kept = mean_of(members), network.state_dict()
    differing = {name.rpartition(".")[2] for name, value in mean.items() if not torch.equal(value, kept[name])}
    assert {"running_mean", "running_var"} <= differing <= {"running_mean", "running_var", "num_batches_tracked"}
    assert not network.training


def test_what_is_kept_notes_what_a_single_training_would(finished):
    run, _ = finished
    asked = {"recipe": TWO.model_dump(mode="json"), "fold": "2/2"}

    assert json.loads((run / "recipe.json").read_text()) == asked
    for name in ("best.pth", "last.pth"):
        assert load_checkpoint(run / name)["asked"] == asked
        assert notes_held_out(run / name) == [sample.name for sample in SAMPLES[2:]]
        assert chosen_by_score(run / name) == []
    assert load_checkpoint(run / "last.pth")["epochs_done"] == TWO.epochs


def test_an_interrupted_run_goes_on_with_the_member_that_was_cut_off(finished, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", progress=InterruptedInTheSecondMember())
    before = (tmp_path / "run/member-1/last.pth").stat().st_mtime_ns
    assert not (tmp_path / "run/last.pth").exists()

    network = train(tmp_path / "run")

    assert same(network.state_dict(), finished[1].state_dict())
    assert (tmp_path / "run/member-1/last.pth").stat().st_mtime_ns == before


@pytest.mark.parametrize("members", [1, 3])
def test_a_run_is_not_gone_on_with_as_one_of_more_or_fewer_members(tmp_path, members):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(run, progress=InterruptedInTheSecondMember())

    with pytest.raises(InvalidData) as caught:
        train(run, recipe(members=members))

    assert str(caught.value) == f"{run}: started with members 2, not {members}; choose another run folder"
    assert not (run / "last.pth").exists()


def test_the_report_draws_a_line_for_each_member(finished, tmp_path):
    record = read_record(finished[0])

    assert [one.folder.name for one in record.trainings] == ["member-1", "member-2"]
    write_report(record, tmp_path / "report.html")
    assert "A line for each training." in (tmp_path / "report.html").read_text()
