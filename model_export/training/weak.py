"""Learning from labels alone, as the WSSS4LUAD challenge has it (Han et al., arXiv:2204.06455).

A patch whose labels are known says three things about its pixels: those that are bright are glass, those that are not
are of no class that the labels exclude, and where only one label is left, they are of that class. The rest is for the
loss over bags (`losses.bag_loss`) to learn and for `teacher.fill_unknown` to write down.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from app.pathology.classes import TissueClass, label_indices
from model_export.training.dataset import IGNORE, Sample, labels_of
from model_export.training.sources import glass


def labels_alone(samples: Sequence[Sample], side_px: int, classes: Sequence[TissueClass]) -> list[Sample]:
    """Return `samples` as if only labels had been annotated.

    One with a class map is cut into patches of about `side_px` a side, each with the labels that an annotator of that
    patch would have given it. One with labels alone stays in one piece.

    Args:
        samples: Their labels are all known.
        side_px: The smaller the patches, the more their labels say.
        classes: The classes of the class maps.
    """
    patches = [
        patch for sample in samples for patch in (_cut(sample, side_px, classes) if sample.has_mask else [sample])
    ]
    return [_hidden(patch, classes) for patch in patches]


def _cut(sample: Sample, side_px: int, classes: Sequence[TissueClass]) -> Iterator[Sample]:
    height, width = sample.class_map.shape
    rows, columns = max(1, round(height / side_px)), max(1, round(width / side_px))
    stem, _, suffix = sample.name.rpartition(".")
    for row in range(rows):
        for column in range(columns):
            top, left = height * row // rows, width * column // columns
            where = slice(top, height * (row + 1) // rows), slice(left, width * (column + 1) // columns)
            class_map = sample.class_map[where]
            name = f"{stem}-x{left}-y{top}.{suffix}"
            yield Sample(name, sample.image[where], class_map, labels_of(class_map, classes))


def _hidden(patch: Sample, classes: Sequence[TissueClass]) -> Sample:
    """Return `patch` with the class map that follows from its labels and its brightness."""
    [background] = [index for index, tissue in enumerate(classes) if tissue.name == "background"]
    held = tuple(index for index, label in zip(label_indices(classes), patch.labels, strict=True) if label is not False)
    tissue = IGNORE if len(held) > 1 else held[0] if held else background
    class_map = np.where(glass(patch.image), background, tissue).astype(np.uint8)
    return Sample(patch.name, patch.image, class_map, patch.labels, guesses=held)
