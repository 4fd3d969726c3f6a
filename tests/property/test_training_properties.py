import tempfile
from dataclasses import replace
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import Size
from model_export import labels
from model_export.calibration import Calibration
from model_export.errors import InvalidData, InvalidRecipe
from model_export.labels import choose_threshold, f1
from model_export.synthetic import draw_patch
from model_export.training.augment import jitter_stain
from model_export.training.dataset import IGNORE, Sample, labels_of, read_pairs
from model_export.training.folds import Fold, split
from model_export.training.scores import Scores
from model_export.training.sources import GLASS_BRIGHTNESS, glass
from model_export.training.weak import labels_alone
from tests.model_export_support import masked_sample, write_pair

SMALL = masked_sample(np.zeros((1, 1), np.uint8))


@st.composite
def counts(draw):
    """How many folds of how many pairs, 2 <= folds <= pairs."""
    folds = draw(st.integers(2, 12))
    return folds, draw(st.integers(folds, 60))


@given(counts())
def test_folds_partition_the_pairs_into_runs_of_nearly_equal_length(sizes):
    folds, count = sizes
    pairs = [masked_sample(SMALL.class_map, name=str(index)) for index in range(count)]
    position = {sample.name: index for index, sample in enumerate(pairs)}
    seen = []
    for index in range(folds):
        training, held_out = split(pairs, Fold(index, folds))
        places = [position[sample.name] for sample in held_out]
        assert places == list(range(places[0], places[0] + len(places)))
        assert len(places) in (count // folds, -(-count // folds))
        assert [sample for sample in pairs if sample not in held_out] == training
        seen += places
    assert seen == list(range(count))


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=40), st.integers(2, 5))
def test_folds_partition_the_pairs_and_cut_no_slide(slides, folds):
    pairs = [replace(SMALL, name=str(index), slide=slide) for index, slide in enumerate(slides)]
    try:
        parts = [split(pairs, Fold(index, folds)) for index in range(folds)]
    except InvalidRecipe:  # two borders meet: each is at most half a slide from its place in an even split
        assert len(slides) // folds <= max(slides.count(slide) for slide in slides)
        return
    for training, held_out in parts:
        assert held_out
        assert {sample.slide for sample in training}.isdisjoint(sample.slide for sample in held_out)
        assert sorted([*training, *held_out], key=lambda sample: int(sample.name)) == pairs
    assert sorted(int(sample.name) for _, held_out in parts for sample in held_out) == list(range(len(pairs)))


@given(st.integers(2, 99).flatmap(lambda count: st.tuples(st.integers(1, count), st.just(count))))
def test_a_fold_survives_being_written_and_read(fold):
    part, count = fold
    assert str(Fold.parse(f"{part}/{count}")) == f"{part}/{count}"


class_maps = arrays.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))
predictions = arrays.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3))


@given(class_maps, predictions)
def test_scores_lie_between_zero_and_one_and_add_up(truth, predicted):
    together = Scores(WSSS4LUAD)
    parts = [Scores(WSSS4LUAD) for _ in truth]
    for part, true, guess in zip(parts, truth, predicted, strict=True):
        part.add_class_map(true, guess)
        together.add_class_map(true, guess)

    total = parts[0] + parts[1]

    assert total.as_dict() == together.as_dict()
    assert total.confusion.sum() == (truth != IGNORE).sum()
    assert all(0 <= value <= 1 for value in total.as_dict().values())
    assert {name for name in total.as_dict() if name.startswith("iou_")} == {
        f"iou_{tissue.name}" for index, tissue in enumerate(WSSS4LUAD) if (truth == index).any()
    }


logits = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3)
pixels = st.lists(st.tuples(logits, st.integers(0, 2)), min_size=1, max_size=12)


def calibration_of(counted):
    calibration = Calibration()
    if counted:
        calibration.add(torch.tensor([row for row, _ in counted]), torch.tensor([true for _, true in counted]))
    return calibration


