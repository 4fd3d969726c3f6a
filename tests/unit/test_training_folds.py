import numpy as np
import pytest

from app.pathology.classes import WSSS4LUAD
from model_export.errors import InvalidRecipe
from model_export.training.folds import Fold, split, untaught
from tests.model_export_support import label_only_sample, masked_sample

PAIRS = [masked_sample(np.zeros((1, 1), np.uint8), name=f"{index}.png") for index in range(7)]


def names(samples):
    return [sample.name.removesuffix(".png") for sample in samples]


@pytest.mark.parametrize(
    ("text", "fold"), [("all", Fold()), ("1/2", Fold(0, 2)), ("4/4", Fold(3, 4)), ("10/12", Fold(9, 12))]
)
def test_a_fold_is_read_and_written_as_a_person_counts(text, fold):
    assert Fold.parse(text) == fold
    assert str(fold) == text


@pytest.mark.parametrize(
    "text", ["", "none", "1", "/", "1/", "/4", "0/4", "5/4", "1/1", "-1/4", "1/4/4", "1.0/4", "a/b"]
)
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(InvalidRecipe) as caught:
        Fold.parse(text)

    assert str(caught.value) == f"fold {text!r}: write all, or K/N with K from 1 to N, such as 1/4"


def test_all_holds_nothing_out():
    assert split(PAIRS, Fold()) == (PAIRS, [])


def test_a_fold_is_a_run_of_neighbours():
    assert [names(split(PAIRS, Fold(index, 3))[1]) for index in range(3)] == [["0", "1"], ["2", "3"], ["4", "5", "6"]]
    assert names(split(PAIRS, Fold(1, 3))[0]) == ["0", "1", "4", "5", "6"]


def test_more_folds_than_pairs_are_refused():
    with pytest.raises(InvalidRecipe, match=r"^7 pairs cannot be split into 8 folds$"):
        split(PAIRS, Fold(0, 8))


TUMOR_ONLY = label_only_sample((True, False, False))
NORMAL_ONLY = label_only_sample((False, False, True))


def test_a_fold_that_holds_out_the_only_images_of_a_tissue_says_so():
    lines = untaught({"wsss4luad": [TUMOR_ONLY]}, [TUMOR_ONLY, NORMAL_ONLY], WSSS4LUAD, Fold(3, 4))

    assert lines == [
        "note: fold 4/4: only held-out images hold normal, so nothing teaches it:"
        " choose another number of folds, or add images that hold it"
    ]


@pytest.mark.parametrize(
    ("sources", "held_out"),
    [
        ({"wsss4luad": [TUMOR_ONLY], "lc25000": [NORMAL_ONLY]}, [NORMAL_ONLY]),
        ({"wsss4luad": [TUMOR_ONLY, NORMAL_ONLY]}, [TUMOR_ONLY]),
        ({"wsss4luad": [TUMOR_ONLY]}, []),
    ],
)
def test_a_tissue_may_be_taught_by_any_source_and_held_out_by_none(sources, held_out):
    assert untaught(sources, held_out, WSSS4LUAD, Fold(0, 2)) == []
