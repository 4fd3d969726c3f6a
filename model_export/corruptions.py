"""Ways to spoil an image that a worse scanner, another stain or another scale would have. Each is fixed.

The stains are changed by the formula that training jitters them with (`training/augment.py`), and brightness likewise,
if further than training goes: what they show is how far a network carries what it was taught, not how it takes the
stains of another laboratory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageFilter

from app.pathology.arrays import ClassMap, RgbImage
from model_export.training.augment import change_stain


@dataclass(frozen=True, slots=True)
class Corruption:
    """One way to spoil an image.

    Attributes:
        name: For the table.
        change: The image, (H, W, 3) uint8, as the network gets it; of any size.
        restore: The inverse, for a class map, where `change` turns the image.
    """

    name: str
    change: Callable[[RgbImage], RgbImage]
    restore: Callable[[ClassMap], ClassMap] = lambda class_map: class_map


def jpeg(image: RgbImage, quality: int) -> RgbImage:
    """Return the image as it is after a JPEG of `quality`."""
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def blurred(image: RgbImage, sigma_px: float) -> RgbImage:
    """Return the image out of focus: Gaussian blur."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma_px)))


def _brightness(factor: float) -> Callable[[RgbImage], RgbImage]:
    return lambda image: (image * factor).round().clip(0, 255).astype(np.uint8)


def _stain(haematoxylin: float, eosin: float) -> Callable[[RgbImage], RgbImage]:
    scale = torch.tensor([haematoxylin, eosin, 1.0]).view(1, 1, 1, 3)

    def change(image: RgbImage) -> RgbImage:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
        changed = change_stain(pixels, scale, torch.zeros_like(scale))
        return np.ascontiguousarray(changed[0].permute(1, 2, 0).round().numpy().astype(np.uint8))

    return change


def _resized(image: RgbImage, width: int, height: int) -> RgbImage:
    return np.asarray(Image.fromarray(image).resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC))


def _scale(factor: float) -> Callable[[RgbImage], RgbImage]:
    return lambda image: _resized(image, round(image.shape[1] * factor), round(image.shape[0] * factor))


def _scale_and_back(factor: float) -> Callable[[RgbImage], RgbImage]:
    """What is left of the image where the service is told its spacing and brings it back to the model's."""
    return lambda image: _resized(_scale(factor)(image), image.shape[1], image.shape[0])


CORRUPTIONS = (
    Corruption("none", lambda image: image),
    Corruption("mirrored", lambda image: image[:, ::-1].copy(), lambda class_map: class_map[:, ::-1]),
    Corruption("turned by 90 degrees", lambda image: np.rot90(image).copy(), lambda class_map: np.rot90(class_map, -1)),
    Corruption("JPEG quality 50", partial(jpeg, quality=50)),
    Corruption("Gaussian blur, sigma 1 px", partial(blurred, sigma_px=1)),
    Corruption("Gaussian blur, sigma 2 px", partial(blurred, sigma_px=2)),
    Corruption("brightness x 0.8", _brightness(0.8)),
    Corruption("brightness x 1.2", _brightness(1.2)),
    Corruption("haematoxylin x 0.6", _stain(0.6, 1)),
    Corruption("haematoxylin x 1.5", _stain(1.5, 1)),
    Corruption("eosin x 0.6", _stain(1, 0.6)),
    Corruption("eosin x 1.5", _stain(1, 1.5)),
    Corruption("haematoxylin x 1.4, eosin x 0.7", _stain(1.4, 0.7)),
    Corruption("haematoxylin x 0.7, eosin x 1.4", _stain(0.7, 1.4)),
    Corruption("scale x 0.5", _scale(0.5)),
    Corruption("scale x 0.5, brought back", _scale_and_back(0.5)),
    Corruption("scale x 2", _scale(2)),
    Corruption("scale x 2, brought back", _scale_and_back(2)),
)
