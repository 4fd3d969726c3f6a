"""Splitting samples for cross-validation."""

from collections.abc import Sequence
from dataclasses import dataclass

from model_export.errors import InvalidRecipe
from model_export.training.dataset import Sample


@dataclass(frozen=True, slots=True)
class Fold:
    """Which part of the pairs is held out: fold `index` (0 to `count` - 1) of `count`, or none when `count` is 0."""

    index: int = 0
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> "Fold":
        """Read "all" (nothing held out) or "K/N" (the K-th of N folds, counted from 1).

        Raises:
            InvalidRecipe: It is neither.
        """
        if text == "all":
            return cls()
        part, slash, count = text.partition("/")
        if not (slash and part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count) and int(count) > 1):
            raise InvalidRecipe(f"fold {text!r}: write all, or K/N with K from 1 to N, such as 1/4")
        return cls(int(part) - 1, int(count))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}" if self.count else "all"


def split(pairs: Sequence[Sample], fold: Fold) -> tuple[list[Sample], list[Sample]]:
    """Return the training and the held-out part of `pairs`.

    A fold is a run of neighbours in name order, not every N-th sample: neighbours in WSSS4LUAD often come from one
    slide, and a slide on both sides of the split would flatter the score.

    Raises:
        InvalidRecipe: There are fewer pairs than folds.
    """
    if not fold.count:
        return list(pairs), []
    if len(pairs) < fold.count:
        raise InvalidRecipe(f"{len(pairs)} pairs cannot be split into {fold.count} folds")
    start = len(pairs) * fold.index // fold.count
    end = len(pairs) * (fold.index + 1) // fold.count
    return [*pairs[:start], *pairs[end:]], list(pairs[start:end])
