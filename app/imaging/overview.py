"""An image from afar, gathered from parts of it in any order, such as the windows that a model sees of a slide."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.geometry import Region, Size


class Overview:
    """The means of an image's blocks of `step` by `step` px; those in its last row and column may be partial.

    A pixel that lies in several parts counts as often. Takes 16 bytes for each pixel of the overview.

    Args:
        whole: The image's size.
        longest_px: The longest side that the overview may have.

    Attributes:
        step: Px of the image in one of the overview's, along a side.
        size: The overview's.
    """

    def __init__(self, whole: Size, longest_px: int) -> None:
        self._whole = whole
        self.step = step = -(-whole.longest_px // longest_px)
        self.size = Size(-(-whole.width_px // step), -(-whole.height_px // step))
        # A sum has room for blocks of 2,000 px a side that lie in four parts each.
        self._sums: NDArray[np.uint32] = np.zeros((self.size.height_px, self.size.width_px, 3), np.uint32)
        self._counts: NDArray[np.uint32] = np.zeros((self.size.height_px, self.size.width_px, 1), np.uint32)

    def add(self, region: Region, pixels: RgbImage) -> None:
        """Add the (H, W, 3) uint8 pixels of a region of the image."""
        down = self._sums_of_blocks(pixels, region.y_px)  # (blocks down, W, 3)
        sums = self._sums_of_blocks(down.swapaxes(0, 1), region.x_px).swapaxes(0, 1)  # (blocks down, blocks across, 3)
        heights = self._sums_of_blocks(np.ones(region.size.height_px, np.uint8), region.y_px)
        widths = self._sums_of_blocks(np.ones(region.size.width_px, np.uint8), region.x_px)
        top, left = region.y_px // self.step, region.x_px // self.step
        place = slice(top, top + len(heights)), slice(left, left + len(widths))
        self._sums[place] += sums
        self._counts[place] += np.outer(heights, widths)[..., np.newaxis]

    def image(self) -> RgbImage:
        """Return (H, W, 3) uint8; a block of which no pixel was added is black."""
        counts = np.maximum(self._counts, 1)
        image: RgbImage = ((self._sums + counts // 2) // counts).astype(np.uint8)
        return image

    def nearest(self, class_map: ClassMap) -> ClassMap:
        """Return (H, W) uint8 of the overview's size: of a map of the whole image, the value amid each block."""
        rows, columns = (
            np.minimum(np.arange(blocks) * self.step + self.step // 2, side - 1)
            for blocks, side in (
                (self.size.height_px, self._whole.height_px),
                (self.size.width_px, self._whole.width_px),
            )
        )
        painted: ClassMap = class_map[np.ix_(rows, columns)]
        return painted

    def _sums_of_blocks(self, values: NDArray[Any], start: int) -> NDArray[np.uint32]:
        """Return (B, ...) uint32, for each block that (N, ...) unsigned `values` touch, their sum along the first axis.

        Added one row of all blocks at a time, which takes a third of the time of `np.add.reduceat`.

        Args:
            values: What lies at `start` and behind it.
            start: In px of the image.
        """
        first, end = start // self.step, -(-(start + len(values)) // self.step)
        sums = np.zeros((end - first, *values.shape[1:]), np.uint32)
        for offset in range(min(self.step, len(values))):
            row_of_each = values[offset :: self.step]
            block = (start + offset) // self.step - first
            sums[block : block + len(row_of_each)] += row_of_each
        return sums
