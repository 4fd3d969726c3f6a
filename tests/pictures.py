"""Images for tests, and reading the ones that come back."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from app.pathology.arrays import RgbImage

RED, GREEN, BLUE, WHITE, ORANGE = (180, 20, 20), (20, 180, 20), (20, 20, 180), (255, 255, 255), (243, 152, 0)


def plain(color: tuple[int, int, int], width: int, height: int) -> RgbImage:
    return np.full((height, width, 3), color, np.uint8)


def noise(width: int, height: int, seed: int = 0) -> RgbImage:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def quarters(width: int, height: int) -> RgbImage:
    """Tumor top left, stroma top right, normal bottom left, background bottom right, for the colour segmenter."""
    image = plain(WHITE, width, height)
    image[: height // 2, : width // 2] = BLUE
    image[: height // 2, width // 2 :] = GREEN
    image[height // 2 :, : width // 2] = ORANGE
    return image


def encoded(image: np.ndarray | Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, file_format, **options)
    return file.getvalue()


def opened(png: bytes) -> Image.Image:
    image = Image.open(BytesIO(png))
    image.load()
    return image


def from_base64(picture: dict[str, Any]) -> Image.Image:
    return opened(base64.b64decode(picture["base64"], validate=True))
