"""What use cases need of a slide, wherever it lies."""

from dataclasses import dataclass
from typing import Protocol

from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of a slide.

    Attributes:
        size: In px of this level.
        um_per_px: Pixel spacing, along a side; None when the slide does not say.
        downsample: Pixels of the finest level in one of this level's, along a side; 1 for the finest.
    """

    size: Size
    um_per_px: float | None
    downsample: float


class Slide(Protocol):
    """A pyramid of levels.

    Attributes:
        levels: Finest first, at least one.
    """

    levels: tuple[Level, ...]

    def read(self, level: int, region: Region) -> RgbImage:
        """Return (H, W, 3) uint8 pixels of `region`, which lies within the level `levels[level]`.

        Blocks; several threads may call it at once.

        Raises:
            SlideUnreadable: The slide, or what holds it, does not give these pixels.
        """
        ...
