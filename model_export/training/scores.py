"""Scores of class maps and labels, summed over images before any ratio is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass, label_indices
from model_export.training.dataset import IGNORE


@dataclass
class Scores:
    """Counts from which every score follows; two of them add up.

    Attributes:
        classes: The classes of the class maps.
        confusion: int64 (C, C), pixels by true class (row) and predicted class (column).
        labels_right: Labels predicted as annotated, summed over images and label classes.
        labels_total: Labels asked for.
    """

    classes: Sequence[TissueClass]
    confusion: NDArray[np.int64] = field(init=False)
    labels_right: int = 0
    labels_total: int = 0

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)

    def add_class_map(self, truth: ClassMap, predicted: ClassMap) -> None:
        """Count the known pixels of one image; both maps are (H, W) uint8."""
        known = truth != IGNORE
        count = len(self.classes)
        pairs = truth[known].astype(np.int64) * count + predicted[known]
        self.confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)

    def add_labels(self, truth: Sequence[bool], predicted: Sequence[bool]) -> None:
        """Count the labels of one image."""
        self.labels_right += sum(t == p for t, p in zip(truth, predicted, strict=True))
        self.labels_total += len(truth)

    def __add__(self, other: "Scores") -> "Scores":
        total = Scores(self.classes)
        total.confusion = self.confusion + other.confusion
        total.labels_right = self.labels_right + other.labels_right
        total.labels_total = self.labels_total + other.labels_total
        return total

    @property
    def iou(self) -> list[float]:
        """Intersection over union of each class; NaN for one that is in neither truth nor prediction."""
        right = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - right
        return [float(r / u) if u else float("nan") for r, u in zip(right, union, strict=True)]

    @property
    def pixel_accuracy(self) -> float:
        """The share of known pixels whose class is right, over all classes."""
        return float(np.diag(self.confusion).sum() / max(1, self.confusion.sum()))

    def as_dict(self) -> dict[str, float]:
        """Every score by name, each 0 to 1, without those that the images say nothing about.

        `tissue_miou` is the mean over the label classes that are in the truth: a class that the held-out images do
        not hold has no IoU worth averaging.
        """
        held = self.confusion.sum(axis=1) > 0
        iou = self.iou
        scores = {f"iou_{c.name}": iou[index] for index, c in enumerate(self.classes) if held[index]}
        tissue = [iou[index] for index in label_indices(self.classes) if held[index]]
        if tissue:
            scores["tissue_miou"] = float(np.mean(tissue))
        if held.any():
            scores["pixel_accuracy"] = self.pixel_accuracy
        if self.labels_total:
            scores["label_accuracy"] = self.labels_right / self.labels_total
        return scores
