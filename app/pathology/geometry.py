"""Sizes and places, in pixels, and what one may span. Width before height, x before y; arrays are (height, width)."""

import math
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import NDArray

LEAST_UM_PER_PX, MOST_UM_PER_PX = 0.05, 10.0
"""Spacings of a light microscope's images: finer than 100x, and so coarse that a pixel is a whole nucleus."""
_MOST_ANISOTROPY = 1.02
"""The longer side of a pixel over the shorter one, up to which pixels count as square."""


@dataclass(frozen=True, slots=True)
class Size:
    """The extent of an image, in pixels, each side at least 1."""

    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        if self.width_px < 1 or self.height_px < 1:
            raise ValueError(f"a size has sides of at least 1 px, not {self}")

    @classmethod
    def of(cls, image: NDArray[Any]) -> Self:
        """Return the size of an (H, W, ...) array."""
        return cls(image.shape[1], image.shape[0])

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px} px"

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return self.width_px * self.height_px

    @property
    def longest_px(self) -> int:
        """The longer of the two sides."""
        return max(self.width_px, self.height_px)

    def rounded_up(self, stride_px: int) -> "Size":
        """Return the smallest size that holds this one and whose sides are multiples of `stride_px`."""
        return Size(-(-self.width_px // stride_px) * stride_px, -(-self.height_px // stride_px) * stride_px)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of pixels: its top left corner (x, y) from the image's top left, and its size."""

    x_px: int
    y_px: int
    size: Size

    @property
    def slices(self) -> tuple[slice, slice]:
        """(rows, columns) to index an (H, W, ...) array with."""
        return (
            slice(self.y_px, self.y_px + self.size.height_px),
            slice(self.x_px, self.x_px + self.size.width_px),
        )

    def within(self, outer: "Region") -> "Region":
        """Return this region in the coordinates of `outer`, which holds it."""
        return Region(self.x_px - outer.x_px, self.y_px - outer.y_px, self.size)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a patch lies on its slide.

    Attributes:
        x_px: The patch's left edge, in the slide's full-resolution pixels.
        y_px: Its top edge, likewise.
        downsample: Full-resolution pixels in one pixel of the patch, along a side.
    """

    x_px: float = 0.0
    y_px: float = 0.0
    downsample: float = 1.0


def of_square_pixels(down: float, across: float) -> float | None:
    """Return the mean of two spacings, None where one is no positive number or they differ by more than 2 %."""
    if not (0 < down < math.inf and 0 < across < math.inf):
        return None
    return (down + across) / 2 if max(down, across) <= _MOST_ANISOTROPY * min(down, across) else None


def of_microscope(um_per_px: float | None) -> float | None:
    """Return a spacing, None where it is not known or not one that a light microscope gives."""
    return um_per_px if um_per_px is not None and LEAST_UM_PER_PX <= um_per_px <= MOST_UM_PER_PX else None


def area_mm2(size: Size, um_per_px: float | None) -> float | None:
    """Return the area of an image, None where its spacing is not known."""
    return None if um_per_px is None else size.pixels * (um_per_px / 1000) ** 2
