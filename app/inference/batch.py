"""A batch: how many windows it may have, and what runs them, in a lane's thread."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from app.errors import InferenceFailed, OutOfMemory
from app.inference.result import BatchResult, WindowResult
from app.pathology.arrays import RgbBatch, RgbImage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much may run at once.

    Attributes:
        lanes: Batches.
        windows: Windows in a batch; it has the largest power of two of them that is no more.
        pixels: Pixels in a batch of several windows, which bounds its memory.
        stall_seconds: How long a batch may take, or ten times what it should, before its lane is taken to be stuck.
        seconds_per_pixel: What it should take.
        first_seconds: How long the first batch of a size and shape may take before its lane is taken to be stuck.
        warm: The (N, H, W, 3) of batches that have been run already.
    """

    lanes: int
    windows: int
    pixels: int
    stall_seconds: float = math.inf
    seconds_per_pixel: float = 0.0
    first_seconds: float = 0.0
    warm: frozenset[tuple[int, ...]] = frozenset()


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return how many windows a batch of at most `most` may have, ascending: 1, 2, 4 and so on.

    A GPU gets ready for each size anew, so there are few; what is left over is the next batch.
    """
    return tuple(1 << power for power in range(most.bit_length()))


def batch_forms(windows: int, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the (N, H, W, 3) of all that may be run of a batch: where it fails, its halves, down to single windows."""
    return ((size, *shape) for size in batch_sizes(windows))


class BatchRunner:
    """Runs windows of one shape together and, where that fails, each half by itself: a bad window fails alone.

    Args:
        run: Runs one batch.
        works: Whether the model runs at all; asked once it has failed on all windows of a batch.
        most_pixels: In a batch of several windows.

    Attributes:
        most_pixels: The same, less once there was no memory for so many.
        is_broken: Whether the model runs nothing any more.
    """

    def __init__(self, run: Callable[[RgbBatch], BatchResult], works: Callable[[], bool], most_pixels: int) -> None:
        self._run = run
        self._works = works
        self.most_pixels = most_pixels
        self.is_broken = False

    def results(self, images: list[RgbImage]) -> list[WindowResult | Exception]:
        """Return what the model says of each of the images, (H, W, 3), or how it failed."""
        results = self._halved(images)
        failures = [result for result in results if isinstance(result, Exception)]
        # Of memory it may have some again; what failed otherwise may be the windows' fault, or the end of the model.
        if len(failures) == len(images) and not isinstance(failures[0], OutOfMemory) and not self._works():
            _log.error("the model runs nothing any more", exc_info=failures[0])
            self.is_broken = True
        return results

    def _halved(self, images: list[RgbImage]) -> list[WindowResult | Exception]:
        try:
            return list(_split(_checked(self._run(_batch(images)), (len(images), *images[0].shape[:2]))))
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base; it is handed to the caller
            if len(images) == 1:
                return [error]
            half = len(images) // 2
            if isinstance(error, OutOfMemory):
                self.most_pixels = min(self.most_pixels, half * images[0][..., 0].size)
                said = "no memory for %d windows at once; batches have at most %d px from now on"
                _log.warning(said, len(images), self.most_pixels)
            return [*self._halved(images[:half]), *self._halved(images[half:])]


def _batch(images: list[RgbImage]) -> RgbBatch:
    """Return (N, H, W, 3); one image by itself is not copied."""
    return images[0][np.newaxis] if len(images) == 1 else np.stack(images)


def _checked(result: BatchResult, form: tuple[int, ...]) -> BatchResult:
    """Return what the model said of windows of `form`, (N, H, W); maps of another would be put together as they are.

    Raises:
        InferenceFailed: Its maps have another.
    """
    for maps in (result.class_maps, result.confidences):
        if maps.shape != form:
            raise InferenceFailed(f"the model answered maps of {maps.shape} for windows of {form}")
    return result


def _split(result: BatchResult) -> Iterator[WindowResult]:
    for class_map, confidence, probabilities in zip(
        result.class_maps, result.confidences, result.label_probabilities, strict=True
    ):
        yield WindowResult(class_map, confidence, probabilities)
