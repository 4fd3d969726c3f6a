"""A level of a slide as if it had been scanned at another pixel spacing, read a region at a time."""

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from app.imaging.resampling import resample_image
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides.slide import Level, Slide

_REACH_PX = 2.5
"""How far bicubic resampling looks from a pixel's centre, in px of the coarser grid: 2, and half of the last one."""
_PIECE_PX = 4096
"""The longest side of what is read of a level at once, without its margins: however fine it is, memory is bounded."""


class View:
    """A level on a grid of its own, each of whose pixels spans `step` of the level's along a side.

    The grid begins in the level's top left corner. Its last row and column may reach past the level, whose border is
    repeated there. A pixel is the same with whatever region it is read: that of the whole level, resampled at once. For
    that, a region is read with a margin as wide as the filter, from and to where borders of both grids coincide.

    Args:
        slide: Of which.
        index: The level's, in the slide.
        step: 1 for the level itself.

    Attributes:
        index: The level's, in the slide.
        step: Pixels of the level in one of the grid's, along a side.
        source: The level.
        level: What the grid would be as a level of the slide.
    """

    def __init__(self, slide: Slide, index: int, step: Fraction) -> None:
        self._slide = slide
        self.source = source = slide.levels[index]
        self.index = index
        self.step = step
        self.level = Level(
            size=Size(math.ceil(source.size.width_px / step), math.ceil(source.size.height_px / step)),
            um_per_px=None if source.um_per_px is None else source.um_per_px * float(step),
            downsample=source.downsample * float(step),
        )

    def read(self, region: Region) -> RgbImage:
        """Return (H, W, 3) uint8 pixels of a region of the grid. Blocks; several threads may call it at once.

        Raises:
            SlideUnreadable: The slide, or what holds it, does not give these pixels.
            OutOfMemory: There is no memory to resample them now.
        """
        if self.step == 1:
            return self._slide.read(self.index, region)
        image = np.empty((region.size.height_px, region.size.width_px, 3), np.uint8)
        for piece in self._pieces(region):
            image[piece.within(region).slices] = self._resampled(piece)
        return image

    def _pieces(self, region: Region) -> Iterator[Region]:
        side = max(1, int(_PIECE_PX / self.step))
        right, bottom = region.x_px + region.size.width_px, region.y_px + region.size.height_px
        for y in range(region.y_px, bottom, side):
            for x in range(region.x_px, right, side):
                yield Region(x, y, Size(min(side, right - x), min(side, bottom - y)))

    def _resampled(self, piece: Region) -> RgbImage:
        left, right = self._around(piece.x_px, piece.size.width_px, self.level.size.width_px)
        top, bottom = self._around(piece.y_px, piece.size.height_px, self.level.size.height_px)
        x, end_x, y, end_y = (int(border * self.step) for border in (left, right, top, bottom))
        size = Size(min(end_x, self.source.size.width_px) - x, min(end_y, self.source.size.height_px) - y)
        pixels = self._slide.read(self.index, Region(x, y, size))
        beyond = ((0, end_y - y - size.height_px), (0, end_x - x - size.width_px), (0, 0))
        if np.any(beyond):
            pixels = np.pad(pixels, beyond, mode="edge")
        around = Region(left, top, Size(right - left, bottom - top))
        return resample_image(pixels, around.size)[piece.within(around).slices]

    def _around(self, start: int, length: int, total: int) -> tuple[int, int]:
        """Return where to begin and end, along one side of the grid, so that no pixel feels the cut."""
        margin = math.ceil(_REACH_PX * max(1.0, float(1 / self.step)))
        whole = self.step.denominator  # so many px of the grid are a whole number of the level's
        end = min(-(-(start + length + margin) // whole), -(-total // whole)) * whole
        return max(0, (start - margin) // whole * whole), end
