"""How far a confidence can be believed, and the one number that corrects it.

Sums, not ratios: those of two sets of pixels add up to those of both, so folds pool exactly. They are kept for a row of
temperatures, so that one can be chosen on some folds and judged on another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 15
"""Equal-width bins of the winning probability, as many as Guo et al. take."""

TEMPERATURES = tuple(2 ** (step / 16) for step in range(-16, 33))
"""The temperatures to choose from: 1/2 to 4, each 4.4 % above the one before."""
_UNCHANGED = TEMPERATURES.index(1.0)


@dataclass
class Reliability:
    """Sums over pixels whose class is known, of which every measure of calibration follows; two of them add up.

    Sources: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015 (the expected
    calibration error); Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78
    (1950).

    Attributes:
        count: int64 (BINS,), pixels by the winning class's probability.
        right: int64 (BINS,), those of them whose winning class is the true one.
        confidence: float64 (BINS,), their winning probabilities.
        log_loss: -log p of the true class.
        squared: Over the classes, (p - truth) squared.
    """

    count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    right: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidence: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    log_loss: float = 0.0
    squared: float = 0.0

    def add(self, logits: Tensor, truth: Tensor) -> None:
        """Count pixels: logits, float (P, C), and each one's true class, int64 (P,)."""
        log_probability = logits.log_softmax(dim=1)
        probability = log_probability.exp()
        confidence, winner = probability.max(dim=1)
        self.add_winners(confidence, winner == truth)
        of_truth = log_probability.gather(1, truth[:, None]).double()
        self.log_loss -= float(of_truth.sum())
        self.squared += float(probability.double().square().sum() - 2 * of_truth.exp().sum()) + len(truth)

    def add_winners(self, confidence: Tensor, right: Tensor) -> None:
        """Count pixels of which no more is known: the winners' probabilities, float (P,), and whether they are right.

        Of these follows `ece`, and neither `log_loss` nor `squared`: they need the other classes' too.
        """
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        self.count += torch.bincount(bins, minlength=BINS).numpy()
        self.right += torch.bincount(bins[right], minlength=BINS).numpy()
        self.confidence += torch.bincount(bins, confidence.double(), minlength=BINS).numpy()

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.count + other.count,
            self.right + other.right,
            self.confidence + other.confidence,
            self.log_loss + other.log_loss,
            self.squared + other.squared,
        )

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.count.sum())

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: how far confidence and accuracy lie apart in the bins; 0 for no pixel."""
        return float(np.abs(self.confidence - self.right).sum() / max(1, self.pixels))

    def as_dict(self) -> dict[str, Any]:
        """Return `ece`, mean `nll`, mean `brier` and the bins; an empty bin's confidence and accuracy are None."""
        pixels = max(1, self.pixels)
        sums = zip(self.count.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        bins = [
            {
                "low": index / BINS,
                "high": (index + 1) / BINS,
                "count": count,
                "confidence": confidence / count if count else None,
                "accuracy": right / count if count else None,
            }
            for index, (count, confidence, right) in enumerate(sums)
        ]
        return {"ece": self.ece, "nll": self.log_loss / pixels, "brier": self.squared / pixels, "bins": bins}


@dataclass
class Calibration:
    """The same pixels with their logits divided by each of `TEMPERATURES`; two of them add up.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. A temperature changes no winner.

    Attributes:
        at: What was counted at each temperature.
    """

    at: list[Reliability] = field(default_factory=lambda: [Reliability() for _ in TEMPERATURES])

    def add(self, logits: Tensor, truth: Tensor) -> None:
        """Count pixels: logits, float (P, C), and each one's true class, int64 (P,)."""
        for temperature, reliability in zip(TEMPERATURES, self.at, strict=True):
            reliability.add(logits / temperature, truth)

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration([ours + theirs for ours, theirs in zip(self.at, other.at, strict=True)])

    @property
    def unchanged(self) -> Reliability:
        """The network's own probabilities, at temperature 1."""
        return self.at[_UNCHANGED]

    def best_temperature(self) -> float:
        """Return the one of `TEMPERATURES` with the least log loss, the objective of Guo et al.; 1 for no pixel."""
        losses = [reliability.log_loss for reliability in self.at]
        return TEMPERATURES[int(np.argmin(losses))] if self.unchanged.pixels else 1.0


def calibrated(folds: Sequence[Calibration]) -> dict[str, Any]:
    """Choose a temperature on all folds, and judge the choosing: each fold at the temperature that the others choose.

    The others' probabilities come from networks that learned from the judged fold, so it is not wholly unseen; see
    `evaluate.summarise`.

    Args:
        folds: At least two, each of images that its network never saw.

    Returns:
        `temperature`, `by_fold` (the temperature that each fold was judged at) and the pooled `Reliability.as_dict`.
    """
    by_fold = [
        sum((other for other in folds if other is not fold), start=Calibration()).best_temperature() for fold in folds
    ]
    judged = [fold.at[TEMPERATURES.index(chosen)] for fold, chosen in zip(folds, by_fold, strict=True)]
    return {
        "temperature": sum(folds, start=Calibration()).best_temperature(),
        "by_fold": by_fold,
        **sum(judged, start=Reliability()).as_dict(),
    }
