"""Covering a patch with overlapping windows, padding a window to what the model takes, stitching the results."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from app.pathology.arrays import ClassMap, ConfidenceMap, RgbImage
from app.pathology.geometry import Region, Size


@dataclass(frozen=True, slots=True)
class Window:
    """One model input.

    Attributes:
        read: The pixels the model is given.
        keep: The part of them whose result is used; the windows' `keep` regions partition the patch.
    """

    read: Region
    keep: Region


def plan_windows(size: Size, window_px: int, margin_px: int, stride_px: int) -> list[Window]:
    """Cover a patch with windows, row by row.

    Neighbours overlap by at least twice the margin and each keeps its half of the overlap, so a kept pixel is at
    least `margin_px` away from every window border that is not the patch's own. Windows begin at multiples of the
    stride: a network sees a pixel in the same place of its grid in each of them, and in the whole patch.

    Args:
        size: The patch's size.
        window_px: The longest side of a window, a multiple of `stride_px`.
        margin_px: The context that a kept pixel has on each side; twice that leaves a stride of the window.
        stride_px: The sides of a model's input are multiples of this.
    """
    columns = _plan_axis(size.width_px, window_px, margin_px, stride_px)
    rows = _plan_axis(size.height_px, window_px, margin_px, stride_px)
    return [
        Window(
            Region(x, y, Size(min(window_px, size.width_px - x), min(window_px, size.height_px - y))),
            Region(left, top, Size(right - left, bottom - top)),
        )
        for y, top, bottom in rows
        for x, left, right in columns
    ]


def _plan_axis(length: int, window: int, margin: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (start of reading, start of keeping, end of keeping) of each window along one axis."""
    if length <= window:
        return [(0, 0, length)]
    step = (window - 2 * margin) // stride * stride
    last = -(-(length - window) // stride) * stride
    starts = [*range(0, last, step), last]
    borders = [(left + window + right) // 2 for left, right in pairwise(starts)]
    return list(zip(starts, [0, *borders], [*borders, length], strict=True))


def pad_to_stride(image: RgbImage, stride_px: int) -> RgbImage:
    """Pad (H, W, 3) `image` at its bottom and right, by reflection, to sides that are multiples of `stride_px`."""
    height, width = image.shape[:2]
    bottom, right = -height % stride_px, -width % stride_px
    if not bottom and not right:
        return np.ascontiguousarray(image)
    return np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="reflect")


class Stitcher:
    """Collects windows' results, in any order, into maps of the patch.

    Attributes:
        class_map: (H, W) uint8; complete once every window was added.
        confidence: (H, W) uint8, likewise.
    """

    def __init__(self, size: Size) -> None:
        self.class_map: ClassMap = np.zeros((size.height_px, size.width_px), np.uint8)
        self.confidence: ConfidenceMap = np.zeros_like(self.class_map)

    def add(self, window: Window, class_map: ClassMap, confidence: ConfidenceMap) -> None:
        """Put the part to keep in its place; both maps are at least as large as what the window read."""
        inner = window.keep.within(window.read).slices
        self.class_map[window.keep.slices] = class_map[inner]
        self.confidence[window.keep.slices] = confidence[inner]
