"""Pictures for people: rows of image, truth and prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass
from model_export.training.dataset import IGNORE, Sample

_CELL_PX = 240
_CAPTION_PX = 18
_UNKNOWN = (128, 128, 128)


def write_grid(
    path: Path, samples: Sequence[Sample], predictions: Sequence[ClassMap], classes: Sequence[TissueClass]
) -> None:
    """Write a PNG with a row for each sample: image, truth (grey where unknown), prediction."""
    height = _CELL_PX + _CAPTION_PX
    sheet = Image.new("RGB", (3 * (_CELL_PX + 6), height * len(samples) + _CAPTION_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(("image", "truth", "prediction")):
        pen.text((column * (_CELL_PX + 6) + 4, 3), title, fill="black")
    for row, (sample, predicted) in enumerate(zip(samples, predictions, strict=True)):
        top = row * height + _CAPTION_PX
        pictures = (sample.image, colourise(sample.class_map, classes), colourise(predicted, classes))
        for column, (pixels, filter_) in enumerate(zip(pictures, (1, 0, 0), strict=True)):
            cell = Image.fromarray(pixels)
            cell = cell.resize((_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC if filter_ else Image.Resampling.NEAREST)
            sheet.paste(cell, (column * (_CELL_PX + 6), top))
        pen.text((4, top + _CELL_PX + 2), sample.name, fill="black")
    sheet.save(path)


def colourise(class_map: ClassMap, classes: Sequence[TissueClass]) -> np.ndarray:
    """Return (H, W, 3) uint8 in the classes' colours."""
    table = np.full((IGNORE + 1, 3), _UNKNOWN, np.uint8)
    table[: len(classes)] = [tissue.color for tissue in classes]
    return table[class_map]
