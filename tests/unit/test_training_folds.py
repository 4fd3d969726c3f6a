from dataclasses import replace

import numpy as np
import pytest

from app.pathology.classes import WSSS4LUAD
from model_export.errors import InvalidRecipe
from model_export.training.folds import Fold, split, untaught, without_slides
from model_export.training.slides import load_slides
from tests.model_export_support import label_only_sample, masked_sample

TUMOR, NORMAL = 0, 2
PIXEL = masked_sample(np.zeros((1, 1), np.uint8))


def of_slides(slides):
    """Return a sample for each name, of the slide that it has."""
    return [replace(PIXEL, name=name, slide=slide) for name, slide in slides.items()]


def of_letters(text):
    """Return samples 0.png, 1.png, ... of the slides that the letters name."""
    return of_slides({f"{index}.png": letter for index, letter in enumerate(text)})


PAIRS = of_letters("abcdefg")


def names(samples):
    return [sample.name.removesuffix(".png") for sample in samples]


def held_out(pairs, folds):
    return [" ".join(names(split(pairs, Fold(index, folds))[1])) for index in range(folds)]


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

    assert str(caught.value) == f"fold {text!r} is neither 'all' nor K/N with K from 1 to N, such as '1/4'"


def test_all_holds_nothing_out():
    assert split(PAIRS, Fold()) == (PAIRS, [])


def test_a_fold_is_a_run_of_neighbours():
    assert held_out(PAIRS, 3) == ["0 1", "2 3", "4 5 6"]
    assert names(split(PAIRS, Fold(1, 3))[0]) == ["0", "1", "4", "5", "6"]


@pytest.mark.parametrize(
    ("slides", "parts"),
    [
        ("aaaaabcd", ["0 1 2 3 4", "5 6 7"]),
        ("abcccdef", ["0 1 2 3 4", "5 6 7"]),
        ("abccccde", ["0 1", "2 3 4 5 6 7"]),  # as near to either side: the earlier
        ("ab", ["0", "1"]),
    ],
)
def test_a_border_moves_to_the_nearest_change_of_slides(slides, parts):
    assert held_out(of_letters(slides), 2) == parts


def test_images_of_a_slide_are_together_wherever_their_names_stand():
    assert held_out(of_letters("abacbd"), 2) == ["0 2", "1 4 3 5"]
    assert names(split(of_letters("abacbd"), Fold(1, 2))[0]) == ["0", "2"]


def test_the_pairs_of_wsss4luad_are_split_between_their_slides():
    slides = load_slides("wsss4luad")
    assert len(slides) == 67

    parts = [names(split(of_slides(slides), Fold(index, 4))[1]) for index in range(4)]

    assert [(part[0], part[-1], len(part)) for part in parts] == [
        ("00", "16", 17),
        ("17", "34", 18),
        ("35", "47", 13),
        ("48", "68", 19),
    ]


@pytest.mark.parametrize(
    ("slides", "folds", "counts", "empty"),
    [
        ("abcdefg", 8, "7 pairs of 7 slides", "1/8"),
        ("aaaaaa", 2, "6 pairs of 1 slides", "1/2"),
        ("aaaaaabbbbbb", 3, "12 pairs of 2 slides", "2/3"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_folds_of_which_one_would_be_empty_are_refused_whichever_is_asked_for(slides, folds, counts, empty, index):
    with pytest.raises(InvalidRecipe) as caught:
        split(of_letters(slides), Fold(index, folds))

    reason = f"no slide is cut, and fold {empty} would be empty; choose fewer folds"
    assert str(caught.value) == f"{counts} cannot be split into {folds} folds: {reason}"


TUMOR_ONLY = masked_sample(np.full((8, 8), TUMOR, np.uint8))
NORMAL_ONLY = masked_sample(np.full((8, 8), NORMAL, np.uint8))
LABELLED_NORMAL = label_only_sample((False, False, True))


@pytest.mark.parametrize("beside", [[], [LABELLED_NORMAL]])
def test_a_fold_that_holds_out_the_only_images_whose_masks_show_a_tissue_says_so(beside):
    """A label alone teaches no pixel."""
    lines = untaught({"wsss4luad": [TUMOR_ONLY, *beside]}, [TUMOR_ONLY, NORMAL_ONLY], WSSS4LUAD, Fold(3, 4))

    assert lines == [
        "note: fold 4/4: held-out images hold normal and nothing teaches its pixels:"
        " choose another number of folds, or add images whose masks show it"
    ]


@pytest.mark.parametrize(
    ("sources", "held_out"),
    [
        ({"wsss4luad": [TUMOR_ONLY], "lc25000": [NORMAL_ONLY]}, [NORMAL_ONLY]),
        ({"wsss4luad": [TUMOR_ONLY, NORMAL_ONLY]}, [TUMOR_ONLY]),
        ({"wsss4luad": [TUMOR_ONLY, replace(LABELLED_NORMAL, guesses=(NORMAL,))]}, [NORMAL_ONLY]),
        ({"wsss4luad": [TUMOR_ONLY]}, []),
    ],
)
def test_a_tissue_may_be_taught_by_any_source_and_held_out_by_none(sources, held_out):
    assert untaught(sources, held_out, WSSS4LUAD, Fold(0, 2)) == []


def test_it_is_noted_where_nothing_says_which_images_are_of_one_slide():
    unknown = of_slides({"0.png": "0.png", "1.png": "1.png"})

    [note] = without_slides(unknown, Fold(0, 2))

    assert note.startswith("note: every image counts as a slide of its own: ")
    assert without_slides(unknown, Fold()) == []
    assert without_slides(of_slides({"0.png": "a", "1.png": "1.png"}), Fold(0, 2)) == []
