from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional

from app.pathology.classes import WSSS4LUAD
from model_export.network import INPUT_MEAN, INPUT_STD
from model_export.training.augment import BatchSource, jitter_stain, normalise, sampling_weights
from model_export.training.dataset import IGNORE
from tests.model_export_support import drawn_samples, label_only_sample, masked_sample, recipe

COLORS = torch.tensor([tissue.color for tissue in WSSS4LUAD]).float()


def plain(**changes):
    """A recipe that moves pixels and leaves their colours alone."""
    return recipe(stain_sigma=0.0, brightness=0.0, **changes)


def blocks(height, width):
    """A class map without any symmetry."""
    class_map = np.full((height, width), 3, np.uint8)
    class_map[: height // 2, : width // 3] = 0
    class_map[height // 3 :, -width // 4 :] = 1
    class_map[-height // 4 :, : width // 2] = 2
    return class_map


def bytes_of(images):
    return images * torch.tensor(INPUT_STD).view(1, 3, 1, 1) + torch.tensor(INPUT_MEAN).view(1, 3, 1, 1)


def inside_of_one_class(class_maps, reach=2):
    """Return where all pixels within `reach` are of one known class, bool (N, H, W)."""
    values = class_maps.float()[:, None]
    side = 2 * reach + 1
    highest = functional.max_pool2d(values, side, 1, reach)
    lowest = -functional.max_pool2d(-values, side, 1, reach)
    certain = ((highest == lowest) & (highest != IGNORE))[:, 0]
    certain[:, [*range(reach), *range(-reach, 0)]] = False  # what lies beyond the crop's edge is not known
    certain[:, :, [*range(reach), *range(-reach, 0)]] = False
    return certain


def test_a_steps_batch_depends_on_seed_and_step_alone():
    samples = [*drawn_samples(3), label_only_sample((True, False, True))]
    forward, backward = (BatchSource(samples, WSSS4LUAD, recipe(batch_size=4)) for _ in range(2))
    first = [forward.batch(step) for step in range(3)]
    second = [backward.batch(step) for step in reversed(range(3))][::-1]

    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.class_maps, theirs.class_maps)
        assert torch.equal(ours.labels, theirs.labels)
    assert not any(torch.equal(ours.images, theirs.images) for ours, theirs in pairwise(first))
    other_seed = BatchSource(samples, WSSS4LUAD, recipe(batch_size=4, seed=4)).batch(0)
    assert not torch.equal(other_seed.images, first[0].images)


def test_a_batch_has_the_networks_shapes_types_and_range():
    samples = [*drawn_samples(4, side_px=80), label_only_sample((False, True, True))]

    batch = BatchSource(samples, WSSS4LUAD, recipe(batch_size=12, crop_px=64, stain_sigma=0.3)).batch(0)

    assert batch.images.shape == (12, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert batch.class_maps.shape == (12, 64, 64)
    assert batch.class_maps.dtype == torch.int64
    assert batch.labels.shape == (12, 3)
    assert batch.labels.dtype == torch.float32
    lowest, highest = normalise(torch.tensor([0.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)).unbind()
    assert (batch.images >= lowest - 1e-6).all()
    assert (batch.images <= highest + 1e-6).all()
    assert batch.images.std() > 0.1
    assert set(batch.class_maps.unique().tolist()) <= {0, 1, 2, 3, IGNORE}
    assert set(batch.labels.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(("height", "width"), [(96, 144), (144, 96), (40, 40)])
def test_a_crops_class_map_follows_its_image(height, width):
    source = BatchSource([masked_sample(blocks(height, width))], WSSS4LUAD, plain(batch_size=24, crop_px=64))

    batch = source.batch(0)

    certain = inside_of_one_class(batch.class_maps)
    assert certain.float().mean() > 0.2
    assert set(batch.class_maps[certain].tolist()) == {0, 1, 2, 3}
    painted = COLORS[batch.class_maps.clamp(max=3)].permute(0, 3, 1, 2)
    apart = (bytes_of(batch.images) - painted).abs().amax(dim=1)
    assert apart[certain].max() < 1.0


def test_crops_are_turned_and_mirrored():
    """Of a map with its classes around the centre, both senses of rotation come up, and all four directions."""
    class_map = np.full((64, 64), IGNORE, np.uint8)
    class_map[:24, :], class_map[:, 40:], class_map[40:, :] = 0, 1, 2  # clockwise from the top: tumor, stroma, normal
    source = BatchSource([masked_sample(class_map)], WSSS4LUAD, plain(batch_size=48, crop_px=64, scale=(1.0, 1.0)))

    maps = source.batch(0).class_maps.numpy()

    senses, directions = set(), set()
    for crop in maps:
        tumor, stroma, normal = (np.argwhere(crop == index).mean(axis=0) - 31.5 for index in range(3))
        senses.add(bool(np.cross([*(tumor - normal), 0], [*stroma, 0])[2] > 0))
        directions.add(int(np.arctan2(*(tumor - normal)) // (np.pi / 2)))
    assert senses == {True, False}
    assert directions == {-2, -1, 0, 1}


@pytest.mark.parametrize(("zoom", "crop_px"), [(2.0, 64), (1.0, 32), (0.5, 32)])
def test_zoom_two_shows_tissue_twice_as_large(zoom, crop_px):
    class_map = np.full((32, 32), 3, np.uint8)
    class_map[8:24, 8:24] = 0
    source = BatchSource(
        [masked_sample(class_map)], WSSS4LUAD, plain(crop_px=crop_px, scale=(zoom, zoom), batch_size=8)
    )

    tumor = (source.batch(0).class_maps == 0).sum(dim=(1, 2)).double()

    np.testing.assert_allclose(tumor, 16 * 16 * zoom**2, rtol=0.12)


def test_an_oblong_image_is_turned_without_being_bent():
    """A crop that holds all of a 96x32 image shows a rectangle of those sides, whichever way it lies."""
    source = BatchSource(
        [masked_sample(np.zeros((32, 96), np.uint8))], WSSS4LUAD, plain(crop_px=64, scale=(0.5, 0.5), batch_size=16)
    )

    for crop in source.batch(0).class_maps.numpy():
        places = np.argwhere(crop == 0)
        spread = np.linalg.eigvalsh(np.cov(places.T))  # along the short side and along the long one
        np.testing.assert_allclose(np.sqrt(12 * spread), [16, 48], rtol=0.05)
        np.testing.assert_allclose(places.mean(axis=0), [31.5, 31.5], atol=0.75)


def test_outside_the_image_nothing_is_known_and_tissue_is_mirrored():
    class_map = np.zeros((32, 32), np.uint8)
    source = BatchSource([masked_sample(class_map)], WSSS4LUAD, plain(crop_px=64, scale=(0.5, 0.5), batch_size=8))

    batch = source.batch(0)

    known = batch.class_maps != IGNORE
    np.testing.assert_allclose(known.float().mean(dim=(1, 2)), 16 * 16 / 64**2, rtol=0.12)
    assert known[:, 31:33, 31:33].all()
    assert not known[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert (bytes_of(batch.images) - COLORS[0].view(1, 3, 1, 1)).abs().max() < 1.0
    assert batch.labels.tolist() == [[1.0, 0.0, 0.0]] * 8


def test_a_label_only_patch_keeps_its_labels_and_has_no_class_map():
    source = BatchSource([label_only_sample((True, False, True))], WSSS4LUAD, recipe(batch_size=3))

    batch = source.batch(0)

    assert (batch.class_maps == IGNORE).all()
    assert batch.labels.tolist() == [[1.0, 0.0, 1.0]] * 3


def test_a_crop_carries_the_labels_of_what_it_shows():
    class_map = np.full((64, 256), 3, np.uint8)
    class_map[:, :64], class_map[:, 192:] = 0, 1
    source = BatchSource([masked_sample(class_map)], WSSS4LUAD, plain(batch_size=32, scale=(1.0, 1.0)))

    batch = source.batch(0)

    for crop, labels in zip(batch.class_maps, batch.labels.bool().tolist(), strict=True):
        known = crop[crop != IGNORE]
        assert labels == [bool((known == index).float().mean() >= 0.005) for index in range(3)]
    assert {(True, False, False), (False, True, False), (False, False, False)} <= {
        tuple(labels) for labels in batch.labels.bool().tolist()
    }


def test_brightness_scales_each_image_by_its_own_factor():
    sample = masked_sample(np.zeros((32, 32), np.uint8))
    source = BatchSource([sample], WSSS4LUAD, recipe(stain_sigma=0.0, brightness=0.4, batch_size=16))

    pixels = bytes_of(source.batch(0).images)

    factors = pixels.mean(dim=(2, 3)) / COLORS[0]
    assert (factors[:, 1] >= 0.59).all()
    assert (factors[:, 1] <= 1.41).all()
    assert factors[:, 1].std() > 0.1
    np.testing.assert_allclose(factors[:, 1], factors[:, 2], rtol=0.02)


def test_stain_jitter_of_no_strength_is_the_identity():
    images = torch.from_numpy(np.stack([sample.image for sample in drawn_samples(3)])).permute(0, 3, 1, 2).float()

    same = jitter_stain(images, 0.0, np.random.default_rng(0))

    assert same.shape == images.shape
    assert (same - images).abs().max() < 0.1


def test_stain_jitter_changes_each_image_in_its_own_way_and_stays_in_range():
    image = torch.from_numpy(drawn_samples(1)[0].image).permute(2, 0, 1).float()

    changed = jitter_stain(image.repeat(4, 1, 1, 1), 0.3, np.random.default_rng(0))

    assert changed.min() >= 0
    assert changed.max() <= 255
    shifts = (changed - image).abs().mean(dim=(1, 2, 3))
    assert (shifts > 1).all()
    assert len(set(shifts.tolist())) == 4


def test_normalising_maps_the_mean_to_zero_and_one_deviation_to_one():
    images = torch.from_numpy(np.stack([INPUT_MEAN, np.add(INPUT_MEAN, INPUT_STD)])).float().view(2, 3, 1, 1)

    torch.testing.assert_close(normalise(images).flatten(1), torch.tensor([[0.0] * 3, [1.0] * 3]))


def test_samples_are_drawn_evenly_or_by_the_rarity_of_their_classes():
    tumor, stroma, both = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8), np.eye(4, dtype=np.uint8)
    samples = [masked_sample(class_map) for class_map in (tumor, tumor, tumor, stroma)]

    np.testing.assert_allclose(sampling_weights(samples, 4, 0.0), [1 / 4] * 4)
    np.testing.assert_allclose(sampling_weights(samples, 4, 1.0), [1 / 6, 1 / 6, 1 / 6, 1 / 2])
    halfway = np.sqrt([1 / 3, 1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(sampling_weights(samples, 4, 0.5), halfway / halfway.sum())
    np.testing.assert_allclose(sampling_weights([samples[0], masked_sample(both)], 4, 1.0), [1 / 4, 3 / 4])


def test_a_label_only_patch_counts_as_holding_a_bit_of_each_class():
    samples = [masked_sample(np.zeros((4, 4), np.uint8)), label_only_sample((True, False, False))]

    weights = sampling_weights(samples, 4, 1.0)

    # tumor is shared 1 to 1/4; of the other three classes only the patch has its 1/4 each
    np.testing.assert_allclose(weights, np.array([0.8, 0.2 + 3 * 0.25]) / 1.75)


def test_batches_are_drawn_by_those_weights():
    samples = [masked_sample(np.full((32, 32), index, np.uint8)) for index in (0, 0, 0, 0, 0, 0, 0, 0, 0, 1)]

    def share_of_stroma(rarity):
        source = BatchSource(samples, WSSS4LUAD, plain(batch_size=100, rarity=rarity))
        return float(source.batch(0).labels[:, 1].mean())

    assert share_of_stroma(0.0) < 0.25
    assert 0.35 < share_of_stroma(1.0) < 0.65
