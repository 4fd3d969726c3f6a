import tempfile
from pathlib import Path

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.pathology.classes import WSSS4LUAD
from app.pathology.geometry import Size
from model_export.errors import InvalidData
from model_export.synthetic import draw_patch
from model_export.training.augment import jitter_stain
from model_export.training.dataset import IGNORE, read_pairs
from model_export.training.folds import Fold, split
from model_export.training.scores import Scores
from tests.model_export_support import masked_sample, write_pair

SMALL = masked_sample(np.zeros((1, 1), np.uint8))


@st.composite
def counts(draw):
    """How many folds of how many pairs, 2 <= folds <= pairs."""
    folds = draw(st.integers(2, 12))
    return folds, draw(st.integers(folds, 60))


@settings(deadline=None)
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


@settings(deadline=None)
@given(st.integers(1, 99), st.integers(2, 99))
def test_a_fold_survives_being_written_and_read(part, count):
    if part <= count:
        assert str(Fold.parse(f"{part}/{count}")) == f"{part}/{count}"


class_maps = arrays.arrays(np.uint8, (2, 4, 5), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))
predictions = arrays.arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3))


@settings(deadline=None)
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


@settings(deadline=None)
@given(arrays.arrays(np.uint8, (2, 3, 4, 4)), st.floats(0, 1), st.integers(0, 99))
def test_stain_jitter_keeps_any_image_in_range(images, sigma, seed):
    changed = jitter_stain(torch.from_numpy(images).float(), sigma, np.random.default_rng(seed))

    assert changed.shape == images.shape
    assert bool(changed.isfinite().all())
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255


@settings(deadline=None)
@given(arrays.arrays(np.uint8, (2, 3, 4, 4)))
def test_stain_jitter_of_no_strength_changes_no_colour(images):
    pixels = torch.from_numpy(images).float()

    assert float((jitter_stain(pixels, 0.0, np.random.default_rng(0)) - pixels).abs().max()) < 0.25


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
