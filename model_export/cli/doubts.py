"""What `export` and `verify` note of a network that passes, and may be wrong all the same: a line for each doubt."""

from collections.abc import Sequence

import numpy as np

from app.pathology.classes import TissueClass
from model_export.labels import NEUTRAL
from model_export.verify import Comparison
from model_export.weights import listed

_MAX_SEAM, _MAX_OWN_SEAM = 0.005, 0.05
"""The share of pixels that may be of another class in another window before it is told. Of drawn tissue only the pixels
that the network is sure of count, of the user's own images all; docs/decisions/0003-network-and-serving-graph.md."""

_ONE_CLASS = 0.99
"""Share of all pixels from which one class leaves nothing to compare."""

_NO_TISSUE = frozenset({"background", "glass", "other", "void"})
"""Names of classes that hold none of the tissue that a patch is labelled with."""


def doubts_of_classes(classes: Sequence[TissueClass]) -> list[str]:
    """Return a line where a class list calls all classes labels, or one that by its name is none."""
    odd = [tissue.name for tissue in classes if tissue.label and tissue.name.lower() in _NO_TISSUE]
    if odd:
        return [
            f'note: {odd[0]} is a label: patches will be labelled with it; write "label": false in its class if it is'
            " no tissue to report"
        ]
    if all(tissue.label for tissue in classes):
        return [
            'note: no class has "label": false: if one of them stands for background, glass or anything else, patches'
            " will be labelled with it"
        ]
    return []


def doubts_of_spacing(um_per_px: float | None) -> list[str]:
    """Return a line where the pixel spacing of the training images, in um/px, is not stated."""
    if um_per_px is not None:
        return []
    return [
        "note: without --um-per-px nothing is rescaled: patches are seen as they come, and of a slide the finest level;"
        " state the um/px of the training images if you know it"
    ]


def doubts_of_scores(given: bool) -> list[str]:
    """Return a line where a network of the project's is exported without the scores of a cross-validation."""
    if given:
        return []
    return [
        f"note: without --scores the threshold of each label is {NEUTRAL:g}, the temperature is 1 and the bundle states"
        " no scores: pass the scores.json of a cross-validation of the same recipe"
    ]


def doubts_of_comparisons(comparisons: Sequence[Comparison], classes: Sequence[TissueClass]) -> list[str]:
    """Return a line for each thing that is odd in what PyTorch and ONNX Runtime agree on.

    Args:
        comparisons: Of all batches that were tried.
        classes: The network's.
    """
    notes = []
    counted = [comparison.class_pixels for comparison in comparisons if comparison.class_pixels]
    pixels = np.sum(counted, axis=0) if counted else np.zeros(len(classes), np.int64)
    if pixels.max() > _ONE_CLASS * pixels.sum() > 0:
        notes.append(
            f"note: the network calls {pixels.max() / pixels.sum():.1%} of all pixels that were compared"
            f" {classes[int(pixels.argmax())].name}, so that the two agree says little: `export --trial` compares on"
            " images of your own"
        )
    if all(comparison.unit_range for comparison in comparisons):
        notes.append(
            "note: all that the network says of the classes lies in 0 to 1, as after a sigmoid: if it is no logits,"
            " confidences are wrong; return what the sigmoid is given"
        )
    if all(comparison.labels_unit_range for comparison in comparisons):
        notes.append(
            "note: all that the network says of the labels lies in 0 to 1, as after a sigmoid: if it is no logits,"
            " every patch gets every label; return what the sigmoid is given"
        )
    small = [
        str(number)
        for number, comparison in enumerate((one for one in comparisons if one.own), start=1)
        if comparison.seam is None
    ]
    if small and any(comparison.seam is not None for comparison in comparisons if not comparison.own):
        which = f"image {small[0]} is" if len(small) == 1 else f"images {listed(small)} are"
        notes.append(f"note: trial {which} too small to look for seams: both sides must exceed 2 x --margin + --stride")
    of_own, drawn = (
        max((comparison.seam or 0 for comparison in comparisons if comparison.own is own), default=0)
        for own in (True, False)
    )
    if of_own > _MAX_OWN_SEAM or drawn > _MAX_SEAM:
        where = (
            f"of {of_own:.1%} of the pixels inside the margins of two overlapping windows of an image of your own, the"
            " network says one class in the one and another in the other"
            if of_own > _MAX_OWN_SEAM
            else f"of {drawn:.1%} of the pixels inside the margins of two overlapping windows, the network is sure in"
            " the one and says another class in the other"
        )
        notes.append(
            f"note: {where}: patches larger than a window will show seams; a larger --margin helps, unless a layer sees"
            " all of its window, as global pooling and attention do"
        )
    return notes
