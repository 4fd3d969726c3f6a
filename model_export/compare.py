"""Two networks' scores on the same images, and how far their difference depends on which slides these are of."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.pathology.classes import TissueClass
from model_export.errors import InvalidData
from model_export.training.scores import Scores
from model_export.training.slides import load_slides, require_named

DRAWS = 2000
"""Resamples of the slides, drawn with replacement."""
_EDGES = (2.5, 97.5)
"""Percent of the draws below each end of an interval."""
_SEED = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A score of two networks.

    Attributes:
        name: As `Scores.pixel_scores` has it.
        first: The first network's, 0 to 1, from the sums over all images.
        second: The second's.
        low: Of the second less the first, what 2.5 % of the draws fall below.
        high: What 2.5 % lie above.
    """

    name: str
    first: float
    second: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two networks' scores of one set of images.

    Attributes:
        differences: Of each score.
        draws: How many counted: each class of the images is in them.
        slides: On how many slides each class of the images is, by its name.
    """

    differences: list[Difference]
    draws: int
    slides: dict[str, int]


def compare(first: Path, second: Path, classes: Sequence[TissueClass], table: str | None = None) -> Comparison:
    """Compare two networks, and tell how far the difference depends on which slides their images are of.

    Both are scored again on slides drawn with replacement, as many as there are: images of one slide look alike, and
    are no further evidence. Of a class that is on two slides, such an interval is as good as two slides can make
    it; and what another seed would have made of either network is not in it.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).

    Args:
        first: A `scores.json`, of `evaluate` or of a whole cross-validation.
        second: Another.
        classes: The classes of the class maps.
        table: Of slides, as `load_slides` takes it; an image that it does not name is a slide of its own.

    Raises:
        InvalidData: A file has no counts of single images, the two are of other images or class maps, the table names
            none of them, or all are of one slide.
    """
    slides = load_slides(table)
    ours, theirs = _counts(first, classes), _counts(second, classes)
    if odd := sorted(ours.keys() ^ theirs.keys()):
        raise InvalidData(f"{first} and {second} are of different images: only one of them has {odd[0]}")
    for image in ours:
        if (ours[image].sum(axis=1) != theirs[image].sum(axis=1)).any():
            raise InvalidData(f"{first} and {second} are of different class maps of {image}")
    if table is not None:
        require_named(table, slides, ours)
    names = sorted({slides.get(image, image) for image in ours})
    if len(names) < 2:
        raise InvalidData(f"{first}: all of one slide, {names[0]}: nothing can be said of others")
    by_slide = np.zeros((2, len(names), len(classes), len(classes)), np.int64)
    for image in ours:
        by_slide[:, names.index(slides.get(image, image))] += (ours[image], theirs[image])
    on_slides = (by_slide[0].sum(axis=2) > 0).sum(axis=0)
    before, after = (_scores(counts.sum(axis=0), classes) for counts in by_slide)
    drawn = []
    for times in np.random.default_rng(_SEED).multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS):
        one, other = (_scores(np.tensordot(times, counts, 1), classes) for counts in by_slide)
        if one.keys() == before.keys():  # else `tissue_miou` would be of fewer classes
            drawn.append([other[name] - one[name] for name in before])
    edges = np.percentile(drawn, _EDGES, axis=0).T.tolist()
    return Comparison(
        [Difference(name, before[name], after[name], *edge) for name, edge in zip(before, edges, strict=True)],
        len(drawn),
        {tissue.name: int(count) for tissue, count in zip(classes, on_slides, strict=True) if count},
    )


def _counts(path: Path, classes: Sequence[TissueClass]) -> dict[str, NDArray[np.int64]]:
    """Return the confusion matrix of each image that has a class map, by name."""
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        counts = {image["name"]: np.array(image["confusion"], np.int64) for image in images if "confusion" in image}
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidData(f"{path}: not a scores.json") from error
    if not counts:
        raise InvalidData(f"{path}: has no confusion of each image; write it anew with `evaluate`")
    if any(found.shape != (len(classes),) * 2 for found in counts.values()):
        raise InvalidData(f"{path}: of other classes")
    return counts


def _scores(confusion: NDArray[np.int64], classes: Sequence[TissueClass]) -> dict[str, float]:
    scores = Scores(classes)
    scores.confusion = confusion
    return scores.pixel_scores()
