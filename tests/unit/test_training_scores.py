import math

import numpy as np
import pytest
import torch
from torch import nn

from app.pathology.classes import WSSS4LUAD
from model_export import predict as predict_module
from model_export.network import TissueNetwork
from model_export.predict import labels_as_served, predict
from model_export.training.dataset import IGNORE
from model_export.training.scores import Scores, score
from tests.model_export_support import drawn_samples, label_only_sample, one_thread

TRUTH = np.array([[0, 0, 0, 1], [1, 1, 3, 3], [3, 3, IGNORE, IGNORE]], np.uint8)
PREDICTED = np.array([[0, 0, 1, 1], [1, 0, 3, 3], [3, 2, 0, 2]], np.uint8)
"""Tumor: 2 right of 3, stroma: 2 right of 3, background: 3 right of 4; one pixel called normal that is none."""

LOGITS = torch.zeros((4, *TRUTH.shape))


def counted():
    scores = Scores(WSSS4LUAD)
    scores.add_class_map(TRUTH, PREDICTED)
    return scores


def test_the_confusion_has_the_truth_in_its_rows_and_leaves_out_unknown_pixels():
    assert counted().confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 3]]


def test_scores_equal_the_hand_computed_ones():
    scores = counted()
    scores.labels.add((True, True, False), (0.9, 0.5, 0.5))

    assert scores.as_dict() == pytest.approx(
        {
            "iou_tumor": 2 / 4,
            "iou_stroma": 2 / 4,
            "iou_background": 3 / 4,
            "tissue_miou": (2 / 4 + 2 / 4) / 2,
            "pixel_accuracy": 7 / 10,
            "label_accuracy": 2 / 3,
            "label_f1_tumor": 1.0,
            "label_f1_stroma": 1.0,
            "label_f1_normal": 0.0,
            "label_f1_macro": 1.0,
            "label_f1_micro": 4 / 5,
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
        scores.labels.add((True, False, False), (0.9, 0.1, 0.9))
        scores.add_logits(TRUTH, LOGITS)
    for scores in (second, together):
        scores.add_class_map(PREDICTED, PREDICTED)
        scores.labels.add((False, False, False), (0.1, 0.1, 0.1))
        scores.images = [*scores.images, {"name": "second.png"}]

    total = first + second

    np.testing.assert_array_equal(total.confusion, together.confusion)
    assert total.as_dict() == together.as_dict()
    assert total.as_dict()["label_accuracy"] == 5 / 6
    assert total.calibration.unchanged.pixels == 1
    assert total.images == [{"name": "second.png"}]
    np.testing.assert_array_equal(first.confusion, counted().confusion)  # the parts are as they were


def test_confidences_are_counted_at_every_fourth_row_and_column_where_the_class_is_known():
    truth = np.full((9, 6), 1, np.uint8)
    truth[4, 4] = IGNORE
    logits = torch.zeros((4, 9, 6))
    logits[1, ::4, ::4] = 50.0  # sure and right at 3 rows of 2; anything else would be a quarter sure
    scores = Scores(WSSS4LUAD)

    scores.add_logits(truth, logits)

    assert scores.calibration.unchanged.count.tolist() == [0] * 14 + [5]
    assert scores.calibration.unchanged.right[-1] == 5
    assert scores.as_dict()["ece"] == pytest.approx(0.0, abs=1e-9)


def test_with_the_background_given_only_tissue_counts_and_background_is_never_called():
    truth = np.array([[0, 0, 1, 1], [2, 3, 3, IGNORE]], np.uint8)
    called = np.array([[0, 1, 1, 3], [2, 0, 3, 0]], np.uint8)
    logits = torch.nn.functional.one_hot(torch.from_numpy(called).long(), 4).permute(2, 0, 1).float()
    logits[1, 0, 3] = 0.5  # called background, else stroma
    scores = Scores(WSSS4LUAD)

    scores.add_logits(truth, logits)
    twice = scores + scores

    assert scores.within_tissue.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 1]]
    assert scores.background_given_scores() == {
        "miou_background_given": pytest.approx((1 / 2 + 2 / 3 + 1) / 3),
        "accuracy_background_given": pytest.approx(4 / 5),
    }
    assert twice.background_given_scores() == scores.background_given_scores()
    assert twice.within_tissue.sum() == 10


def test_without_any_tissue_nothing_is_said_of_it():
    scores = Scores(WSSS4LUAD)
    scores.add_logits(np.full((2, 2), 3, np.uint8), torch.zeros((4, 2, 2)))

    assert scores.as_dict() == {"ece": pytest.approx(0.25)}  # a quarter sure, and never right


def test_labels_of_another_length_are_an_error():
    with pytest.raises(ValueError, match=r"^2 labels and 3 probabilities of 3 classes$"):
        Scores(WSSS4LUAD).labels.add((True, False), (0.9, 0.1, 0.9))


def test_a_networks_scores_are_those_of_its_predictions_image_by_image():
    torch.manual_seed(0)
    network, samples = TissueNetwork(pretrained=False), drawn_samples(2)
    labelled = label_only_sample((True, False, True))

    with one_thread():
        scores, losses = score(network.train(), [*samples, labelled], WSSS4LUAD)
        maps = [predict(network, sample.image).class_map for sample in samples]

    assert not network.training
    assert [image["name"] for image in scores.images] == ["00.png", "01.png", "labelled.png"]
    for image, sample, class_map in zip(scores.images, samples, maps, strict=False):
        assert image["pixel_accuracy"] == (class_map == sample.class_map).mean()
        assert np.sum(image["confusion"]) == 64 * 64
    assert scores.confusion.tolist() == np.sum([image["confusion"] for image in scores.images[:2]], axis=0).tolist()
    assert scores.images[2] == {"name": "labelled.png"}
    assert len(losses) == 2
    assert scores.confusion.sum() == 2 * 64 * 64
    assert scores.calibration.unchanged.pixels == 2 * 16 * 16
    assert scores.labels.truth == [*(sample.labels for sample in samples), labelled.labels]


class Bright(nn.Module):
    """Has a logit of each label that is the mean of a colour."""

    def forward(self, images):
        return {"out": images[:, :1].repeat(1, 4, 1, 1), "labels": images.mean(dim=(2, 3))}


def test_the_labels_of_an_image_larger_than_a_window_are_scored_as_they_are_served(monkeypatch):
    network, [sample] = Bright(), drawn_samples(1, side_px=192)
    monkeypatch.setattr(predict_module, "WINDOW_PX", 128)
    monkeypatch.setattr(predict_module, "MARGIN_PX", 32)

    with one_thread():
        scores, _ = score(network, [sample], WSSS4LUAD)
        served = labels_as_served(network, sample.image, predict(network, sample.image))

    assert scores.labels.probability == [tuple(served.tolist())]
    assert (served != predict(network, sample.image).label_probabilities).any()


def test_an_image_whose_labels_are_not_all_known_has_no_label_score():
    torch.manual_seed(0)

    with one_thread():
        scores, _ = score(TissueNetwork(pretrained=False), [label_only_sample((True, None, False))], WSSS4LUAD)

    assert scores.labels.truth == []
    assert [image["name"] for image in scores.images] == ["labelled.png"]
