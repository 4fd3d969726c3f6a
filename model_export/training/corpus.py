"""Which images a recipe learns from, and which of them a fold holds out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.pathology.classes import TissueClass
from model_export.config import Source
from model_export.errors import InvalidData
from model_export.training.dataset import Sample, read_labelled_patches, read_pairs
from model_export.training.folds import Fold, split
from model_export.training.sources import read_ebhi_seg, read_lc25000, read_stas

_READERS: dict[Source, Callable[[Path, Sequence[TissueClass]], list[Sample]]] = {
    "stas": read_stas,
    "ebhi_seg": read_ebhi_seg,
    "lc25000": read_lc25000,
}
_OPTIONS: dict[Source, str] = {"stas": "--stas", "ebhi_seg": "--ebhi-seg", "lc25000": "--lc25000"}


@dataclass(frozen=True, slots=True)
class Corpus:
    """All images at hand.

    Attributes:
        pairs: The WSSS4LUAD pairs, the only ones that are ever held out.
        beside: The samples that every training part gets, by source.
    """

    pairs: Sequence[Sample]
    beside: Mapping[Source, Sequence[Sample]]

    @property
    def slides(self) -> int:
        """How many slides the pairs are of, as far as is known."""
        return len({sample.slide for sample in self.pairs})

    def part(self, fold: Fold) -> tuple[dict[Source, list[Sample]], list[Sample]]:
        """Return the training samples of `fold` by source, and what it holds out."""
        training, held_out = split(self.pairs, fold)
        sources = {name: list(samples) for name, samples in self.beside.items()}
        sources["wsss4luad"] = [*training, *sources.get("wsss4luad", [])]
        return sources, held_out


def read_corpus(
    pairs: Path,
    patches: Path | None,
    folders: Mapping[str, Path | None],
    needed: Iterable[Source],
    classes: Sequence[TissueClass],
    slides: Mapping[str, str] | None = None,
) -> Corpus:
    """Read the pairs, the patches with labels in their names, and each further source that is `needed`.

    Args:
        pairs: The folder of the pairs.
        patches: The folder of the patches, if any.
        folders: The folder of each further source.
        needed: The sources that are read.
        classes: The classes of the class maps.
        slides: The slide of each pair by file name; see `read_pairs`.

    Raises:
        InvalidData: A needed source has no folder, or a file in one is wrong.
    """
    beside: dict[Source, list[Sample]] = {"wsss4luad": read_labelled_patches(patches, classes) if patches else []}
    for name in sorted(set(needed) - {"wsss4luad"}):
        folder = folders.get(name)
        if folder is None:
            raise InvalidData(f"the recipe draws from {name}: pass its folder with {_OPTIONS[name]}")
        beside[name] = _READERS[name](folder, classes)
    return Corpus(read_pairs(pairs, classes, slides), beside)
