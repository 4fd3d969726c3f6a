"""What a graph says of windows, by itself: whoever hands results on need not load a runtime."""

from dataclasses import dataclass

import numpy as np

from app.errors import no_memory_to
from app.pathology.arrays import ClassMap, ConfidenceMap, Probabilities

NO_MEMORY = no_memory_to("run the model on this image")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What the graph says of N windows.

    Attributes:
        class_maps: (N, H, W) uint8.
        confidences: (N, H, W) uint8, the probability times 255.
        label_probabilities: (N, L) float32.
    """

    class_maps: np.ndarray
    confidences: np.ndarray
    label_probabilities: Probabilities


@dataclass(frozen=True, slots=True)
class WindowResult:
    """What the model says of one window.

    Attributes:
        class_map: (H, W) uint8, of the padded window.
        confidence: (H, W) uint8, likewise.
        label_probabilities: (L,) float32.
    """

    class_map: ClassMap
    confidence: ConfidenceMap
    label_probabilities: Probabilities
