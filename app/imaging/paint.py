"""Maps to pictures: the palette mask, the overlay and the confidence, all PNG."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.imaging.png import indexed_png, picture_png
from app.pathology.arrays import ClassMap, ConfidenceMap, RgbImage
from app.pathology.classes import TissueClass

DEFAULT_OPACITY = 0.4
"""Of an overlay's colours."""


def paint_mask(class_map: ClassMap, classes: Sequence[TissueClass], text: bytes = b"") -> bytes:
    """Return a palette-mode PNG of (H, W) `class_map`; its indices are the class indices.

    `text` is what the file says of itself, in chunks; so it is for the other pictures.
    """
    return indexed_png(class_map, bytes(_palette(classes)), text)


def paint_overlay(
    image: RgbImage, class_map: ClassMap, classes: Sequence[TissueClass], opacity: float, text: bytes = b""
) -> bytes:
    """Return an RGB PNG: (H, W, 3) `image` with the label classes' colours blended over it.

    Classes that are no labels (background) leave the image as it is.

    Args:
        image: (H, W, 3) uint8.
        class_map: (H, W) uint8.
        classes: The classes of the class map.
        opacity: Share of the colour in each blended pixel, 0 to 1.
        text: What the file says of itself.
    """
    photo = Image.fromarray(image)
    painted = Image.fromarray(class_map)
    painted.putpalette(_palette(classes))
    blended = Image.blend(photo, painted.convert("RGB"), opacity)
    shown = np.zeros(256, np.uint8)
    shown[[index for index, tissue in enumerate(classes) if tissue.label]] = 255
    return picture_png(np.asarray(Image.composite(blended, photo, Image.fromarray(shown[class_map]))), text)


def paint_confidence(confidence: ConfidenceMap, text: bytes = b"") -> bytes:
    """Return (H, W) `confidence` as an 8-bit greyscale PNG: the winning class's probability times 255."""
    return picture_png(confidence, text)


def _palette(classes: Sequence[TissueClass]) -> list[int]:
    return [channel for tissue in classes for channel in tissue.color]
