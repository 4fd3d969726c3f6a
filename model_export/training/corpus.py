"""Which images a recipe learns from, and which of them a fold holds out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.pathology.classes import TissueClass
from model_export.config import Source
from model_export.errors import InvalidData
from model_export.training.dataset import Sample, read_labelled_patches, read_pairs
from model_export.training.folds import Fold, knows_slides, split
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
        beside: The samples that every training part gets, by source, but for patches of a slide that is held out.
    """

    pairs: Sequence[Sample]
    beside: Mapping[Source, Sequence[Sample]]

    def __str__(self) -> str:
        """Say how many pairs there are, and of how many slides, if a table names any of them."""
        if not knows_slides(self.pairs):
            return f"pairs: {len(self.pairs)}; no table names their slides"
        return f"pairs: {len(self.pairs)}, of {len({sample.slide for sample in self.pairs})} slides"

    def part(self, fold: Fold) -> tuple[dict[Source, list[Sample]], list[Sample]]:
        """Return the training samples of `fold` by source, and what it holds out.

        Raises:
            InvalidRecipe: The pairs cannot be split so.
            InvalidData: A pair or a patch to learn from has the very pixels of a pair that is held out.
        """
        training, held_out = split(self.pairs, fold)
        sources = {name: list(samples) for name, samples in self.beside.items()}
        slides = {sample.slide for sample in held_out}
        patches = [sample for sample in sources.get("wsss4luad", []) if sample.slide not in slides]
        _refuse_copies([*training, *patches], held_out)
        sources["wsss4luad"] = [*training, *patches]
        return sources, held_out


def _refuse_copies(learned: Sequence[Sample], held_out: Sequence[Sample]) -> None:
    pairs = {(sample.image.shape, sample.image.tobytes()): sample.name for sample in held_out}
    for sample in learned:
        if pair := pairs.get((sample.image.shape, sample.image.tobytes())):
            what, else_ = ("a pair", ", or name both as of one slide") if sample.has_mask else ("a patch", "")
            raise InvalidData(
                f"{sample.name}: {what} with the very pixels of the held-out pair {pair}; take it away{else_}"
            )


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
        slides: The slide of each pair and patch by file name; see `read_pairs`.

    Raises:
        InvalidData: A needed source has no folder, or a file in one is wrong.
    """
    labelled = read_labelled_patches(patches, classes, slides) if patches else []
    beside: dict[Source, list[Sample]] = {"wsss4luad": labelled}
    for name in sorted(set(needed) - {"wsss4luad"}):
        folder = folders.get(name)
        if folder is None:
            raise InvalidData(f"the recipe draws from {name}: pass its folder with {_OPTIONS[name]}")
        beside[name] = _READERS[name](folder, classes)
    return Corpus(read_pairs(pairs, classes, slides), beside)
