"""Windows' results back to the patch's."""

import numpy as np

from app.pathology.arrays import ClassMap, ConfidenceMap
from app.pathology.geometry import Size
from app.pathology.tiling import Window


class Stitcher:
    """Collects windows' results, in any order, into maps of the patch.

    Attributes:
        class_map: (H, W) uint8; complete once every window was added.
        confidence: (H, W) uint8, likewise.
    """

    def __init__(self, size: Size) -> None:
        self.class_map: ClassMap = np.zeros((size.height_px, size.width_px), np.uint8)
        self.confidence: ConfidenceMap = np.zeros_like(self.class_map)

    def add(self, window: Window, class_map: ClassMap, confidence: ConfidenceMap) -> None:
        """Put the part to keep in its place; both maps are at least as large as what the window read."""
        inner = window.keep.within(window.read).slices
        self.class_map[window.keep.slices] = class_map[inner]
        self.confidence[window.keep.slices] = confidence[inner]