@settings(max_examples=30)
@given(pixels, st.integers(0, 12))
def test_folds_pool_to_what_all_pixels_together_give(counted, at):
    whole, pooled = calibration_of(counted), calibration_of(counted[:at]) + calibration_of(counted[at:])

    for ours, theirs in zip(pooled.at, whole.at, strict=True):
        np.testing.assert_array_equal(ours.count, theirs.count)
        np.testing.assert_array_equal(ours.right, theirs.right)
        assert ours.as_dict()["ece"] == pytest.approx(theirs.as_dict()["ece"], abs=1e-6)
        assert ours.as_dict()["nll"] == pytest.approx(theirs.as_dict()["nll"], rel=1e-5, abs=1e-6)
        assert 0 <= ours.ece <= 1
        assert -1e-6 <= ours.as_dict()["brier"] <= 2 + 1e-6
    assert 0.5 <= pooled.best_temperature() <= 4


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=20))
def test_but_for_the_pull_to_one_half_no_threshold_is_better(images):
    truth, probability = np.array([has for has, _ in images], bool), np.array([said / 50 for _, said in images])

    def score(threshold):
        return f1(truth[:, None], (probability >= threshold)[:, None])[0] or 0.0

    assert 0 <= choose_threshold(truth, probability) <= 1
    if truth.any() and not truth.all():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(labels, "PRIOR_IMAGES", 0)
            best = choose_threshold(truth, probability)
        assert score(best) == max(score(threshold / 100) for threshold in range(101))


@given(arrays.arrays(np.uint8, (2, 3, 4, 4)), st.floats(0, 1), st.integers(0, 99))
def test_stain_jitter_keeps_any_image_in_range(images, sigma, seed):
    changed = jitter_stain(torch.from_numpy(images).float(), sigma, np.random.default_rng(seed))

    assert changed.shape == images.shape
    assert bool(changed.isfinite().all())
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255


@given(arrays.arrays(np.uint8, (2, 3, 4, 4)))
def test_stain_jitter_of_no_strength_changes_no_colour(images):
    pixels = torch.from_numpy(images).float()

    assert float((jitter_stain(pixels, 0.0, np.random.default_rng(0)) - pixels).abs().max()) < 0.25


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["img", "mask"]), st.data())
def test_a_damaged_pair_is_read_or_refused_by_name_in_one_line(folder, data):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        image, class_map = draw_patch(0, Size(12, 9))
        write_pair(root, "a.png", image, class_map)
        path = root / folder / "a.png"
        content = bytearray(path.read_bytes())
        cut = data.draw(st.booleans())
        if cut:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        samples, messages = [], []
        try:
            samples = read_pairs(root, WSSS4LUAD)
        except InvalidData as error:
            messages = str(error).splitlines()
        assert len(samples) + len(messages) == 1
        assert all(str(root) in message for message in messages)
        for sample in samples:
            assert sample.image.shape[:2] == sample.class_map.shape
            assert sample.class_map.max() < len(WSSS4LUAD)
            if cut:  # then only what follows the pixels is missing
                np.testing.assert_array_equal(sample.image, image)
                np.testing.assert_array_equal(sample.class_map, class_map)


@given(arrays.arrays(np.uint8, (7, 9, 3), elements=st.integers(GLASS_BRIGHTNESS - 2, GLASS_BRIGHTNESS + 3)))
def test_glass_is_where_the_median_of_the_darkest_channel_is_bright(image):
    median = np.asarray(Image.fromarray(image.min(axis=2)).filter(ImageFilter.MedianFilter(5)))

    np.testing.assert_array_equal(glass(image), median > GLASS_BRIGHTNESS)


annotated = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@given(annotated, st.integers(8, 32), st.integers(0, 255))
def test_patches_for_labels_alone_hold_no_more_than_labels_and_brightness_tell(values, side_px, grey):
    class_map = (values % 4).astype(np.uint8)
    image = np.full((*class_map.shape, 3), grey, np.uint8)
    patches = labels_alone([Sample("a.png", image, class_map, labels_of(class_map, WSSS4LUAD))], side_px, WSSS4LUAD)

    assert sum(patch.class_map.size for patch in patches) == class_map.size
    for patch in patches:
        held = [index for index in range(3) if patch.labels[index]]
        tissue = IGNORE if len(held) > 1 else held[0] if held else 3
        expected = 3 if grey > GLASS_BRIGHTNESS else tissue
        assert (patch.class_map == expected).all()
        assert list(patch.guesses) == held
