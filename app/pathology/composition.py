"""What a patch is made of: from class map and label probabilities to fractions and labels."""

from collections.abc import Sequence

import numpy as np

from app.pathology.arrays import ClassMap, Probabilities
from app.pathology.classes import TissueClass, label_indices
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


def tissue_fractions(amounts: Sequence[float], classes: Sequence[TissueClass]) -> tuple[float | None, ...]:
    """Return each class's share of the tissue, 0 to 1: its pixels by those of all classes that can be labels.

    Args:
        amounts: Of each class: its pixels, or its share of all pixels.
        classes: The classes, in the same order.

    Returns:
        One for each class; None for a class that is no label, and for every class where there is no tissue.
    """
    tissue = sum(amounts[index] for index in label_indices(classes))
    return tuple(
        amount / tissue if tissue and each.label else None for amount, each in zip(amounts, classes, strict=True)
    )


def present_labels(manifest: ModelManifest, probabilities: Probabilities | Sequence[float]) -> tuple[TissueClass, ...]:
    """Return the label classes whose probability reaches its threshold, in list order."""
    triples = zip(manifest.label_classes, probabilities, manifest.label_thresholds, strict=True)
    return tuple(tissue for tissue, probability, threshold in triples if probability >= threshold)
