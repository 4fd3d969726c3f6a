"""How sharp an image is, whatever its stain."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.pathology.arrays import RgbImage

_WINDOW_PX = 128
_WINDOWS = 3
"""At most this many along a side, so that a large image costs little more than a small one."""
LEAST_SIDE_PX = 32
"""Two halvings leave 8 px of a shorter side, and a Laplacian of those measures chance."""

_Floats: TypeAlias = NDArray[np.float32]


def sharpness(image: RgbImage) -> float | None:
    """Return the detail at half size against that at a quarter, as a ratio of root mean squares of the Laplacian.

    Blur empties the finer octave first: a Gaussian blur of 2 to 4 px left H&E at most 0.41. Full size is left out:
    there, noise and the blocks of JPEG look like detail. Only green is looked at, which both stains absorb.

    Args:
        image: (H, W, 3) uint8, at its full resolution.

    Returns:
        The ratio, from 0 up; None where the image is plain, or has a side of less than 32 px.
    """
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE_PX:
        return None
    fine = coarse = 0.0
    for rows in _windows(height):
        for columns in _windows(width):
            green = np.log(image[rows, columns, 1] + np.float32(1))
            half = _halved(green)
            fine += _detail(half)
            coarse += _detail(_halved(half))
    return float((fine / coarse) ** 0.5) if coarse > 0 else None


def _windows(length_px: int) -> list[slice]:
    if length_px <= _WINDOWS * _WINDOW_PX:
        return [slice(0, length_px)]
    starts = np.linspace(0, length_px - _WINDOW_PX, _WINDOWS).astype(int)
    return [slice(start, start + _WINDOW_PX) for start in starts]


def _halved(values: _Floats) -> _Floats:
    rows, columns = values.shape[0] // 2 * 2, values.shape[1] // 2 * 2
    pairs = values[:rows:2, :columns] + values[1:rows:2, :columns]
    return np.asarray((pairs[:, ::2] + pairs[:, 1::2]) / 4)


def _detail(values: _Floats) -> float:
    """Return the mean square of the discrete Laplacian of (H, W) `values`."""
    inner = values[1:-1, 1:-1]
    laplacian = 4 * inner - values[:-2, 1:-1] - values[2:, 1:-1] - values[1:-1, :-2] - values[1:-1, 2:]
    return float(np.mean(laplacian * laplacian))
