import math

import numpy as np
import pytest
import torch

from model_export.calibration import BINS, TEMPERATURES, Calibration, Reliability, calibrated


def logits(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def truth(*classes):
    return torch.tensor(classes)


def counted(pixels, classes):
    reliability = Reliability()
    reliability.add(pixels, classes)
    return reliability


def overconfident(seed=0, pixels=2000, factor=2.0):
    """Pixels whose classes are drawn with the probabilities of the logits divided by `factor`."""
    generator = torch.Generator().manual_seed(seed)
    true_logits = 2 * torch.randn((pixels, 4), generator=generator)
    classes = torch.multinomial(true_logits.softmax(dim=1), 1, generator=generator)[:, 0]
    calibration = Calibration()
    calibration.add(factor * true_logits, classes)
    return calibration


def test_the_expected_calibration_error_equals_the_hand_computed_one():
    # In the bin of 0.9 one of two is right: |1.82 - 1|; in that of 0.6 the one pixel is right: |0.6 - 1|.
    reliability = counted(logits((0.9, 0.1), (0.08, 0.92), (0.6, 0.4)), truth(0, 0, 0))

    assert reliability.ece == pytest.approx((0.82 + 0.4) / 3)
    values = reliability.as_dict()
    assert values["ece"] == reliability.ece
    assert values["nll"] == pytest.approx(-(math.log(0.9) + math.log(0.08) + math.log(0.6)) / 3)
    assert values["brier"] == pytest.approx((2 * 0.1**2 + 2 * 0.92**2 + 2 * 0.4**2) / 3)


def test_the_bins_are_fifteen_of_equal_width_and_empty_ones_say_so():
    bins = counted(logits((0.9, 0.1), (0.08, 0.92), (0.6, 0.4)), truth(0, 0, 0)).as_dict()["bins"]

    assert len(bins) == BINS == 15
    assert (bins[0]["low"], bins[-1]["high"]) == (0.0, 1.0)
    assert [bin_["high"] for bin_ in bins[:-1]] == [bin_["low"] for bin_ in bins[1:]]
    full = {index: bin_ for index, bin_ in enumerate(bins) if bin_["count"]}
    assert list(full) == [9, 13]  # 0.6 = 9 / 15 opens its bin
    assert full[13] == {"low": 13 / 15, "high": 14 / 15, "count": 2, "confidence": pytest.approx(0.91), "accuracy": 0.5}
    assert bins[0] == {"low": 0.0, "high": 1 / 15, "count": 0, "confidence": None, "accuracy": None}


def test_certainty_falls_into_the_last_bin():
    reliability = counted(torch.tensor([[1000.0, 0.0], [1000.0, 0.0]]), truth(0, 0))

    assert reliability.count.tolist() == [0] * 14 + [2]
    assert (reliability.ece, reliability.as_dict()["nll"], reliability.as_dict()["brier"]) == (0, 0, 0)


def test_without_pixels_nothing_is_wrong():
    assert Reliability().as_dict()["ece"] == 0
    assert Calibration().best_temperature() == 1


def test_one_of_the_temperatures_leaves_the_logits_alone():
    calibration = Calibration()
    calibration.add(logits((0.9, 0.1), (0.3, 0.7)), truth(0, 0))

    assert calibration.unchanged.as_dict() == counted(logits((0.9, 0.1), (0.3, 0.7)), truth(0, 0)).as_dict()
    np.testing.assert_allclose(np.diff(np.log2(TEMPERATURES)), 1 / 16)


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.0])
def test_the_temperature_that_was_put_in_is_found_and_calibrates(factor):
    calibration = overconfident(factor=factor)

    assert calibration.best_temperature() == pytest.approx(factor, rel=0.1)
    best = calibration.at[TEMPERATURES.index(calibration.best_temperature())]
    assert best.ece < 0.03
    np.testing.assert_array_equal(best.right.sum(), calibration.unchanged.right.sum())  # no winner has changed
    assert best.ece <= calibration.unchanged.ece


def test_each_fold_is_judged_at_the_temperature_that_the_others_choose():
    sure, doubting = overconfident(factor=2.0), overconfident(seed=1, factor=0.7)

    result = calibrated([sure, doubting])

    assert result["by_fold"] == [doubting.best_temperature(), sure.best_temperature()]
    assert result["temperature"] == (sure + doubting).best_temperature()
    judged = sure.at[TEMPERATURES.index(result["by_fold"][0])] + doubting.at[TEMPERATURES.index(result["by_fold"][1])]
    assert result["ece"] == judged.ece
    assert sum(bin_["count"] for bin_ in result["bins"]) == 4000
    assert result["ece"] > (sure + doubting).unchanged.ece  # these two have nothing to teach each other
