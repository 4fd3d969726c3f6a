"""Maps to pictures: the palette mask, the overlay and the confidence, all PNG."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from app.pathology.arrays import ClassMap, ConfidenceMap, RgbImage
from app.pathology.classes import TissueClass

DEFAULT_OPACITY = 0.4
"""Of an overlay's colours."""

_COMPRESSION = 1
"""zlib level. PNG encoding dominates at higher ones, for masks that are not much smaller."""


def paint_mask(class_map: ClassMap, classes: Sequence[TissueClass]) -> bytes:
    """Return a palette-mode PNG of (H, W) `class_map`; its indices are the class indices."""
    return _png(_indexed(class_map, classes))


def paint_overlay(image: RgbImage, class_map: ClassMap, classes: Sequence[TissueClass], opacity: float) -> bytes:
    """Return an RGB PNG: (H, W, 3) `image` with the label classes' colours blended over it.

    Classes that are no labels (background) leave the image as it is.

    Args:
        image: (H, W, 3) uint8.
        class_map: (H, W) uint8.
        classes: The classes of the class map.
        opacity: Share of the colour in each blended pixel, 0 to 1.
    """
    photo = Image.fromarray(image)
    blended = Image.blend(photo, _indexed(class_map, classes).convert("RGB"), opacity)
    shown = np.zeros(256, np.uint8)
    shown[[index for index, tissue in enumerate(classes) if tissue.label]] = 255
    return _png(Image.composite(blended, photo, Image.fromarray(shown[class_map])))


def paint_confidence(confidence: ConfidenceMap) -> bytes:
    """Return (H, W) `confidence` as an 8-bit greyscale PNG: the winning class's probability times 255."""
    return _png(Image.fromarray(confidence))


def _indexed(class_map: ClassMap, classes: Sequence[TissueClass]) -> Image.Image:
    image = Image.fromarray(class_map)
    image.putpalette([channel for tissue in classes for channel in tissue.color])
    return image


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=_COMPRESSION)
    return file.getvalue()
