"""Labels of whole images: the F1 score, and the thresholds that serve it best.

A threshold that was chosen on few images fits those few. So it is drawn back to one half, the harder the fewer there
are, and what choosing is worth is only said of images whose own probabilities had no part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.pathology.classes import TissueClass, label_indices

NEUTRAL = 0.5
"""The threshold of a label of which nothing is known."""

PRIOR_IMAGES = 10
"""A chosen threshold weighs as many images as the rarer of "has it" and "lacks it"; `NEUTRAL` weighs this many."""


@dataclass
class LabelScores:
    """What was annotated and what the network said, for L label classes; two of them add up.

    Attributes:
        classes: The classes of the class maps, in order.
        truth: A row of L for each image.
        probability: Likewise, each 0 to 1.
    """

    classes: Sequence[TissueClass]
    truth: list[tuple[bool, ...]] = field(default_factory=list)
    probability: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, truth: Sequence[bool], probability: Sequence[float]) -> None:
        """Note one image.

        Raises:
            ValueError: Either has another length than there are label classes.
        """
        if not len(truth) == len(probability) == len(self.names):
            raise ValueError(f"{len(truth)} labels and {len(probability)} probabilities of {len(self.names)} classes")
        self.truth.append(tuple(bool(value) for value in truth))
        self.probability.append(tuple(float(value) for value in probability))

    def __add__(self, other: "LabelScores") -> "LabelScores":
        return LabelScores(self.classes, self.truth + other.truth, self.probability + other.probability)

    @property
    def names(self) -> list[str]:
        """The label classes' names."""
        return [self.classes[index].name for index in label_indices(self.classes)]

    def predicted(self, thresholds: Sequence[float] | None = None) -> NDArray[np.bool_]:
        """Return which labels each image gets, (N, L); at `NEUTRAL` by default."""
        return self._array(self.probability, np.float64) >= np.array(thresholds or [NEUTRAL] * len(self.names))

    def scores(self, predicted: NDArray[np.bool_] | None = None) -> dict[str, float]:
        """Every score of (N, L) `predicted` by name, each 0 to 1, without those that the images say nothing about.

        `label_f1_macro` is the mean over the labels that any image has; `label_f1_micro` counts all labels together.
        """
        if not self.truth:
            return {}
        truth = self._array(self.truth, np.bool_)
        guess = self.predicted() if predicted is None else predicted
        each = f1(truth, guess)
        scores = {"label_accuracy": float((truth == guess).mean())}
        scores |= {f"label_f1_{name}": value for name, value in zip(self.names, each, strict=True) if value is not None}
        held = [value for index, value in enumerate(each) if value is not None and truth[:, index].any()]
        if held:
            scores["label_f1_macro"] = float(np.mean(held))
        [micro] = f1(truth.reshape(-1, 1), guess.reshape(-1, 1))
        if micro is not None:
            scores["label_f1_micro"] = micro
        return scores

    def thresholds(self) -> list[float]:
        """Choose each label's threshold on these images; see `choose_threshold`."""
        truth, probability = self._array(self.truth, np.bool_), self._array(self.probability, np.float64)
        return [choose_threshold(truth[:, index], probability[:, index]) for index in range(len(self.names))]

    def as_dict(self) -> dict[str, Any]:
        """Return the images' labels and probabilities, and F1 at `NEUTRAL`."""
        return {
            "classes": self.names,
            "thresholds": [NEUTRAL] * len(self.names),
            "f1": f1(self._array(self.truth, np.bool_), self.predicted()),
            "truth": [list(row) for row in self.truth],
            "probability": [[round(value, 6) for value in row] for row in self.probability],
        }

    def _array(self, rows: Sequence[Sequence[float]], dtype: type) -> NDArray[Any]:
        return np.array(rows, dtype).reshape(-1, len(self.names))


def f1(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> list[float | None]:
    """Return the F1 score of each column of two (N, L) arrays; None where it is true nowhere and predicted nowhere."""
    hits = (truth & predicted).sum(axis=0)
    either = truth.sum(axis=0) + predicted.sum(axis=0)
    return [float(2 * hit / total) if total else None for hit, total in zip(hits, either, strict=True)]


def choose_threshold(truth: NDArray[np.bool_], probability: NDArray[np.float64]) -> float:
    """Return the threshold for the best F1 of one label, drawn towards `NEUTRAL` where few images tell.

    F1 changes only where the threshold passes an image's probability. Of the intervals between two such places with
    the best F1 the widest is taken, and its middle.

    Sources: Yang, "A Study of Thresholding Strategies for Text Categorization", SIGIR 2001 (SCut: a threshold a class,
    the best on validation, which overfits rare classes); Fan and Lin, "A Study on Threshold Selection for Multi-label
    Classification", National Taiwan University, 2007 (the same, for F1).

    Args:
        truth: (N,), which images have the label.
        probability: (N,), 0 to 1; an image gets the label from the threshold on.
    """
    informative = min(int(truth.sum()), int((~truth).sum()))
    places = np.unique(np.concatenate([[0.0, 1.0], probability]))
    intervals = list(pairwise([0.0, *places.tolist()]))
    score = [f1(truth[:, None], (probability >= high)[:, None])[0] or 0.0 for _, high in intervals]
    low, high = max(
        (interval for interval, value in zip(intervals, score, strict=True) if value == max(score)),
        key=lambda interval: interval[1] - interval[0],
    )
    middle = (low + high) / 2
    return float((informative * middle + PRIOR_IMAGES * NEUTRAL) / (informative + PRIOR_IMAGES))


def with_chosen_thresholds(folds: Sequence[LabelScores]) -> dict[str, Any]:
    """Choose thresholds on all folds, and judge the choosing: each fold with the thresholds that the others choose.

    The others' probabilities come from networks that learned from the judged fold, so it is not wholly unseen; see
    `evaluate.summarise`.

    Args:
        folds: At least two, each of images that its network never saw.

    Returns:
        `LabelScores.as_dict` with the chosen `thresholds` and the `f1` of each fold with the others' choice; also
        `f1_at_half`, `scores` (as `LabelScores.scores`, likewise of the others' choice) and `by_fold`.
    """
    total = sum(folds, start=LabelScores(folds[0].classes))
    by_fold = [
        sum((other for other in folds if other is not fold), start=LabelScores(fold.classes)).thresholds()
        for fold in folds
    ]
    guess = np.concatenate([fold.predicted(chosen) for fold, chosen in zip(folds, by_fold, strict=True)])
    neutral = total.as_dict()
    return {
        **neutral,
        "thresholds": total.thresholds(),
        "f1": f1(np.array(total.truth, np.bool_), guess),
        "f1_at_half": neutral["f1"],
        "scores": total.scores(guess),
        "by_fold": by_fold,
    }
