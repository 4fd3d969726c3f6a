"""Scores of class maps, confidences and labels, summed over images before any ratio is taken."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.pathology.arrays import ClassMap, ConfidenceMap
from app.pathology.classes import TissueClass, label_indices
from model_export.calibration import Calibration
from model_export.labels import LabelScores
from model_export.predict import labels_as_served, predict, segmentation_loss
from model_export.training.dataset import IGNORE, Sample

_THINNED = np.s_[::4, ::4]
"""Confidences are counted at every fourth row and column, to save time: neighbours say nearly the same."""


@dataclass
class Scores:
    """Sums from which every score follows; two of them add up.

    Attributes:
        classes: The classes of the class maps.
        confusion: int64 (C, C), pixels by true class (row) and predicted class (column).
        within_tissue: int64 (L, L), the same of the pixels whose true class is one of the L label classes, as they are
            called where the background is given: by the highest logit of a label class.
        calibration: The probabilities of a part of these pixels.
        labels: The labels of each image.
        images: `name` of each image; where it has a class map, its `confusion` and `pixel_scores` too.
    """

    classes: Sequence[TissueClass]
    confusion: NDArray[np.int64] = field(init=False)
    within_tissue: NDArray[np.int64] = field(init=False)
    calibration: Calibration = field(default_factory=Calibration)
    labels: LabelScores = field(init=False)
    images: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.classes), len(self.classes)), np.int64)
        self.within_tissue = np.zeros((len(label_indices(self.classes)),) * 2, np.int64)
        self.labels = LabelScores(self.classes)

    def add_class_map(self, truth: ClassMap, predicted: ClassMap) -> None:
        """Count the known pixels of one image; both maps are (H, W) uint8."""
        known = truth != IGNORE
        self.confusion += _counted(truth[known], predicted[known], len(self.classes))

    def add_logits(self, truth: ClassMap, logits: Tensor) -> None:
        """Count what the logits of one image say beside its class map.

        Args:
            truth: The true classes, (H, W) uint8.
            logits: float (C, H, W).
        """
        tissue = label_indices(self.classes)
        of_tissue = logits[list(tissue)].argmax(dim=0).numpy()
        is_tissue = np.isin(truth, tissue)
        place = np.searchsorted(tissue, truth[is_tissue])
        self.within_tissue += _counted(place, of_tissue[is_tissue], len(tissue))
        thinned = torch.from_numpy(truth[_THINNED].astype(np.int64))
        known = thinned != IGNORE
        self.calibration.add(logits[:, *_THINNED].permute(1, 2, 0)[known], thinned[known])

    def add_confidence(self, truth: ClassMap, predicted: ClassMap, confidence: ConfidenceMap) -> None:
        """Count the confidences of one image, at the pixels that `add_logits` takes; all three are (H, W) uint8."""
        known = truth[_THINNED] != IGNORE
        right = (predicted == truth)[_THINNED][known]
        self.calibration.unchanged.add_winners(
            torch.from_numpy(confidence[_THINNED][known]) / 255, torch.from_numpy(right)
        )

    def __add__(self, other: "Scores") -> "Scores":
        total = Scores(self.classes, self.calibration + other.calibration, [*self.images, *other.images])
        total.confusion = self.confusion + other.confusion
        total.within_tissue = self.within_tissue + other.within_tissue
        total.labels = self.labels + other.labels
        return total

    @property
    def iou(self) -> list[float]:
        """Intersection over union of each class; NaN for one that is in neither truth nor prediction."""
        return _iou(self.confusion)

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

    def background_given_scores(self) -> dict[str, float]:
        """Return how the label classes are told apart by one who is told where the background is, 0 to 1, by name.

        So WSSS4LUAD counted: its test images came with masks of their background, and what was called otherwise there
        did not count. `miou_background_given` is over the label classes that are in the truth, as `tissue_miou` is;
        `accuracy_background_given` is the share of tissue's pixels that get the right one. Without any, none.
        """
        held = self.within_tissue.sum(axis=1) > 0
        if not held.any():
            return {}
        return {
            "miou_background_given": float(np.mean(np.array(_iou(self.within_tissue))[held])),
            "accuracy_background_given": float(np.diag(self.within_tissue).sum() / self.within_tissue.sum()),
        }

    def confidence_scores(self) -> dict[str, float]:
        """Return `ece`, the expected calibration error of the confidences, by name; without a confidence, none."""
        confidences = self.calibration.unchanged
        return {"ece": confidences.ece} if confidences.pixels else {}

    def as_dict(self) -> dict[str, float]:
        """Every score by name, each 0 to 1, without those that the images say nothing about.

        Those of the class maps, those with the background given, `ece` (the one score that is better the smaller it
        is) and those of the labels.
        """
        of_pixels = {**self.pixel_scores(), **self.background_given_scores(), **self.confidence_scores()}
        return {**of_pixels, **self.labels.scores()}


def _counted(truth: NDArray[Any], called: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return int64 (count, count): how often each true class, the row, was called each class, the column."""
    pairs = truth.astype(np.int64) * count + called
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _iou(confusion: NDArray[np.int64]) -> list[float]:
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    return [float(r / u) if u else float("nan") for r, u in zip(right, union, strict=True)]


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
            one.labels.add(known, labels_as_served(network, sample.image, prediction).tolist())
        if sample.has_mask:
            one.add_class_map(sample.class_map, prediction.class_map)
            one.add_logits(sample.class_map, prediction.logits[0])
            losses.append(segmentation_loss(prediction, sample.class_map, IGNORE))
        counted = {"confusion": one.confusion.tolist(), **one.pixel_scores()} if sample.has_mask else {}
        one.images = [{"name": sample.name, **counted}]
        total = total + one
    return total, losses
