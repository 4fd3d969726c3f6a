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
_FAINTEST_DETAIL = 7
"""Grey levels, at half size. Of H&E that is blurred by 6 px, 8-bit steps and JPEG of quality 50 leave up to 6.4."""
_FAINTEST_CONTRAST = 4
"""Grey levels within the windows: glass, where there is nothing to be sharp, has less for the most part."""

_Floats: TypeAlias = NDArray[np.float32]


def sharpness(image: RgbImage) -> float | None:
    """Return the detail at half size against that at a quarter, as a ratio of root mean squares of the Laplacian.

    Blur empties the finer octave first: a Gaussian blur of 2 to 4 px left H&E at most 0.41. Full size is left out:
    there, noise and the blocks of JPEG look like detail. Only green is looked at, which both stains absorb.

    Stronger blur empties both octaves. What is left in them is the steps of 8 bits and of JPEG, whose ratio looks like
    that of tissue in focus. So where they can account for all detail at half size, and the tissue yet has contrast,
    there is none: the ratio is 0.

    Args:
        image: (H, W, 3) uint8, at its full resolution.

    Returns:
        The ratio, from 0 up; None where the image is plain, or has a side of less than 32 px.
    """
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE_PX:
        return None
    green = np.stack([image[rows, columns, 1] for rows in _windows(height) for columns in _windows(width)])
    half = _log_at_half_size(green)
    quarter = _halved(half)
    fine, coarse = _detail(half), _detail(quarter)
    if coarse <= 0:
        return None
    return 0.0 if _is_washed_out(fine, quarter) else float((fine / coarse) ** 0.5)


def _is_washed_out(fine: float, quarter: _Floats) -> bool:
    """Return whether there is contrast in the (N, H, W) logarithms, but no more fine detail than encoding leaves."""
    grey_level = np.exp(float(quarter.mean()))  # of which a difference of logarithms is a share
    if fine**0.5 * grey_level >= _FAINTEST_DETAIL:
        return False
    centred = quarter - quarter.mean(axis=(1, 2), keepdims=True)
    contrast = float(np.vdot(centred, centred)) / centred.size
    return bool(contrast**0.5 * grey_level > _FAINTEST_CONTRAST)


def _windows(length_px: int) -> list[slice]:
    if length_px <= _WINDOWS * _WINDOW_PX:
        return [slice(0, length_px)]
    starts = np.linspace(0, length_px - _WINDOW_PX, _WINDOWS).astype(int)
    return [slice(start, start + _WINDOW_PX) for start in starts]


def _log_at_half_size(values: NDArray[np.uint8]) -> _Floats:
    """Return the mean logarithm of each four of (N, H, W) `values`, as that of their product: logarithms are slow."""
    rows, columns = values.shape[1] // 2 * 2, values.shape[2] // 2 * 2
    counted = values[:, :rows, :columns].astype(np.float32)
    counted += 1
    pairs = counted[:, ::2] * counted[:, 1::2]
    product = pairs[..., ::2] * pairs[..., 1::2]  # 2 to the 32nd at most
    np.log(product, out=product)
    product /= 4
    return product


def _halved(values: _Floats) -> _Floats:
    """Return (N, H, W) `values` at half their height and width, each the mean of four."""
    rows, columns = values.shape[1] // 2 * 2, values.shape[2] // 2 * 2
    pairs = values[:, :rows:2, :columns] + values[:, 1:rows:2, :columns]
    means = pairs[..., ::2] + pairs[..., 1::2]
    means /= 4
    return means


def _detail(values: _Floats) -> float:
    """Return the mean square of the discrete Laplacian of (N, H, W) `values`, exactly 0 where they are all the same."""
    laplacian = values[:, :-2, 1:-1] + values[:, 2:, 1:-1]
    laplacian += values[:, 1:-1, :-2] + values[:, 1:-1, 2:]
    laplacian -= 4 * values[:, 1:-1, 1:-1]
    return float(np.vdot(laplacian, laplacian)) / laplacian.size
