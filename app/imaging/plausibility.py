"""Whether an image shows enough, and looks like H&E tissue in focus. What does not is warned about, never refused.

No model is asked. Colours are judged in the hue-saturation-density model: van der Laak et al., "Hue-saturation-density
(HSD) model for stain recognition in digital images from transmitted light microscopy", Cytometry 39 (2000). It splits
absorption into how much (density) and which colour (chromaticity), so that a stain keeps its colour where it is thick
or thin. Both haematoxylin and eosin absorb green most; DAB absorbs blue, and inks and photographs anything. What the
limits were measured on, and what they miss: docs/warnings.md.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from app.imaging.sharpness import LEAST_SIDE_PX, sharpness
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

WarningCode: TypeAlias = Literal["too_small", "low_tissue", "out_of_distribution", "pen_marks", "out_of_focus"]
WARNING_CODES: tuple[WarningCode, ...] = get_args(WarningCode)

LEAST_TISSUE = 0.05
LEAST_HE_STAIN = 0.65
MOST_INK = 0.01
LEAST_SHARPNESS = 0.45
"""The limits of `Appearance`'s numbers, beyond which an image is warned about."""

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


@dataclass(frozen=True, slots=True)
class InputWarning:
    """Why an answer may be worth little.

    Attributes:
        code: Stable, for programs.
        message: One sentence for a pathologist, with what was measured.
    """

    code: WarningCode
    message: str


def appearance(image: RgbImage) -> Appearance:
    """Measure (H, W, 3) uint8 `image`, at a cost that hardly grows with its size."""
    step = -(-max(image.shape[:2]) // _SAMPLE_PX)
    density = _optical_density(image[::step, ::step])
    amount, x, y = _hue_saturation_density(density)
    stain = np.where(amount > _STAINED, amount, 0)
    he_coloured = (y >= 0.15) & (x >= -2.5 * y) & (x <= 1.4 * y)  # hues of 36 to 158 degrees, and no grey
    cells, x, y = _hue_saturation_density(_mean_of_cells(density))
    # From 65 to 155 degrees: where H&E reaches further, it is pale.
    like_dense_tissue = (x * x + y * y > 0.04) & (x >= -2.14 * y) & (x <= 0.47 * y)
    return Appearance(
        size=Size(image.shape[1], image.shape[0]),
        tissue=float((stain > 0).mean()),
        he_stain=float(stain[he_coloured].sum() / max(1e-6, float(stain.sum()))),
        ink=float(((cells > _DENSE) & ~like_dense_tissue).mean()),
        sharpness=sharpness(image),
    )


def input_warnings(seen: Appearance) -> tuple[InputWarning, ...]:
    """Return what to warn of.

    Where there are hardly any pixels or tissue, or it is not H&E, this stands alone: the other measures then mean
    nothing.
    """
    if min(seen.size.width_px, seen.size.height_px) < LEAST_SIDE_PX:
        message = (
            f"The model saw only {seen.size}, and less than {LEAST_SIDE_PX} px a side is too little to go by; "
            "send a larger patch, or check its pixel size."
        )
        return (InputWarning("too_small", message),)
    if seen.tissue < LEAST_TISSUE:
        message = f"Only {seen.tissue:.1%} of the patch is stained; the answer rests on hardly any tissue."
        return (InputWarning("low_tissue", message),)
    if seen.he_stain < LEAST_HE_STAIN:
        message = (
            f"Only {seen.he_stain:.0%} of what is dark has the colours of haematoxylin and eosin; "
            "the model has learnt nothing about other stains or photographs."
        )
        return (InputWarning("out_of_distribution", message),)
    found = []
    if seen.ink > MOST_INK:
        message = (
            f"{seen.ink:.0%} of the patch is dark in a colour that H&E tissue lacks; "
            "pen marks, dye or pigment may be taken for tissue."
        )
        found.append(InputWarning("pen_marks", message))
    if seen.sharpness is not None and seen.sharpness < LEAST_SHARPNESS:
        message = (
            f"The finest detail is weak (sharpness {seen.sharpness:.2f}, where {LEAST_SHARPNESS} and more is sharp); "
            "the patch may be out of focus or enlarged."
        )
        found.append(InputWarning("out_of_focus", message))
    return tuple(found)


def _optical_density(sample: RgbImage) -> _Floats:
    """Return the absorption of each channel, (H, W, 3), against the glass: the median of the brightest twentieth."""
    darkest_channel = sample.min(axis=2)
    brightest = sample[darkest_channel >= np.percentile(darkest_channel, 95)]
    glass = np.maximum(np.median(brightest, axis=0), _DARKEST_GLASS).astype(np.uint8)
    density: _Floats = _DENSITY_OF_BYTE[sample] - _DENSITY_OF_BYTE[glass]
    return np.maximum(density, 0)


def _hue_saturation_density(density: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Return the mean density of (H, W, 3) channels and its two chromatic coordinates, each (H, W)."""
    red, green, blue = np.moveaxis(density, 2, 0)
    amount = (red + green + blue) / 3
    whole = np.maximum(amount, np.float32(1e-6))
    return amount, red / whole - 1, (green - blue) / (np.float32(3**0.5) * whole)


def _mean_of_cells(density: _Floats) -> _Floats:
    """Return the means of whole cells of (H, W, 3); an image narrower than a cell has cells as wide as itself."""
    height, width = density.shape[:2]
    side = min(_CELL_PX, height, width)
    whole = density[: height // side * side, : width // side * side]
    return np.asarray(whole.reshape(height // side, side, width // side, side, 3).mean(axis=(1, 3)))
