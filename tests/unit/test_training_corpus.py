import numpy as np
import pytest
from PIL import Image

from app.pathology.classes import WSSS4LUAD
from model_export.errors import InvalidData
from model_export.training.corpus import Corpus, read_corpus
from model_export.training.folds import Fold
from tests.model_export_support import drawn_samples, label_only_sample, write_pairs, write_patches

NOWHERE = {"stas": None, "ebhi_seg": None, "lc25000": None}


def names(samples):
    return [sample.name for sample in samples]


def write_stas(root):
    for folder, pixels in (("img", np.full((20, 30, 3), 100, np.uint8)), ("mask", np.zeros((20, 30), bool))):
        (root / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(root / folder / "field.png")
    return root


def test_a_fold_holds_out_pairs_and_nothing_else():
    patch, field = label_only_sample((True, False, False)), drawn_samples(1)[0]
    corpus = Corpus(drawn_samples(4), {"wsss4luad": [patch], "stas": [field]})

    sources, held_out = corpus.part(Fold(0, 2))

    assert names(held_out) == ["00.png", "01.png"]
    assert names(sources["wsss4luad"]) == ["02.png", "03.png", patch.name]
    assert sources["stas"] == [field]


def test_taking_a_part_leaves_the_corpus_as_it_was():
    corpus = Corpus(drawn_samples(4), {"wsss4luad": [label_only_sample((True, False, False))]})

    first = [names(samples) for samples in corpus.part(Fold(1, 2))[0].values()]
    corpus.part(Fold(0, 2))[0]["wsss4luad"].clear()

    assert [names(samples) for samples in corpus.part(Fold(1, 2))[0].values()] == first
    assert len(corpus.part(Fold())[0]["wsss4luad"]) == 5


def test_what_a_recipe_needs_is_read_and_no_more(tmp_path):
    pairs, patches = write_pairs(tmp_path / "pairs", 2), write_patches(tmp_path / "patches", "1-[1, 0, 0].png")
    folders = {**NOWHERE, "stas": write_stas(tmp_path / "stas"), "lc25000": tmp_path / "not there"}

    corpus = read_corpus(pairs, patches, folders, {"wsss4luad", "stas"}, WSSS4LUAD)

    assert names(corpus.pairs) == ["00.png", "01.png"]
    assert {source: names(samples) for source, samples in corpus.beside.items()} == {
        "wsss4luad": ["1-[1, 0, 0].png"],
        "stas": ["field.png"],
    }
    assert not read_corpus(pairs, None, NOWHERE, {"wsss4luad"}, WSSS4LUAD).beside["wsss4luad"]


def test_no_slide_is_on_both_sides_of_a_fold(tmp_path):
    pairs = write_pairs(tmp_path, 4)

    corpus = read_corpus(pairs, None, NOWHERE, {"wsss4luad"}, WSSS4LUAD, {"00.png": "A", "02.png": "A"})

    sources, held_out = corpus.part(Fold(0, 2))
    assert names(held_out) == ["00.png", "02.png"]
    assert names(sources["wsss4luad"]) == ["01.png", "03.png"]


@pytest.mark.parametrize(
    ("source", "option"), [("stas", "--stas"), ("ebhi_seg", "--ebhi-seg"), ("lc25000", "--lc25000")]
)
def test_a_needed_source_without_a_folder_is_refused_with_its_option(tmp_path, source, option):
    pairs = write_pairs(tmp_path / "pairs", 1)

    with pytest.raises(InvalidData) as caught:
        read_corpus(pairs, None, NOWHERE, {"wsss4luad", source}, WSSS4LUAD)

    assert str(caught.value) == f"the recipe draws from {source}: pass its folder with {option}"


def test_a_needed_source_whose_folder_is_not_there_is_refused_by_name(tmp_path):
    pairs, folder = write_pairs(tmp_path / "pairs", 1), tmp_path / "not there"

    with pytest.raises(InvalidData) as caught:
        read_corpus(pairs, None, {**NOWHERE, "stas": folder}, {"stas"}, WSSS4LUAD)

    assert str(caught.value) == f"{folder / 'img'}: no such folder"
