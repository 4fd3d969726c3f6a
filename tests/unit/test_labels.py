import numpy as np
import pytest

from app.pathology.classes import WSSS4LUAD
from model_export.labels import PRIOR_IMAGES, LabelScores, choose_threshold, f1, with_chosen_thresholds


def noted(*rows):
    """Return scores of images given as (truth, probability) of three labels."""
    scores = LabelScores(WSSS4LUAD)
    for truth, probability in rows:
        scores.add(truth, probability)
    return scores


def choose(truth, probability):
    return choose_threshold(np.array(truth, bool), np.array(probability, float))


def drawn_back(middle, informative):
    return (informative * middle + PRIOR_IMAGES * 0.5) / (informative + PRIOR_IMAGES)


def test_f1_equals_the_hand_computed_one_and_is_none_where_there_is_nothing():
    truth = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
    predicted = np.array([[1, 0, 0], [0, 0, 0], [1, 0, 0]], bool)

    assert f1(truth, predicted) == [2 / 4, 0.0, None]


def test_scores_equal_the_hand_computed_ones():
    scores = noted(
        ((True, True, False), (0.9, 0.2, 0.1)),
        ((True, False, False), (0.5, 0.4, 0.3)),
        ((False, True, False), (0.8, 0.6, 0.2)),
    ).scores()

    assert scores == pytest.approx(
        {
            "label_accuracy": 7 / 9,
            "label_f1_tumor": 4 / 5,
            "label_f1_stroma": 2 / 3,
            "label_f1_macro": (4 / 5 + 2 / 3) / 2,
            "label_f1_micro": 6 / 8,
        }
    )


def test_a_label_that_is_only_ever_a_false_alarm_counts_in_micro_and_not_in_macro():
    scores = noted(((True, False, False), (0.9, 0.1, 0.9))).scores()

    assert scores["label_f1_normal"] == 0.0
    assert scores["label_f1_macro"] == 1.0
    assert scores["label_f1_micro"] == 2 / 3


def test_without_images_there_is_no_score():
    assert noted().scores() == {}
    assert noted().thresholds() == [0.5, 0.5, 0.5]
    assert noted().as_dict()["f1"] == [None, None, None]


def test_the_threshold_lies_in_the_middle_of_the_widest_of_the_best_intervals():
    truth = [False] * 40 + [True] * 40
    probability = [0.1] * 20 + [0.3] * 20 + [0.7] * 40  # any threshold above 0.3 and up to 0.7 is right always

    assert choose(truth, probability) == pytest.approx(drawn_back(0.5, 40))
    assert choose(truth, [0.1] * 40 + [0.2] * 40) == pytest.approx(drawn_back(0.15, 40))


def test_of_two_intervals_with_the_same_f1_the_wider_one_is_taken():
    # Above 0.1: 1 hit of 2 and no false alarm, F1 2/3; above 0.2 to 0.9 none is hit. Up to 0.1: 2 hits, 2 false: 2/3.
    truth, probability = [True, False, False, True], [0.1, 0.1, 0.1, 0.9]

    assert choose(truth, probability) == pytest.approx(drawn_back((0.1 + 0.9) / 2, 2))


@pytest.mark.parametrize("flip", [False, True])
def test_the_rarer_outcome_decides_how_far_a_threshold_may_go_from_a_half(flip):
    few = np.array([True] * 3 + [False] * 60)
    probability = np.where(few, 0.2, 0.1)
    truth, probability = (~few, 1 - probability) if flip else (few, probability)

    chosen = choose(truth, probability)

    assert chosen == pytest.approx(drawn_back(0.85 if flip else 0.15, 3))
    assert abs(chosen - 0.5) < abs(0.15 - 0.5)


@pytest.mark.parametrize("has", [True, False])
def test_a_label_that_all_or_none_have_says_nothing_of_its_threshold(has):
    assert choose([has] * 5, [0.7, 0.8, 0.9, 0.95, 0.99]) == 0.5


def test_each_fold_is_judged_with_the_thresholds_that_the_others_choose():
    low = noted(*[((bool(index % 2), True, False), (0.3 if index % 2 else 0.1, 0.9, 0.0)) for index in range(40)])
    high = noted(*[((bool(index % 2), True, False), (0.9 if index % 2 else 0.7, 0.9, 0.0)) for index in range(40)])

    result = with_chosen_thresholds([low, high])

    assert result["by_fold"] == [high.thresholds(), low.thresholds()]
    assert result["thresholds"] == (low + high).thresholds()
    # The high fold's threshold for tumor, 0.7, finds none of the low fold's; the low one's, 0.3, finds all of the
    # high fold's and as many false alarms.
    assert result["f1"] == pytest.approx([2 * 20 / (40 + 40), 1.0, None])
    assert result["scores"]["label_f1_tumor"] == result["f1"][0]
    assert result["f1_at_half"] == (low + high).as_dict()["f1"]
    assert result["classes"] == ["tumor", "stroma", "normal"]
    assert result["truth"] == [list(row) for row in (low + high).truth]
    assert result["probability"][0] == [0.1, 0.9, 0.0]


def test_thresholds_that_suit_all_folds_help_on_images_that_had_no_part_in_choosing():
    folds = [
        noted(*[((bool(index % 2), False, False), (0.35 if index % 2 else 0.05, 0, 0)) for index in range(40)])
        for _ in range(3)
    ]

    result = with_chosen_thresholds(folds)

    assert result["f1_at_half"][0] == 0.0
    assert result["f1"][0] == 1.0
