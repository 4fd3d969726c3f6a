"""H&E patches spoiled in ways that a warning should notice, and pictures that never were H&E.

JPEG and blur are in `model_export/corruptions.py`.
"""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from app.pathology.arrays import RgbImage

INKS = {"blue": (25, 45, 150), "green": (20, 120, 70), "red": (200, 30, 45), "black": (35, 35, 40)}
"""What white glass looks like through a stroke of each pen, sRGB."""

_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB; Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001)."""
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)


def brighter(image: RgbImage, factor: float) -> RgbImage:
    """Return the image under light that is `factor` times as strong."""
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def marked(image: RgbImage, ink: str, share: float, rng: np.random.Generator) -> RgbImage:
    """Return the image with pen strokes over about `share` of it, 0 to 1; tissue shows through (Beer-Lambert)."""
    height, width = image.shape[:2]
    side = min(height, width)
    mask = Image.new("L", (width, height))
    drawing = ImageDraw.Draw(mask)
    line_px = max(3, int(rng.uniform(0.08, 0.2) * side * min(1, share / 0.05)))
    while np.count_nonzero(mask) < share * width * height:
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * np.pi)
        for _ in range(6):
            angle += rng.normal(0, 0.5)
            end = (x + 0.25 * side * np.cos(angle), y + 0.25 * side * np.sin(angle))
            drawing.line([(x, y), end], fill=255, width=line_px)
            x, y = end
            if np.count_nonzero(mask) >= share * width * height:
                break
    cover = np.asarray(mask.filter(ImageFilter.GaussianBlur(1.2)))[..., None] / 255
    density = -np.log((np.array(INKS[ink]) + 1) / 256) * rng.uniform(0.6, 1.1)
    return np.clip((image + 1.0) * np.exp(-cover * density) - 1, 0, 255).astype(np.uint8)


def as_ihc(image: RgbImage) -> RgbImage:
    """Return the image with DAB where its eosin was, and paler haematoxylin."""
    amounts = np.maximum(-np.log((image + 1.0) / 256) @ np.linalg.inv(_STAINS), 0)
    density = amounts[..., :1] * 0.8 * _STAINS[0] + amounts[..., 1:2] * _STAINS[2]
    return np.clip(np.exp(-density) * 256 - 1, 0, 255).astype(np.uint8)


def as_grey(image: RgbImage) -> RgbImage:
    """Return the image without its colours."""
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def swapped(order: str) -> Callable[[RgbImage], RgbImage]:
    """Return what puts the channels into `order`, as in "bgr"."""
    return lambda image: np.ascontiguousarray(image[..., ["rgb".index(channel) for channel in order]])


def blanks(rng: np.random.Generator) -> Iterator[RgbImage]:
    """Yield evenly lit nothing, white to black, with and without the noise of a camera."""
    for level in ((255, 255, 255), (245, 244, 246), (230, 228, 233), (200,) * 3, (128,) * 3, (60,) * 3, (0,) * 3):
        for sigma in (0, 1.5, 4):
            yield np.clip(level + rng.normal(0, sigma, (224, 224, 3)), 0, 255).astype(np.uint8)


def noise(rng: np.random.Generator) -> Iterator[RgbImage]:
    """Yield noise: of each pixel and channel, of each pixel, and of coloured clouds."""
    for _ in range(10):
        yield rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
        yield np.repeat(rng.integers(0, 256, (224, 224, 1), dtype=np.uint8), 3, axis=2)
        clouds = rng.normal(128, 60, (28, 28, 3)).clip(0, 255).astype(np.uint8)
        yield np.asarray(Image.fromarray(clouds).resize((224, 224)))
