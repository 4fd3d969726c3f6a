"""What an exported graph is tried on: drawn H&E in several sizes and numbers, images of one's own, a whole window."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from app.pathology.arrays import RgbBatch
from app.pathology.classes import NORMAL, STROMA, TUMOR
from app.pathology.geometry import Size
from model_export.synthetic import draw_patch

_DRAWN = ((1, 224, 224), (3, 256, 160), (5, 96, 96), (2, 512, 384), (1, 1, 1))
"""Images, width and height of each drawn batch."""

_TISSUES = ((TUMOR, STROMA), (NORMAL,), (TUMOR, STROMA, NORMAL), ())


@dataclass(frozen=True, slots=True)
class Trial:
    """A batch to try a graph on.

    Attributes:
        batch: uint8 (N, H, W, 3), its sides multiples of the stride.
        hint: How a message of what is wrong with the answer ends.
        own: Whether it is an image of one's own.
        seams: Whether to look for seams in the answer.
    """

    batch: RgbBatch
    hint: str = ""
    own: bool = False
    seams: bool = False


def plan_trials(stride: int, window_px: int | None = None, own: Sequence[RgbBatch] = ()) -> Iterator[Trial]:
    """Yield H&E-like batches, always the same, then those of `own`.

    With `window_px`, the last is a whole window, and no drawn one but the first, the golden pair's, is larger.
    """
    most = max(window_px, *_DRAWN[0][1:]) if window_px is not None else max(map(max, _DRAWN))
    drawn = (_drawn(count, min(width, most), min(height, most), stride) for count, width, height in _DRAWN)
    numbered = enumerate(own, start=1)
    passed = 0
    for trial in chain(
        map(Trial, drawn),
        (Trial(batch, f"; on --trial image {number}", own=True, seams=True) for number, batch in numbered),
    ):
        yield trial
        passed = max(passed, *trial.batch.shape[1:3])
    if window_px is not None:
        hint = f"; it passes up to {passed} px: have it treat all sizes alike, or pass a smaller --window"
        yield Trial(_drawn(1, window_px, window_px, stride), hint, seams=True)


def _drawn(count: int, width: int, height: int, stride: int) -> RgbBatch:
    size = Size(width, height).rounded_up(stride)
    return np.stack([draw_patch(seed, size, _TISSUES[seed % len(_TISSUES)])[0] for seed in range(count)])
