"""What a patch costs beside the model: processor time of decoding, judging, counting and painting, and of a plain way.

    python -m benchmarks.image_work --side 224

The plain ways are Pillow's and numpy's own, written for reading; tests hold what is served against them. Both take
turns on one drawn patch, and a thread's own processor time is taken, which does not count the time that other programs
run.
"""

import statistics
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import click
import numpy as np
from PIL import Image

from app.imaging.appearance import appearance
from app.imaging.decode import decode, decode_by_pillow
from app.imaging.paint import paint_confidence, paint_mask, paint_overlay
from app.imaging.sharpness import sharpness
from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.classes import WSSS4LUAD
from app.pathology.composition import pixel_counts
from app.pathology.geometry import Size
from model_export.synthetic import draw_patch

_MAX_SIDE_PX = 4096
_OPACITY = 0.4
_PALETTE = [channel for tissue in WSSS4LUAD for channel in tissue.color]
_LEVEL = 1
"""Pillow's lowest compression that compresses."""


@click.command()
@click.option("--side", "side_px", default=224, type=click.IntRange(32, _MAX_SIDE_PX), help="Side of the patch, px.")
@click.option("--rounds", default=100, type=click.IntRange(1), help="Runs of each.")
def main(side_px: int, rounds: int) -> None:
    """Print the medians of both ways, their ratio, and the sizes of what they write."""
    image, class_map = draw_patch(0, Size(side_px, side_px))
    confidence = image[..., 0].copy()
    png, jpeg = _saved(Image.fromarray(image), "PNG"), _saved(Image.fromarray(image), "JPEG", quality=90)
    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "decode a PNG": (lambda: decode_by_pillow(png, _MAX_SIDE_PX), lambda: decode(png, _MAX_SIDE_PX)),
        "decode a JPEG": (lambda: decode_by_pillow(jpeg, _MAX_SIDE_PX), lambda: decode(jpeg, _MAX_SIDE_PX)),
        "appearance": (lambda: plain_appearance(image), lambda: appearance(image)),
        "of it, sharpness": (lambda: plain_sharpness(image), lambda: sharpness(image)),
        "pixel counts": (lambda: np.bincount(class_map.ravel(), minlength=4), lambda: pixel_counts(class_map, 4)),
        "mask": (lambda: plain_mask(class_map), lambda: paint_mask(class_map, WSSS4LUAD)),
        "overlay": (
            lambda: plain_overlay(image, class_map),
            lambda: paint_overlay(image, class_map, WSSS4LUAD, _OPACITY),
        ),
        "confidence": (
            lambda: _saved(Image.fromarray(confidence), "PNG", compress_level=_LEVEL),
            lambda: paint_confidence(confidence),
        ),
    }
    for name, (plain, served) in work.items():
        spent: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for way, milliseconds in zip((plain, served), spent, strict=True):
                milliseconds.append(_spent(way))
        slow, fast = map(statistics.median, spent)
        written = [f"{len(way())} bytes" for way in (plain, served) if isinstance(way(), bytes)]
        click.echo(f"{name:16} plain {slow:8.3f} ms, served {fast:8.3f} ms, x {fast / slow:.2f}  {', '.join(written)}")


def plain_appearance(image: RgbImage) -> tuple[float, float, float, float | None]:
    """Return tissue, H&E stain, ink and sharpness of (H, W, 3) uint8 `image`, as `appearance` defines them."""
    step = -(-max(image.shape[:2]) // 128)
    sample = image[::step, ::step]
    darkest = sample.min(axis=2)
    glass = np.maximum(np.median(sample[darkest >= np.percentile(darkest, 95)], axis=0), 180).astype(int)
    absorbed = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    density = np.maximum(absorbed[sample] - absorbed[glass], 0)
    amount, x, y = _hue_saturation_density(density)
    stain = np.where(amount > 0.07, amount, 0)
    he_coloured = (y >= 0.15) & (x >= -2.5 * y) & (x <= 1.4 * y)
    side = min(4, *density.shape[:2])
    rows, columns = density.shape[0] // side, density.shape[1] // side
    cells = density[: rows * side, : columns * side].reshape(rows, side, columns, side, 3).mean(axis=(1, 3))
    dense, x, y = _hue_saturation_density(cells)
    like_tissue = (x * x + y * y > 0.04) & (x >= -2.14 * y) & (x <= 0.47 * y)
    return (
        float((stain > 0).mean()),
        float(stain[he_coloured].sum() / max(1e-6, stain.sum())),
        float(((dense > 0.4) & ~like_tissue).mean()),
        plain_sharpness(image),
    )


def _hue_saturation_density(density: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    red, green, blue = np.moveaxis(density, 2, 0)
    amount = (red + green + blue) / 3
    whole = np.maximum(amount, np.float32(1e-6))
    return amount, red / whole - 1, (green - blue) / (np.float32(3**0.5) * whole)


def plain_sharpness(image: RgbImage) -> float | None:
    """Return what `sharpness` does of (H, W, 3) uint8 `image`."""
    if min(image.shape[:2]) < 32:
        return None
    fine = coarse = 0.0
    levels, variances = [], []
    for top in _starts(image.shape[0]):
        for left in _starts(image.shape[1]):
            rows, columns = (128 if side > 384 else side for side in image.shape[:2])
            half = _halved(np.log(image[top : top + rows, left : left + columns, 1] + np.float64(1)))
            fine += _detail(half)
            coarse += _detail(_halved(half))
            levels.append(_halved(half).mean())
            variances.append(_halved(half).var())
    if coarse <= 1e-20:
        return None
    level = np.exp(np.mean(levels))
    is_blurred = np.sqrt(fine / len(levels)) * level < 7 and np.sqrt(np.mean(variances)) * level > 4
    return 0.0 if is_blurred else float(np.sqrt(fine / coarse))


def _starts(length_px: int) -> list[int]:
    return [0] if length_px <= 384 else np.linspace(0, length_px - 128, 3).astype(int).tolist()


def _halved(values: np.ndarray) -> np.ndarray:
    rows, columns = values.shape[0] // 2, values.shape[1] // 2
    return values[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2).mean(axis=(1, 3))


def _detail(values: np.ndarray) -> float:
    around = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float(np.mean((4 * values[1:-1, 1:-1] - around) ** 2))


def plain_mask(class_map: ClassMap) -> bytes:
    """Return a palette PNG by Pillow."""
    return _saved(_painted(class_map), "PNG", compress_level=_LEVEL)


def plain_overlay(image: RgbImage, class_map: ClassMap) -> bytes:
    """Return an RGB PNG by Pillow; background, the last class, is left as it is."""
    photo = Image.fromarray(image)
    blended = Image.blend(photo, _painted(class_map).convert("RGB"), _OPACITY)
    shown = Image.fromarray(np.where(class_map == len(WSSS4LUAD) - 1, 0, 255).astype(np.uint8))
    return _saved(Image.composite(blended, photo, shown), "PNG", compress_level=_LEVEL)


def _painted(class_map: ClassMap) -> Image.Image:
    picture = Image.fromarray(class_map)
    picture.putpalette(_PALETTE)
    return picture


def _saved(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def _spent(way: Callable[[], Any]) -> float:
    start = time.thread_time()
    way()
    return 1000 * (time.thread_time() - start)


if __name__ == "__main__":
    main()
