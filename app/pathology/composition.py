"""What a patch is made of: from class map and label probabilities to fractions and labels."""

from collections.abc import Sequence

import numpy as np

from app.pathology.arrays import ClassMap, Probabilities
from app.pathology.classes import TissueClass
from app.pathology.manifest import ModelManifest


def pixel_counts(class_map: ClassMap, class_count: int) -> list[int]:
    """Return how many pixels of `class_map`, (H, W) uint8, each class has.

    Raises:
        ValueError: An index is not below `class_count`.
    """
    # Class by class: `np.bincount` first makes eight bytes of each.
    counts = [int(np.count_nonzero(class_map == index)) for index in range(class_count)]
    if sum(counts) != class_map.size:
        raise ValueError(f"class index {class_map.max()} is outside 0 to {class_count - 1}")
    return counts


def present_labels(manifest: ModelManifest, probabilities: Probabilities | Sequence[float]) -> tuple[TissueClass, ...]:
    """Return the label classes whose probability reaches its threshold, in list order."""
    triples = zip(manifest.label_classes, probabilities, manifest.label_thresholds, strict=True)
    return tuple(tissue for tissue, probability, threshold in triples if probability >= threshold)
