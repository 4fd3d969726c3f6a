import pytest

from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidCheckpoint, InvalidData
from model_export.held_out import checkpoints_of, held_out_of, recipe_noted
from tests.model_export_support import drawn_samples

ANEW = "move that folder away, and the same cross-validate command as before trains the fold"


def write_fold(run, index, epochs_done=2, count=10, fold=None, **recipe):
    (run / f"fold-{index}").mkdir()
    asked = {"fold": fold or f"{index}/{count}", "recipe": {"epochs": 2, **recipe}}
    save_checkpoint(run / f"fold-{index}" / "last.pth", {"asked": asked, "epochs_done": epochs_done})


def test_the_folds_of_a_run_come_in_order(tmp_path):
    for index in range(10, 0, -1):
        write_fold(tmp_path, index)

    assert [each.path.parent.name for each in checkpoints_of(tmp_path)] == [f"fold-{index}" for index in range(1, 11)]


def test_a_fold_that_is_missing_is_named(tmp_path):
    for index in (1, 3):
        write_fold(tmp_path, index, count=3)

    with pytest.raises(InvalidData) as caught:
        checkpoints_of(tmp_path)
    missing = tmp_path / "fold-2" / "last.pth"
    assert str(caught.value) == f"{missing}: missing; the same cross-validate command as before goes on with it"


@pytest.mark.parametrize("index", [1, 2])
def test_a_fold_that_is_not_finished_is_named(tmp_path, index):
    for each in (1, 2):
        write_fold(tmp_path, each, epochs_done=1 if each == index else 2, count=2)

    with pytest.raises(InvalidData, match=rf"fold-{index}/last\.pth: fold {index}/2 has 1 of 2 epochs; "):
        checkpoints_of(tmp_path)


def test_a_checkpoint_that_does_not_say_which_fold_it_is_of_is_refused(tmp_path):
    (tmp_path / "fold-1").mkdir()
    save_checkpoint(tmp_path / "fold-1" / "last.pth", {"asked": None})

    with pytest.raises(InvalidCheckpoint, match="does not note its fold and its epochs"):
        checkpoints_of(tmp_path)


def test_a_run_without_folds_is_refused(tmp_path):
    with pytest.raises(InvalidData, match=r"the run folder of a cross-validation is needed$"):
        checkpoints_of(tmp_path)


@pytest.mark.parametrize(
    ("index", "fold", "should"),
    [(1, "2/3", "1/3"), (1, "all", "1/N"), (2, "3/3", "2/3"), (2, "1/3", "2/3"), (3, "3/4", "3/3"), (3, "all", "3/3")],
)
def test_a_fold_in_anothers_place_is_named_with_what_it_is_and_should_be(tmp_path, index, fold, should):
    for each in (1, 2, 3):
        write_fold(tmp_path, each, count=3, fold=fold if each == index else None)

    with pytest.raises(InvalidData) as caught:
        checkpoints_of(tmp_path)

    path = tmp_path / f"fold-{index}" / "last.pth"
    assert str(caught.value) == f"{path}: of fold {fold}, where {should} should be; {ANEW}"


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ({"seed": 1, "blur": 0.5}, "seed 1, where 0 should be"),
        ({"seed": 0}, "blur None, where 0.5 should be"),
        ({"seed": 0, "blur": 0.5, "cutmix": 1.0}, "cutmix 1.0, where None should be"),
    ],
)
def test_a_fold_of_another_recipe_is_named_with_what_differs(tmp_path, recipe, reason):
    write_fold(tmp_path, 1, count=2, seed=0, blur=0.5)
    write_fold(tmp_path, 2, count=2, **recipe)

    with pytest.raises(InvalidData) as caught:
        checkpoints_of(tmp_path)

    path = tmp_path / "fold-2" / "last.pth"
    assert str(caught.value) == f"{path}: of a recipe with {reason} as in fold-1; {ANEW}"


def test_an_option_is_advised_only_where_the_command_has_it(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"held_out": ["99.png"]})
    reason = f"{path}: its training held out 99.png, which the pairs lack; pass those that it was trained on"

    for given, end in (({}, ""), ({"or_else": ", or --all"}, ", or --all")):
        with pytest.raises(InvalidData) as caught:
            held_out_of(read_checkpoint(path), drawn_samples(1), **given)
        assert str(caught.value) == reason + end


@pytest.mark.parametrize(
    ("state", "recipe"),
    [
        ({"asked": {"recipe": {"seed": 3}}}, {"seed": 3}),
        ({"asked": {"recipe": 3}}, {}),
        ({"asked": None}, {}),
        ({}, {}),
    ],
)
def test_the_recipe_is_what_a_checkpoint_notes(tmp_path, state, recipe):
    save_checkpoint(tmp_path / "last.pth", state)

    assert recipe_noted(read_checkpoint(tmp_path / "last.pth")) == recipe
