"""H&E-like patches drawn from a seed: for examples, golden pairs, verification and tests, where no real slide may go.

Tissue is laid out by smooth noise, stained in optical density (Beer-Lambert) and is nobody's. It looks like H&E to a
network; it is no substitute for tissue in training or scoring.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.classes import BACKGROUND, NORMAL, STROMA, TUMOR, WSSS4LUAD, TissueClass
from app.pathology.geometry import Size

_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_EOSIN = np.array([0.07, 0.95, 0.35])
"""Optical density of the two stains; Ruifrok and Johnston (2001), the eosin towards the salmon of lung sections."""

_Field = NDArray[np.float64]


def draw_patch(seed: int, size: Size, tissues: Sequence[TissueClass] = (TUMOR, STROMA)) -> tuple[RgbImage, ClassMap]:
    """Draw a patch of `tissues` and glass; a small one need not hold all of them.

    Args:
        seed: The same seed gives the same patch.
        size: The patch's size.
        tissues: Some of tumor, stroma and normal; none gives glass alone.

    Returns:
        The image, (H, W, 3) uint8, and its class map, (H, W) uint8.
    """
    rng = np.random.default_rng(seed)
    shape = (size.height_px, size.width_px)
    class_map = np.full(shape, WSSS4LUAD.index(BACKGROUND), np.uint8)
    if tissues:
        votes = np.stack([_smooth_noise(rng, shape, 48) for _ in tissues])
        winner = votes.argmax(axis=0)
        for position, tissue in enumerate(tissues):
            class_map[winner == position] = WSSS4LUAD.index(tissue)
    tumor, stroma, normal = (class_map == WSSS4LUAD.index(tissue) for tissue in (TUMOR, STROMA, NORMAL))

    lumen = tumor & (_smooth_noise(rng, shape, 14) > 1.2)
    air = normal & (np.abs(_smooth_noise(rng, shape, 16)) > 0.28)
    cleft = stroma & (_smooth_noise(rng, shape, 9) > 2.0)
    empty = lumen | air | cleft
    class_map[empty] = WSSS4LUAD.index(BACKGROUND)
    tumor, stroma, normal = tumor & ~empty, stroma & ~empty, normal & ~empty

    fibres = _fibres(rng, shape)
    grain = _smooth_noise(rng, shape, 2.5)
    eosin = (
        tumor * (0.42 + 0.05 * grain) + stroma * (0.5 + 0.22 * fibres + 0.05 * grain) + normal * (0.5 + 0.15 * grain)
    )
    haematoxylin = tumor * (0.22 + 0.05 * grain) + stroma * 0.05 + normal * 0.02
    haematoxylin += tumor * _nuclei(rng, size, spacing_px=9, radius_px=3.6, roundness=0.75) * 0.75
    haematoxylin += stroma * _nuclei(rng, size, spacing_px=21, radius_px=3.8, roundness=0.3) * 0.8
    haematoxylin += normal * _nuclei(rng, size, spacing_px=13, radius_px=2.2, roundness=0.5) * 0.6
    density = _soft(eosin)[..., None] * _EOSIN + _soft(haematoxylin)[..., None] * _HAEMATOXYLIN
    light = np.array([243.0, 242.0, 244.0]) + rng.normal(0, 1.5, (*shape, 3))
    return np.clip(light * np.exp(-density), 0, 255).round().astype(np.uint8), class_map


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale_px: float) -> _Field:
    """Return Gaussian noise of unit variance, smooth over about `scale_px`."""
    spectrum = np.fft.rfft2(rng.normal(size=shape))
    frequency_squared = np.fft.fftfreq(shape[0])[:, None] ** 2 + np.fft.rfftfreq(shape[1])[None, :] ** 2
    noise = np.fft.irfft2(spectrum * np.exp(-2 * (np.pi * scale_px) ** 2 * frequency_squared), shape)
    return np.asarray(noise / max(1e-9, float(noise.std())))


def _fibres(rng: np.random.Generator, shape: tuple[int, int]) -> _Field:
    """Return wavy parallel bundles, -1 to 1."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    angle = rng.uniform(0, np.pi)
    phase = (x * np.cos(angle) + y * np.sin(angle)) / 2.2 + 5 * _smooth_noise(rng, shape, 24)
    return np.asarray(np.sin(phase) * (0.6 + 0.4 * np.tanh(_smooth_noise(rng, shape, 6))))


def _nuclei(rng: np.random.Generator, size: Size, spacing_px: float, radius_px: float, roundness: float) -> _Field:
    """Return the darkness, 0 to 1, of nuclei strewn over the patch about `spacing_px` apart."""
    nuclei = [
        (
            column + rng.normal(0, spacing_px / 4),
            row + rng.normal(0, spacing_px / 4),
            radius_px * rng.uniform(0.75, 1.35),
            rng.uniform(0, np.pi),
            rng.uniform(150, 255),
        )
        for row in np.arange(0, size.height_px + spacing_px, spacing_px)
        for column in np.arange(0, size.width_px + spacing_px, spacing_px)
    ]
    x, y, long, angle, darkness = np.array(nuclei).T[..., None]  # each (N, 1)
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    u, v = long * np.cos(turn), long * roundness * np.sin(turn)  # (N, 12)
    across, down = x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)
    outlines = np.stack([across, down], axis=-1).reshape(len(nuclei), -1).tolist()
    drawing = Image.new("L", (size.width_px, size.height_px))
    pen = ImageDraw.Draw(drawing)
    for outline, shade in zip(outlines, darkness.ravel(), strict=True):
        pen.polygon(outline, fill=int(shade))
    return np.asarray(drawing.filter(ImageFilter.GaussianBlur(0.7)), np.float64) / 255


def _soft(field: _Field) -> _Field:
    """Blur as a 20x objective does."""
    image = Image.fromarray((np.clip(field, 0, 2) * 127.5).round().astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float64) / 127.5
