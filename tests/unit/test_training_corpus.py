import shutil
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from app.pathology.classes import WSSS4LUAD
from model_export.cli import main
from model_export.errors import InvalidData
from model_export.training.corpus import Corpus, read_corpus
from model_export.training.dataset import IGNORE
from model_export.training.folds import Fold
from tests.model_export_support import drawn_samples, label_only_sample, write_pairs, write_patches, write_recipe

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


def test_a_corpus_tells_its_slides_only_if_a_table_names_them():
    pairs = drawn_samples(4)
    of_slides = [replace(pair, slide=slide) for pair, slide in zip(pairs, "AABC", strict=True)]

    assert str(Corpus(pairs, {})) == "pairs: 4; no table names their slides"
    assert str(Corpus(of_slides, {})) == "pairs: 4, of 3 slides"


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


def test_a_patch_of_a_held_out_slide_is_not_learned_from(tmp_path):
    pairs = write_pairs(tmp_path / "pairs", 4)
    patches = write_patches(tmp_path / "patches", "a-[1, 0, 0].png", "b-[1, 0, 0].png", "c-[1, 0, 0].png")
    slides = {"00.png": "A", "02.png": "A", "a-[1, 0, 0].png": "A", "b-[1, 0, 0].png": "B"}

    corpus = read_corpus(pairs, patches, NOWHERE, {"wsss4luad"}, WSSS4LUAD, slides)

    learned = [names(corpus.part(fold)[0]["wsss4luad"]) for fold in (Fold(0, 2), Fold(1, 2), Fold())]
    assert learned[0] == ["01.png", "03.png", "b-[1, 0, 0].png", "c-[1, 0, 0].png"]
    assert learned[1] == ["00.png", "02.png", "a-[1, 0, 0].png", "b-[1, 0, 0].png", "c-[1, 0, 0].png"]
    assert len(learned[2]) == 4 + 3


def copied(sample, **changes):
    """Return `sample` as a patch with labels would show it."""
    unknown = np.full(sample.class_map.shape, IGNORE, np.uint8)
    return replace(
        sample, name="copy-[1, 0, 0].png", class_map=unknown, slide="copy", image=sample.image.copy(), **changes
    )


def test_a_patch_with_the_pixels_of_a_held_out_pair_is_refused_by_both_names():
    pairs = drawn_samples(4)
    corpus = Corpus(pairs, {"wsss4luad": [copied(pairs[1])]})

    with pytest.raises(InvalidData) as caught:
        corpus.part(Fold(0, 2))

    reason = "a patch with the very pixels of the held-out pair 01.png; take it away"
    assert str(caught.value) == f"copy-[1, 0, 0].png: {reason}"
    for fold in (Fold(1, 2), Fold()):  # the pair is learned from, and so may its copy be
        assert "copy-[1, 0, 0].png" in names(corpus.part(fold)[0]["wsss4luad"])


def test_a_pair_with_the_pixels_of_a_held_out_pair_is_refused_by_both_names():
    pairs = drawn_samples(4)
    pairs[2] = replace(pairs[1], name="02.png", slide="02.png", image=pairs[1].image.copy())

    with pytest.raises(InvalidData) as caught:
        Corpus(pairs, {}).part(Fold(0, 2))

    reason = "a pair with the very pixels of the held-out pair 01.png; take it away, or name both as of one slide"
    assert str(caught.value) == f"02.png: {reason}"
    together = [replace(pair, slide="A") if pair.name in ("01.png", "02.png") else pair for pair in pairs]
    for fold in (Fold(0, 2), Fold(1, 2), Fold()):  # both are on one side
        Corpus(together, {}).part(fold)


def test_a_patch_that_differs_in_one_pixel_or_in_its_sides_is_no_copy():
    pairs = drawn_samples(4)
    near, turned = copied(pairs[0]), copied(replace(pairs[1], image=pairs[1].image.reshape(32, 128, 3)))
    near.image[3, 4, 1] ^= 1

    sources, _ = Corpus(pairs, {"wsss4luad": [near, turned]}).part(Fold(0, 2))

    assert len(sources["wsss4luad"]) == 2 + 2


def test_a_copy_is_refused_before_the_first_of_several_jobs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        import_module("model_export.cli.train"), "run_side_by_side", lambda *_: pytest.fail("a fold was begun")
    )
    pairs, patches = write_pairs(tmp_path / "pairs", 4), tmp_path / "patches"
    patches.mkdir()
    shutil.copy(pairs / "img" / "03.png", patches / "copy-[1, 0, 0].png")
    given = ["--pairs", pairs, "--patches", patches, "--run", tmp_path / "run", "--folds", 2, "--jobs", 2]
    given += ["--recipe", write_recipe(tmp_path / "mine.toml")]

    result = CliRunner().invoke(main, ["cross-validate", *map(str, given)])

    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(
        "error: copy-[1, 0, 0].png: a patch with the very pixels of the held-out pair 03.png"
    )


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
