import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.pathology.classes import WSSS4LUAD
from model_export.checkpoint import read_checkpoint
from model_export.config import Recipe, load_recipe
from model_export.errors import InvalidCheckpoint, InvalidData, InvalidRecipe
from model_export.report.page import write_report
from model_export.report.record import read_record
from model_export.training.dataset import IGNORE, Sample
from model_export.training.folds import Fold, untaught
from model_export.training.hardware import Hardware
from model_export.training.pipeline import seen_by, train_recipe
from tests.model_export_support import (
    TINY,
    Silent,
    drawn_samples,
    label_only_sample,
    masked_sample,
    one_thread,
    write_recipe,
)

STROMA, NORMAL = 1, 2
PAIRS = drawn_samples(4, side_px=96)
FOLD = Fold(0, 2)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def fields(count=2):
    """Samples whose upper half is tumor and whose lower half is for a teacher to say."""
    samples = []
    for sample in drawn_samples(count):
        class_map = np.full(sample.class_map.shape, IGNORE, np.uint8)
        class_map[:32] = 0
        name = f"field-{sample.name}"
        samples.append(Sample(name, sample.image, class_map, (True, None, None), (STROMA, NORMAL)))
    return samples


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny recipe with a teacher: 64 px crops, two steps each."""
    first = write_recipe(tmp_path_factory.mktemp("recipes") / "first.toml", crop_px=64, epochs=1)
    shares = {"wsss4luad": 1.0, "stas": 1.0}
    teacher = {"recipe": str(first), "seeds": (0, 1), "confidence": 0.3}
    return Recipe.model_validate({**TINY, "crop_px": 64, "shares": shares, "teacher": teacher})


@pytest.fixture(scope="module")
def finished(taught, tmp_path_factory):
    """A finished run and what was told of it. Read it, do not write to it."""
    told, run = Told(), tmp_path_factory.mktemp("finished") / "run"
    with one_thread():
        train(run, taught, told)
    return run, told.lines


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of that run, for a test to work in."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def train(run, recipe, progress=None, **sources):
    given = {"wsss4luad": PAIRS[2:], "stas": fields(), **sources}
    return train_recipe(run, WSSS4LUAD, recipe, given, PAIRS[:2], FOLD, progress or Silent())


class Told(Silent):
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


class InterruptedInTheLastEpoch(Silent):
    """An interrupt from the keyboard when the taught network is half done."""

    @contextmanager
    def bar(self, steps, title):
        if title == "epoch 2":
            raise KeyboardInterrupt
        yield steps


def save(path, values):
    Image.fromarray(values.astype(np.uint8)).save(path)


def test_teachers_come_first_and_leave_their_runs_and_labels(finished):
    run, lines = finished

    phases = [line for line in lines if "validate" not in line]
    assert [line.split("  ")[0] for line in phases] == [
        "teacher with seed 0",
        f"a row for each step: {run / 'teacher' / 'seed-0' / 'steps.csv'}",
        "epoch 1/1",
        "teacher with seed 1",
        f"a row for each step: {run / 'teacher' / 'seed-1' / 'steps.csv'}",
        "epoch 1/1",
        f"what the teachers are sure of: {run / 'teacher' / 'labels'}",
        f"a row for each step: {run / 'steps.csv'}",
        "epoch 1/2",
        "epoch 2/2",
    ]
    for seed in (0, 1):
        asked = json.loads((run / f"teacher/seed-{seed}/recipe.json").read_text())
        assert (asked["recipe"]["seed"], asked["recipe"]["epochs"], asked["fold"]) == (seed, 1, "1/2")
    assert {path.name for path in (run / "teacher/labels/stas").iterdir()} == {
        "field-00.png",
        "field-01.png",
    }
    assert not (run / "teacher/labels/wsss4luad").exists()  # of the pairs nothing is unknown


def test_labels_are_palette_pngs_that_keep_what_was_known(finished):
    run, _ = finished

    for field in fields():
        with Image.open(run / "teacher/labels/stas" / field.name) as picture:
            palette, class_map = np.array(picture.getpalette()).reshape(-1, 3), np.array(picture)
            assert picture.mode == "P"
        np.testing.assert_array_equal(class_map[:32], field.class_map[:32])
        assert set(class_map[32:].flat) <= {STROMA, NORMAL, IGNORE}
        for index, tissue in enumerate(WSSS4LUAD):
            assert tuple(palette[index]) == tissue.color
        assert tuple(palette[IGNORE]) == (128, 128, 128)


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, taught, finished):
    whole, parted = finished[0], tmp_path / "parted"

    with pytest.raises(KeyboardInterrupt):
        train(parted, taught, InterruptedInTheLastEpoch())
    told = Told()
    train(parted, taught, told)

    assert [line.split("  ")[0] for line in told.lines if "validate" not in line][-1] == "epoch 2/2"
    assert not any(line.startswith("epoch 1/") for line in told.lines)  # neither the teachers' nor its own
    ours, theirs = (read_checkpoint(run / "last.pth").state["network"] for run in (whole, parted))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_labels_on_disk_are_what_is_learned_from(copied, taught):
    """They can be corrected by hand before the taught network starts."""
    kept = read_checkpoint(copied / "last.pth").state["network"]
    corrected = copied / "teacher/labels/stas/field-00.png"
    with Image.open(corrected) as picture:
        class_map, palette = np.array(picture), picture.getpalette()
    class_map[32:] = NORMAL
    picture = Image.fromarray(class_map).convert("P")
    picture.putpalette(palette)
    picture.save(corrected)
    (copied / "last.pth").unlink()

    train(copied, taught)

    again = read_checkpoint(copied / "last.pth").state["network"]
    assert not torch.equal(kept["segment.1.weight"], again["segment.1.weight"])


def test_labels_of_another_teacher_are_not_taken_for_this_ones(copied, taught):
    for name in ("last.pth", "recipe.json"):
        (copied / name).unlink()
    other = taught.model_copy(update={"teacher": taught.teacher.model_copy(update={"confidence": 0.9})})

    with pytest.raises(InvalidData) as caught:
        train(copied, other)

    labels = copied / "teacher/labels"
    assert str(caught.value) == f"{labels}: labelled by another teacher; remove the folder or choose another run folder"


@pytest.mark.parametrize("note", ['{"recipe": ', "", "[" * 100_000])
def test_a_damaged_note_of_what_labels_follow_from_is_refused_by_name(copied, taught, note):
    path = copied / "teacher/labels/teacher.json"
    path.write_text(note)

    with pytest.raises(InvalidData) as caught:
        train(copied, taught)

    assert str(caught.value).startswith(f"{path}: not JSON: ")
    assert str(caught.value).endswith(f"; remove {path.parent} to label anew")
    assert len(str(caught.value).splitlines()) == 1


def test_labels_of_a_teacher_that_was_trained_anew_are_not_taken_for_this_ones(copied, taught):
    for name in (".", "teacher/seed-0", "teacher/seed-1"):
        (copied / name / "last.pth").unlink()
    more = [*PAIRS[2:], label_only_sample((True, True, False))]  # the same recipe, and other weights

    with pytest.raises(InvalidData, match="labelled by another teacher"):
        train(copied, taught, wsss4luad=more)


class InterruptedAtOnce(Silent):
    def bar(self, steps, title):
        raise KeyboardInterrupt


def test_a_run_folder_says_what_was_asked_before_its_first_teacher_learns(tmp_path, taught):
    run = tmp_path / "run"

    with pytest.raises(KeyboardInterrupt):
        train(run, taught, InterruptedAtOnce())

    asked = {"recipe": taught.model_dump(mode="json"), "fold": "1/2"}
    assert json.loads((run / "recipe.json").read_text()) == asked
    write_report(read_record(run), run / "report.html")
    assert "Its teachers are being trained" in (run / "report.html").read_text()


def test_a_run_that_is_not_gone_on_with_keeps_what_it_says(copied, taught):
    before = (copied / "recipe.json").read_text()

    with pytest.raises(InvalidCheckpoint):
        train(copied, taught.model_copy(update={"learning_rate": 0.5}))

    assert (copied / "recipe.json").read_text() == before


def test_a_run_whose_recipe_changed_while_its_teachers_learned_is_refused(copied, taught):
    (copied / "last.pth").unlink()

    with pytest.raises(InvalidData) as caught:
        train(copied, taught.model_copy(update={"seed": 9}))

    assert str(caught.value) == f"{copied}: started with seed {taught.seed}, not 9; choose another run folder"


def test_a_run_with_another_teachers_recipe_is_not_gone_on_with(copied, taught, tmp_path):
    other = taught.teacher.model_copy(update={"recipe": str(write_recipe(tmp_path / "second.toml", crop_px=64))})

    with pytest.raises(InvalidCheckpoint, match="seed-0"):
        train(copied, taught.model_copy(update={"teacher": other}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "not a readable mask: "),
        (lambda path: save(path, np.zeros((5, 5))), "not of field-01.png; remove the folder to label anew"),
        (lambda path: save(path, np.full((64, 64), 7)), "index 7 is none of 0, 1, 2, 3 and 255"),
        (lambda path: Image.open(path).convert("RGB").quantize(4).save(path), "index 0 is painted "),
        (lambda path: save(path, np.zeros((64, 64, 3))), "not a mask of indices but of mode RGB"),
    ],
)
def test_spoiled_labels_are_refused_by_name(copied, taught, spoil, reason):
    path = copied / "teacher/labels/stas/field-01.png"
    spoil(path)

    with pytest.raises(InvalidData) as caught:
        train(copied, taught)

    assert str(caught.value).startswith(f"{path}: {reason}")


def test_two_images_of_one_name_are_refused_before_one_gets_the_others_labels(copied, taught):
    with pytest.raises(InvalidData, match="two images of one name"):
        train(copied, taught, stas=[*fields(1), *fields(1)])


def test_samples_that_stay_wholly_unknown_are_lived_with(tmp_path, taught):
    nothing = np.full((64, 64), IGNORE, np.uint8)
    unknown = Sample("unknown.png", drawn_samples(1)[0].image, nothing, (None, None, None), (STROMA, NORMAL))
    never_sure = taught.model_copy(
        update={
            "shares": {"stas": 1.0},
            "teacher": taught.teacher.model_copy(update={"seeds": (0,), "confidence": 1.0}),
        }
    )

    network = train(tmp_path / "run", never_sure, stas=[unknown])

    with Image.open(tmp_path / "run/teacher/labels/stas/unknown.png") as picture:
        assert set(np.unique(np.array(picture))) == {IGNORE}
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


@pytest.mark.parametrize(("student", "teacher"), [(6, 16), (16, 6)])
def test_processes_that_cannot_share_the_batches_of_all_recipes_are_refused_before_the_first_learns(
    tmp_path, taught, student, teacher
):
    first = str(write_recipe(tmp_path / "first.toml", crop_px=64, batch_size=teacher))
    recipe = taught.model_copy(
        update={"batch_size": student, "teacher": taught.teacher.model_copy(update={"recipe": first})}
    )
    sources = {"wsss4luad": PAIRS[2:], "stas": fields()}

    with pytest.raises(InvalidRecipe) as caught:
        train_recipe(tmp_path / "run", WSSS4LUAD, recipe, sources, [], FOLD, Silent(), Hardware(processes=4))

    of = "" if student == 6 else f"{first}: "
    reason = "batch_size: 6 crops cannot be shared by 4 processes: each needs the same number, two or more"
    assert str(caught.value) == f"{of}{reason}"
    assert not (tmp_path / "run").exists()


def test_two_images_of_one_name_are_refused_before_a_teacher_learns(tmp_path, taught):
    with pytest.raises(InvalidData, match="two images of one name"):
        train(tmp_path / "run", taught, stas=[*fields(1), *fields(1)])
    assert not (tmp_path / "run").exists()


def test_a_recipe_for_labels_alone_sees_no_annotated_pixel():
    recipe = Recipe.model_validate({**TINY, "label_patch_px": 48, "shares": {"wsss4luad": 1.0}})
    patch, field = label_only_sample((True, True, False)), fields(1)[0]

    seen = seen_by(recipe, {"wsss4luad": [*PAIRS, patch], "stas": [field]}, WSSS4LUAD)

    assert list(seen) == ["wsss4luad"]
    assert len(seen["wsss4luad"]) == 4 * len(PAIRS) + 1
    for sample in seen["wsss4luad"]:
        assert not set(np.unique(sample.class_map)) - {*sample.guesses, 3, IGNORE}
        if sum(sample.labels) > 1:
            assert set(np.unique(sample.class_map)) <= {3, IGNORE}
    assert seen_by(Recipe(), {"wsss4luad": PAIRS}, WSSS4LUAD) == {"wsss4luad": PAIRS}


def test_what_a_recipe_does_not_draw_from_teaches_nothing_and_labels_teach_where_they_are_spread():
    held_out = [masked_sample(np.full((8, 8), NORMAL, np.uint8))]
    tumor, patch = masked_sample(np.zeros((48, 48), np.uint8)), label_only_sample((True, False, True))
    sources = {"wsss4luad": [tumor, patch], "stas": held_out}

    def notes(**changes):
        seen = seen_by(Recipe.model_validate({**TINY, **changes}), sources, WSSS4LUAD)
        return len(untaught(seen, held_out, WSSS4LUAD, FOLD))

    assert notes() == 1
    assert notes(label_patch_px=48) == 0
    assert notes(shares={"wsss4luad": 1.0, "stas": 1.0}) == 0


def test_the_weak_path_runs_from_labels_to_a_network(tmp_path):
    shipped = load_recipe("luad-weak")
    small = {name: TINY[name] for name in ("epochs", "steps_per_epoch", "batch_size", "average_decay")}
    weights = load_recipe(shipped.teacher.recipe).model_dump(include={"bag_weight", "label_patch_px"})
    first = write_recipe(tmp_path / "first.toml", crop_px=64, **{**weights, "label_patch_px": 48})
    recipe = shipped.model_copy(
        update={
            **small,
            "crop_px": 64,
            "label_patch_px": 48,
            "shares": {"wsss4luad": 1.0},
            "teacher": shipped.teacher.model_copy(update={"recipe": str(first), "confidence": 0.0}),
        }
    )

    train(tmp_path / "run", recipe)

    labelled = sorted((tmp_path / "run/teacher/labels/wsss4luad").iterdir())
    assert len(labelled) == len(
        [s for s in seen_by(recipe, {"wsss4luad": PAIRS[2:]}, WSSS4LUAD)["wsss4luad"] if s.guesses]
    )
    assert (tmp_path / "run" / "best.pth").is_file()
    assert weights["bag_weight"] > 0
