"""What can be measured of an image without a model: how much is stained, in which colours, and how sharp it is.

What that means is decided in `plausibility.py`. Colours are told in the hue-saturation-density model: van der Laak et
al., "Hue-saturation-density (HSD) model for stain recognition in digital images from transmitted light microscopy",
Cytometry 39 (2000). It splits absorption into how much (density) and which colour (chromaticity), so that a stain keeps
its colour where it is thick or thin. Both haematoxylin and eosin absorb green most; DAB absorbs blue, and inks and
photographs anything.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.imaging.sharpness import sharpness
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

LEAST_SLIDE_TISSUE = 0.001
"""Of a slide, most of which is glass: some ten samples, of whose colours a mean can be taken."""

_SAMPLE_PX = 128
"""Colours are judged on every n-th pixel, so that the longest side of the sample has at most this many."""
_CELL_PX = 4
"""Ink is looked for in cells of the sample of this side: strokes are broad; single odd pixels are noise or pigment."""
_DARKEST_GLASS = 180
"""Of a channel, 0 to 255. What is darker is no empty slide, however evenly it is lit."""
_STAINED = 0.07
"""Mean optical density (base 10) from which a pixel is stained."""
_DENSE = 0.4
"""Mean optical density (base 10) from which a cell can be ink."""

_DENSITY_OF_BYTE = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)

_Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Appearance:
    """What can be measured of an image without a model.

    Attributes:
        size: The image's.
        tissue: Share of the pixels that are stained, 0 to 1.
        he_stain: Share of the stain, by optical density, that has H&E's colours, 0 to 1; 0 where nothing is stained.
        ink: Share of the area that is dense and of a colour that dense H&E tissue does not have, 0 to 1.
        sharpness: As `app.imaging.sharpness` has it.
    """

    size: Size
    tissue: float
    he_stain: float
    ink: float
    sharpness: float | None


def appearance(image: RgbImage) -> Appearance:
    """Measure (H, W, 3) uint8 `image`, at a cost that hardly grows with its size."""
    density = _density_of_sample(image)
    amount, x, y = _hue_saturation_density(density)
    stained = amount > _STAINED
    return Appearance(
        size=Size.of(image),
        tissue=_share(stained),
        he_stain=_he_share(amount * stained, x, y),
        ink=_share(_ink(*_hue_saturation_density(_mean_of_cells(density)))),
        sharpness=sharpness(image),
    )


def slide_appearance(image: RgbImage) -> Appearance:
    """Measure a whole slide by a coarse (H, W, 3) uint8 picture of it, whose focus says nothing: it has no sharpness.

    From afar a pen's stroke is a few samples wide, so ink is counted by sample, and denser than any stain: it would
    outweigh a small piece of tissue. So tissue and H&E's share are those of the rest, if there is a rest.
    """
    amount, x, y = _hue_saturation_density(_density_of_sample(image))
    stained = amount > _STAINED
    ink = _ink(amount, x, y)
    rest = stained & ~_with_neighbours(ink)
    tissue = rest if _share(rest) >= LEAST_SLIDE_TISSUE else stained
    return Appearance(
        size=Size.of(image),
        tissue=_share(tissue),
        he_stain=_he_share(amount * tissue, x, y),
        ink=_share(ink),
        sharpness=None,
    )


def _density_of_sample(image: RgbImage) -> _Floats:
    """Return the absorption of the image's sample, (3, H, W)."""
    step = -(-max(image.shape[:2]) // _SAMPLE_PX)
    return _optical_density(np.ascontiguousarray(image[::step, ::step].transpose(2, 0, 1)))


def _he_share(stain: _Floats, x: _Floats, y: _Floats) -> float:
    he_coloured = (y >= 0.15) & (x >= -2.5 * y) & (x <= 1.4 * y)  # hues of 36 to 158 degrees, and no grey
    return float(np.vdot(stain, he_coloured)) / max(1e-6, float(stain.sum()))


def _ink(amount: _Floats, x: _Floats, y: _Floats) -> NDArray[np.bool_]:
    # From 65 to 155 degrees: where H&E reaches further, it is pale.
    like_dense_tissue = (x * x + y * y > 0.04) & (x >= -2.14 * y) & (x <= 0.47 * y)
    return (amount > _DENSE) & ~like_dense_tissue


def _with_neighbours(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (H, W) `marked` with the four neighbours of each: a stroke's border is paler than the stroke."""
    grown = marked.copy()
    grown[1:] |= marked[:-1]
    grown[:-1] |= marked[1:]
    grown[:, 1:] |= marked[:, :-1]
    grown[:, :-1] |= marked[:, 1:]
    return grown


def _optical_density(sample: NDArray[np.uint8]) -> _Floats:
    """Return the absorption of each channel, (3, H, W), against the glass: the median of the brightest twentieth."""
    darkest_channel = sample.min(axis=0).ravel()
    brightest = np.flatnonzero(darkest_channel >= np.uint8(math.ceil(_percentile(darkest_channel, 95))))
    density = np.empty(sample.shape, np.float32)
    for channel, absorption in zip(sample, density, strict=True):
        glass = int(max(_percentile(channel.ravel()[brightest], 50), _DARKEST_GLASS))
        np.take(np.maximum(_DENSITY_OF_BYTE - _DENSITY_OF_BYTE[glass], 0), channel, out=absorption, mode="clip")
    return density


def _percentile(values: NDArray[np.uint8], percent: float) -> float:
    """Return what `np.percentile` does of (N,) `values`, which takes several times as long for bytes."""
    rank = (len(values) - 1) * percent / 100
    below, above = int(rank), min(int(rank) + 1, len(values) - 1)
    ordered = np.partition(values, (below, above))
    lower, upper = int(ordered[below]), int(ordered[above])
    return lower + (upper - lower) * (rank - below)


def _hue_saturation_density(density: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Return the mean density of (3, H, W) channels and its two chromatic coordinates, each (H, W)."""
    red, green, blue = density
    amount = red + green
    amount += blue
    amount /= 3
    whole = np.maximum(amount, np.float32(1e-6))
    x = red / whole
    x -= 1
    y = green - blue
    whole *= np.float32(3**0.5)
    y /= whole
    return amount, x, y


def _mean_of_cells(density: _Floats) -> _Floats:
    """Return the means of whole cells of (3, H, W); an image narrower than a cell has cells as wide as itself."""
    height, width = density.shape[1:]
    side = min(_CELL_PX, height, width)
    rows = density[:, : height // side * side].reshape(3, height // side, side, width).sum(axis=2)
    rows = rows[:, :, : width // side * side].reshape(3, height // side, width // side, side)
    return np.asarray(sum(rows[..., column] for column in range(side)) / (side * side))


def _share(marked: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(marked)) / marked.size
