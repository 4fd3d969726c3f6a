"""Pictures for people: rows of image, truth, prediction and errors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass
from model_export.atomic import replacing
from model_export.training.dataset import IGNORE, Sample
from model_export.training.scores import Scores

_CELL_PX = 240
_GAP_PX = 6
_CAPTION_PX = 24
_FONT_PX = 14
_TITLES = ("image", "truth", "prediction", "errors")
_UNKNOWN = (128, 128, 128)
_WRONG = (230, 30, 140)
"""A colour that neither H&E nor the palette has."""
_DIM = 0.25
"""How much of its colour the image keeps where the prediction is right, beside white."""


def write_grid(
    path: Path, samples: Sequence[Sample], predictions: Sequence[ClassMap], classes: Sequence[TissueClass]
) -> None:
    """Write a PNG with a row for each sample: image, truth, prediction, errors, and its scores under it.

    Grey is what is not known. Errors are bright on the dimmed image.
    """
    font = ImageFont.load_default(_FONT_PX)
    row_px = _CELL_PX + _CAPTION_PX + _GAP_PX
    width = len(_TITLES) * (_CELL_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, row_px * len(samples) + 2 * _CAPTION_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(_TITLES):
        pen.text((_left(column), 5), title, fill="black", font=font)
    for row, (sample, predicted) in enumerate(zip(samples, predictions, strict=True)):
        top = row * row_px + _CAPTION_PX
        maps = [colourise(sample.class_map, classes), colourise(predicted, classes), errors(sample, predicted)]
        for column, pixels in enumerate([sample.image, *maps]):
            smooth = column == 0
            cell = Image.fromarray(pixels).resize(
                (_CELL_PX, _CELL_PX), Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
            )
            sheet.paste(cell, (_left(column), top))
        pen.text((_left(0), top + _CELL_PX + 3), _caption(sample, predicted, classes), fill="black", font=font)
    _legend(pen, font, row_px * len(samples) + _CAPTION_PX, classes)
    with replacing(path) as file:
        sheet.save(file, "PNG")


def colourise(class_map: ClassMap, classes: Sequence[TissueClass]) -> np.ndarray:
    """Return (H, W, 3) uint8 in the classes' colours."""
    table = np.full((IGNORE + 1, 3), _UNKNOWN, np.uint8)
    table[: len(classes)] = [tissue.color for tissue in classes]
    return table[class_map]


def errors(sample: Sample, predicted: ClassMap) -> np.ndarray:
    """Return (H, W, 3) uint8: the image, dimmed where (H, W) `predicted` is right, bright where it is wrong."""
    picture = (255 - _DIM * (255 - sample.image.astype(np.float32))).astype(np.uint8)
    picture[sample.class_map != predicted] = _WRONG
    picture[sample.class_map == IGNORE] = _UNKNOWN
    return picture


def _left(column: int) -> int:
    return _GAP_PX + column * (_CELL_PX + _GAP_PX)


def _caption(sample: Sample, predicted: ClassMap, classes: Sequence[TissueClass]) -> str:
    scores = Scores(classes)
    scores.add_class_map(sample.class_map, predicted)
    named = (f"{name.replace('_', ' ')} {value:.2f}" for name, value in reversed(scores.pixel_scores().items()))
    return f"{sample.name}   " + "   ".join(named)


def _legend(
    pen: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    top: int,
    classes: Sequence[TissueClass],
) -> None:
    entries = [*((tissue.name, tissue.color) for tissue in classes), ("unknown", _UNKNOWN), ("wrong", _WRONG)]
    for index, (name, color) in enumerate(entries):
        left = _GAP_PX + index * 130
        pen.rectangle((left, top + 5, left + 14, top + 19), fill=color, outline="black")
        pen.text((left + 20, top + 4), name, fill="black", font=font)
