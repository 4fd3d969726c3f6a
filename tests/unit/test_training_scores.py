import math

import numpy as np
import pytest

from app.pathology.classes import WSSS4LUAD
from model_export.training.dataset import IGNORE
from model_export.training.scores import Scores

TRUTH = np.array([[0, 0, 0, 1], [1, 1, 3, 3], [3, 3, IGNORE, IGNORE]], np.uint8)
PREDICTED = np.array([[0, 0, 1, 1], [1, 0, 3, 3], [3, 2, 0, 2]], np.uint8)
"""Tumor: 2 right of 3, stroma: 2 right of 3, background: 3 right of 4; one pixel called normal that is none."""


def counted():
    scores = Scores(WSSS4LUAD)
    scores.add_class_map(TRUTH, PREDICTED)
    return scores


def test_the_confusion_has_the_truth_in_its_rows_and_leaves_out_unknown_pixels():
    assert counted().confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 3]]


def test_scores_equal_the_hand_computed_ones():
    scores = counted()
    scores.add_labels((True, True, False), (True, True, True))

    assert scores.as_dict() == pytest.approx(
        {
            "iou_tumor": 2 / 4,
            "iou_stroma": 2 / 4,
            "iou_background": 3 / 4,
            "tissue_miou": (2 / 4 + 2 / 4) / 2,
            "pixel_accuracy": 7 / 10,
            "label_accuracy": 2 / 3,
        }
    )


def test_a_class_that_is_predicted_and_never_true_has_no_share_in_the_mean():
    scores = counted()

    assert scores.iou[2] == 0.0  # normal was predicted once, and is nowhere
    assert "iou_normal" not in scores.as_dict()


def test_a_class_that_is_nowhere_has_no_iou():
    scores = Scores(WSSS4LUAD)
    scores.add_class_map(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))

    assert scores.iou[0] == 1.0
    assert all(math.isnan(value) for value in scores.iou[1:])
    assert scores.as_dict() == {"iou_tumor": 1.0, "tissue_miou": 1.0, "pixel_accuracy": 1.0}


def test_background_counts_in_accuracy_and_not_in_tissue_miou():
    scores = Scores(WSSS4LUAD)
    scores.add_class_map(np.full((2, 2), 3, np.uint8), np.array([[3, 3], [3, 0]], np.uint8))

    assert scores.as_dict() == {"iou_background": 3 / 4, "pixel_accuracy": 3 / 4}


def test_without_any_image_there_is_no_score():
    assert Scores(WSSS4LUAD).as_dict() == {}
    assert Scores(WSSS4LUAD).pixel_accuracy == 0.0


def test_an_image_without_known_pixels_adds_nothing():
    scores = counted()
    scores.add_class_map(np.full((5, 5), IGNORE, np.uint8), np.zeros((5, 5), np.uint8))

    np.testing.assert_array_equal(scores.confusion, counted().confusion)


def test_scores_add_up_as_if_counted_together():
    first, second, together = (Scores(WSSS4LUAD) for _ in range(3))
    for scores in (first, together):
        scores.add_class_map(TRUTH, PREDICTED)
        scores.add_labels((True, False, False), (True, False, True))
    for scores in (second, together):
        scores.add_class_map(PREDICTED, PREDICTED)
        scores.add_labels((False, False, False), (False, False, False))

    total = first + second

    np.testing.assert_array_equal(total.confusion, together.confusion)
    assert total.as_dict() == together.as_dict()
    assert total.as_dict()["label_accuracy"] == 5 / 6
    np.testing.assert_array_equal(first.confusion, counted().confusion)  # the parts are as they were


def test_labels_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        Scores(WSSS4LUAD).add_labels((True, False), (True, False, True))
