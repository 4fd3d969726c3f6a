"""Scores of class maps, confidences and labels, summed over images before any ratio is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass, label_indices
from model_export.calibration import Calibration
from model_export.labels import LabelScores
from model_export.predict import predict, segmentation_loss
from model_export.training.dataset import IGNORE, Sample

_CALIBRATION_STEP_PX = 4
"""Confidences are counted at every fourth row and column: the network's own logits lie no closer."""


@dataclass
class Scores:
    """Sums from which every score follows; two of them add up.

    Attributes:
        classes: The classes of the class maps.
        confusion: int64 (C, C), pixels by true class (row) and predicted class (column).
        calibration: The probabilities of a part of these pixels.
        labels: The labels of each image.
        images: `name` and `pixel_scores` of each image.
    """

    classes: Sequence[TissueClass]
    confusion: NDArray[np.int64] = field(init=False)
    calibration: Calibration = field(default_factory=Calibration)
    labels: LabelScores = field(init=False)
    images: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
        self.labels = LabelScores(self.classes)

    def add_class_map(self, truth: ClassMap, predicted: ClassMap) -> None:
        """Count the known pixels of one image; both maps are (H, W) uint8."""
        known = truth != IGNORE
        count = len(self.classes)
        pairs = truth[known].astype(np.int64) * count + predicted[known]
        self.confusion += np.bincount(pairs, minlength=count * count).reshape(count, count)

    def add_logits(self, truth: ClassMap, logits: Tensor) -> None:
        """Count the confidences of one image: its true classes, (H, W) uint8, and logits, float (C, H, W)."""
        thinned = torch.from_numpy(truth[::_CALIBRATION_STEP_PX, ::_CALIBRATION_STEP_PX].astype(np.int64))
        known = thinned != IGNORE
        self.calibration.add(
            logits[:, ::_CALIBRATION_STEP_PX, ::_CALIBRATION_STEP_PX].permute(1, 2, 0)[known], thinned[known]
        )

    def __add__(self, other: "Scores") -> "Scores":
        total = Scores(self.classes, self.calibration + other.calibration, [*self.images, *other.images])
        total.confusion = self.confusion + other.confusion
        total.labels = self.labels + other.labels
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

    def pixel_scores(self) -> dict[str, float]:
        """Every score of the class maps by name, each 0 to 1, without those that the images say nothing about.

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
        return scores

    def as_dict(self) -> dict[str, float]:
        """Every score by name, each 0 to 1, without those that the images say nothing about.

        Those of the class maps, `ece` (the expected calibration error of their confidences, the one score that is
        better the smaller it is) and those of the labels.
        """
        confidences = self.calibration.unchanged
        ece = {"ece": confidences.ece} if confidences.pixels else {}
        return {**self.pixel_scores(), **ece, **self.labels.scores()}


def score(network: nn.Module, samples: Sequence[Sample], classes: Sequence[TissueClass]) -> tuple[Scores, list[float]]:
    """Return the scores of `network` on `samples` and each sample's segmentation loss (none for label-only ones)."""
    network.eval()
    total = Scores(classes)
    losses = []
    for sample in samples:
        prediction = predict(network, sample.image)
        one = Scores(classes)
        known = [label for label in sample.labels if label is not None]
        if len(known) == len(sample.labels):
            one.labels.add(known, prediction.label_probabilities.tolist())
        if sample.has_mask:
            one.add_class_map(sample.class_map, prediction.class_map)
            one.add_logits(sample.class_map, prediction.logits[0])
            losses.append(segmentation_loss(prediction, sample.class_map, IGNORE))
        one.images = [{"name": sample.name, **one.pixel_scores()}]
        total = total + one
    return total, losses
