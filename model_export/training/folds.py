"""Splitting samples for cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from app.pathology.classes import TissueClass, label_indices
from model_export.config import Source
from model_export.errors import InvalidRecipe
from model_export.training.augment import teaches
from model_export.training.dataset import Sample

FOLD_FOLDER = "fold-"
"""A fold's run folder is this and its number, from 1 on, in the run folder of a cross-validation."""


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
            raise InvalidRecipe(f"fold {text!r} is neither 'all' nor K/N with K from 1 to N, such as '1/4'")
        return cls(int(part) - 1, int(count))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}" if self.count else "all"


def split(pairs: Sequence[Sample], fold: Fold) -> tuple[list[Sample], list[Sample]]:
    """Return the training and the held-out part of `pairs`, without cutting a slide.

    Tissue, stain and scanner of one slide are alike, so a slide on both sides of the split would flatter the score. A
    fold is a run of neighbours, once the images of a slide are put together at the place of its first: each border of
    an even split moves to the nearest place where the slide changes, of two as near to the earlier.

    Raises:
        InvalidRecipe: Some fold would hold nothing out, as there are too few slides or one is too large.
    """
    if not fold.count:
        return list(pairs), []
    by_slide: dict[str, list[Sample]] = {}
    for sample in pairs:
        by_slide.setdefault(sample.slide, []).append(sample)
    changes = list(accumulate((len(samples) for samples in by_slide.values()), initial=0))
    even = [len(pairs) * index // fold.count for index in range(fold.count + 1)]
    borders = [min(changes, key=lambda change: abs(change - border)) for border in even]
    for index, (start, end) in enumerate(pairwise(borders)):
        if start == end:
            raise InvalidRecipe(
                f"{len(pairs)} pairs of {len(by_slide)} slides cannot be split into {fold.count} folds:"
                f" no slide is cut, and fold {Fold(index, fold.count)} would be empty; choose fewer folds"
            )
    ordered = [sample for samples in by_slide.values() for sample in samples]
    start, end = borders[fold.index], borders[fold.index + 1]
    return [*ordered[:start], *ordered[end:]], ordered[start:end]


def knows_slides(pairs: Sequence[Sample]) -> bool:
    """Whether a table says of one of `pairs`, at least, which slide it is of."""
    return any(sample.slide != sample.name for sample in pairs)


def without_slides(pairs: Sequence[Sample], fold: Fold) -> list[str]:
    """Return a line where some are held out, and nothing says which of `pairs` are of one slide."""
    if not fold.count or knows_slides(pairs):
        return []
    return [
        "note: every image counts as a slide of its own: if several are of one slide, scores on what is held out come"
        " out too good; the recipe's slides names a table that says which"
    ]


def untaught(
    seen: Mapping[Source, Sequence[Sample]], held_out: Sequence[Sample], classes: Sequence[TissueClass], fold: Fold
) -> list[str]:
    """Return a line for each label class that held-out images of `fold` have and whose pixels nothing teaches.

    An image with labels alone teaches no pixels, unless they are to be found out; see `augment.teaches`.

    Args:
        seen: What the training learns from, by source; see `pipeline.seen_by`.
        held_out: The other one.
        classes: The classes of the class maps.
        fold: Which fold it is, for the lines.
    """
    training = [sample for samples in seen.values() for sample in samples]
    return [
        f"note: fold {fold}: held-out images hold {classes[index].name} and nothing teaches its pixels:"
        " choose another number of folds, or add images whose masks show it"
        for place, index in enumerate(label_indices(classes))
        if any(sample.labels[place] for sample in held_out) and not any(teaches(each, index) for each in training)
    ]
