from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from app.pathology.classes import WSSS4LUAD
from model_export.encoders import INPUT_MEAN, INPUT_STD
from model_export.errors import InvalidData
from model_export.training.augment import MAX_BLUR_PX, BatchSource, blurred, jitter_stain, normalise, sampling_weights
from model_export.training.dataset import IGNORE
from tests.model_export_support import drawn_samples, label_only_sample, masked_sample, recipe

COLORS = torch.tensor([tissue.color for tissue in WSSS4LUAD]).float()


def source_of(samples, asked):
    return BatchSource({"wsss4luad": samples}, WSSS4LUAD, asked)


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
    forward, backward = (source_of(samples, recipe(batch_size=4)) for _ in range(2))
    first = [forward.batch(step) for step in range(3)]
    second = [backward.batch(step) for step in reversed(range(3))][::-1]

    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.class_maps, theirs.class_maps)
        assert torch.equal(ours.inside, theirs.inside)
        torch.testing.assert_close(ours.labels, theirs.labels, rtol=0, atol=0, equal_nan=True)
    assert not any(torch.equal(ours.images, theirs.images) for ours, theirs in pairwise(first))
    other_seed = source_of(samples, recipe(batch_size=4, seed=4)).batch(0)
    assert not torch.equal(other_seed.images, first[0].images)


def test_a_batch_has_the_networks_shapes_types_and_range():
    samples = [*drawn_samples(4, side_px=80), label_only_sample((False, True, True))]

    batch = source_of(samples, recipe(batch_size=12, crop_px=64, stain_sigma=0.3)).batch(0)

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


@pytest.mark.parametrize(("height", "width"), [(96, 144), (144, 96), (56, 56)])
def test_a_crops_class_map_follows_its_image(height, width):
    source = source_of([masked_sample(blocks(height, width))], plain(batch_size=24, crop_px=64))

    batch = source.batch(0)

    certain = inside_of_one_class(batch.class_maps, reach=4)  # two px of the image, the largest zoom, and half a px
    assert certain.float().mean() > 0.1
    assert set(batch.class_maps[certain].tolist()) == {0, 1, 2, 3}
    painted = COLORS[batch.class_maps.clamp(max=3)].permute(0, 3, 1, 2)
    apart = (bytes_of(batch.images) - painted).abs().amax(dim=1)
    assert apart[certain].max() < 1.0


def test_crops_are_turned_and_mirrored():
    """Of a map with its classes around the centre, both senses of rotation come up, and all four directions."""
    class_map = np.full((64, 64), IGNORE, np.uint8)
    class_map[:24, :], class_map[:, 40:], class_map[40:, :] = 0, 1, 2  # clockwise from the top: tumor, stroma, normal
    source = source_of([masked_sample(class_map)], plain(batch_size=48, crop_px=64, scale=(1.0, 1.0)))

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
    source = source_of([masked_sample(class_map)], plain(crop_px=crop_px, scale=(zoom, zoom), batch_size=8))

    tumor = (source.batch(0).class_maps == 0).sum(dim=(1, 2)).double()

    np.testing.assert_allclose(tumor, 16 * 16 * zoom**2, rtol=0.12)


def test_an_oblong_image_is_turned_without_being_bent():
    """A crop that holds all of a 96x32 image shows a rectangle of those sides, whichever way it lies."""
    source = source_of(
        [masked_sample(np.zeros((32, 96), np.uint8))], plain(crop_px=64, scale=(0.5, 0.5), batch_size=16)
    )

    for crop in source.batch(0).class_maps.numpy():
        places = np.argwhere(crop == 0)
        spread = np.linalg.eigvalsh(np.cov(places.T))  # along the short side and along the long one
        np.testing.assert_allclose(np.sqrt(12 * spread), [16, 48], rtol=0.05)
        np.testing.assert_allclose(places.mean(axis=0), [31.5, 31.5], atol=0.75)


def test_outside_the_image_nothing_is_known_and_tissue_is_mirrored():
    class_map = np.zeros((32, 32), np.uint8)
    source = source_of([masked_sample(class_map)], plain(crop_px=64, scale=(0.5, 0.5), batch_size=8))

    batch = source.batch(0)

    known = batch.class_maps != IGNORE
    np.testing.assert_allclose(known.float().mean(dim=(1, 2)), 16 * 16 / 64**2, rtol=0.12)
    assert known[:, 31:33, 31:33].all()
    assert not known[:, [0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert (bytes_of(batch.images) - COLORS[0].view(1, 3, 1, 1)).abs().max() < 1.0
    assert batch.labels.tolist() == [[1.0, 0.0, 0.0]] * 8


def test_a_crop_of_most_of_a_label_only_patch_has_its_labels_and_no_class_map():
    source = source_of([label_only_sample((True, False, True), 48)], plain(crop_px=64, scale=(1.0, 1.0), batch_size=3))

    batch = source.batch(0)

    assert (batch.class_maps == IGNORE).all()
    assert batch.labels.tolist() == [[1.0, 0.0, 1.0]] * 3


def test_a_crop_of_a_small_part_of_a_patch_lacks_what_the_patch_lacks_and_is_known_to_hold_nothing():
    source = source_of([label_only_sample((True, False, None), 96)], plain(crop_px=32, scale=(1.0, 1.0), batch_size=3))

    labels = source.batch(0).labels

    assert labels.isnan().tolist() == [[True, False, True]] * 3
    assert (labels[:, 1] == 0).all()


def test_where_pixels_are_unknown_a_label_is_one_if_seen_and_else_as_the_image_tells():
    class_map = np.full((64, 64), IGNORE, np.uint8)
    class_map[:, :32] = 0
    seen = replace(masked_sample(class_map), labels=(None, None, False), guesses=(1,))
    source = source_of([seen], plain(crop_px=32, scale=(0.5, 0.5), batch_size=8))

    for crop, labels in zip(*(source.batch(0).class_maps, source.batch(0).labels), strict=True):
        assert bool((crop == 0).any())
        assert labels[0] == 1
        assert bool(labels[1].isnan())
        assert labels[2] == 0


def test_a_few_unknown_pixels_hide_no_class():
    class_map = np.zeros((64, 64), np.uint8)
    class_map[:4, :4] = IGNORE

    batch = source_of([masked_sample(class_map)], plain(crop_px=64, scale=(1.0, 1.0), batch_size=4)).batch(0)

    assert batch.labels.tolist() == [[1.0, 0.0, 0.0]] * 4


def test_the_inside_of_a_crop_is_where_its_image_is():
    batch = source_of(
        [masked_sample(np.zeros((32, 32), np.uint8))], plain(crop_px=64, scale=(0.5, 0.5), batch_size=8)
    ).batch(0)

    assert torch.equal(batch.inside, batch.class_maps != IGNORE)
    alone = source_of([label_only_sample((True, False, False), 32)], plain(crop_px=64, scale=(0.5, 0.5), batch_size=8))
    np.testing.assert_allclose(alone.batch(0).inside.float().mean(dim=(1, 2)), 16 * 16 / 64**2, rtol=0.12)


@pytest.mark.parametrize(("rows", "label"), [(1, float("nan")), (8, 1.0)])
def test_a_few_known_pixels_of_an_unknown_crop_make_no_label(rows, label):
    class_map = np.full((64, 64), IGNORE, np.uint8)
    class_map[28:36, 28 : 28 + rows] = 0
    sample = replace(masked_sample(class_map), labels=(None, None, None))
    # 8 of 4096 px are known, all of them tumor: less than 0.5 % of what the crop shows; then 64

    labels = source_of([sample], plain(crop_px=64, scale=(1.0, 1.0), batch_size=4)).batch(0).labels

    torch.testing.assert_close(labels[:, 0], torch.full((4,), label), equal_nan=True)


def test_a_crop_carries_the_labels_of_what_it_shows():
    class_map = np.full((64, 256), 3, np.uint8)
    class_map[:, :64], class_map[:, 192:] = 0, 1
    source = source_of([masked_sample(class_map)], plain(batch_size=32, scale=(1.0, 1.0)))

    batch = source.batch(0)

    for crop, labels in zip(batch.class_maps, batch.labels.bool().tolist(), strict=True):
        known = crop[crop != IGNORE]
        assert labels == [bool((known == index).float().mean() >= 0.005) for index in range(3)]
    assert {(True, False, False), (False, True, False), (False, False, False)} <= {
        tuple(labels) for labels in batch.labels.bool().tolist()
    }


def test_brightness_scales_each_image_by_its_own_factor():
    sample = masked_sample(np.zeros((32, 32), np.uint8))
    source = source_of([sample], recipe(stain_sigma=0.0, brightness=0.4, batch_size=16))

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


def test_a_patch_of_which_no_pixel_is_known_is_drawn_as_the_commonest_others():
    tumor, stroma = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    label_only = label_only_sample((False, False, True))  # and takes nothing from those that do teach normal tissue
    samples = [masked_sample(tumor), masked_sample(tumor), masked_sample(stroma), label_only]

    np.testing.assert_allclose(sampling_weights(samples, 4, 1.0), np.array([0.5, 0.5, 1, 0.5]) / 2.5)
    np.testing.assert_allclose(sampling_weights([label_only, label_only], 4, 1.0), [0.5, 0.5])


def test_crops_are_as_sharp_as_the_images():
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(image).resize((192, 192), Image.Resampling.BICUBIC))  # as detailed as tissue
    sample = replace(masked_sample(np.zeros((192, 192), np.uint8)), image=image)
    source = source_of([sample], plain(batch_size=16, crop_px=64, scale=(1.0, 1.0)))

    def steepness(images):
        return float(np.abs(np.diff(images, axis=-1)).mean())

    crops = bytes_of(source.batch(0).images).numpy()
    assert steepness(crops) == pytest.approx(steepness(image.transpose(2, 0, 1).astype(float)), rel=0.1)


@pytest.mark.parametrize(("overhang", "least"), [(0.0, 0.0), (0.25, 0.15), (0.5, 0.4)])
def test_crops_that_may_overhang_show_the_rim_too(overhang, least):
    """How often the 16 px at the corners of an image are in a crop, of how often its centre is."""
    corner, centre = np.full((96, 96), 3, np.uint8), np.full((96, 96), 3, np.uint8)
    for rows in (slice(16), slice(-16, None)):
        for columns in (slice(16), slice(-16, None)):
            corner[rows, columns] = 0
    centre[32:64, 32:64] = 0  # as many pixels
    asked = plain(batch_size=400, crop_px=64, scale=(1.0, 1.0), overhang=overhang)

    shown = [float((source_of([masked_sample(of)], asked).batch(0).class_maps == 0).sum()) for of in (corner, centre)]

    assert shown[0] / shown[1] >= least
    assert overhang > 0 or shown[0] / shown[1] < 0.1


def test_a_label_that_unknown_pixels_answer_for_counts_as_the_class():
    unknown = np.full((4, 4), IGNORE, np.uint8)
    bag = replace(masked_sample(unknown), labels=(True, False, None), guesses=(0, 2))

    weights = sampling_weights([bag, masked_sample(np.zeros((4, 4), np.uint8))], 4, 1.0)

    np.testing.assert_allclose(weights, [1 / 2, 1 / 2])


def test_a_stray_stroke_does_not_make_a_sample_one_of_the_class():
    tumor, strayed = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    strayed[0, :7] = 1  # 7 of 1600 px are less than 0.5 %
    stroma, glass = np.ones((40, 40), np.uint8), tumor.copy()
    glass[0, 0] = 3

    # were it one of stroma, it would be drawn as often as the one that is
    np.testing.assert_allclose(
        sampling_weights([masked_sample(m) for m in (tumor, strayed, stroma)], 4, 1.0), [1 / 4, 1 / 4, 1 / 2]
    )
    # background is no label: each pixel of it counts
    np.testing.assert_allclose(sampling_weights([masked_sample(m) for m in (tumor, glass)], 4, 1.0), [1 / 4, 3 / 4])


def test_each_source_gets_its_share_of_the_crops():
    sources = {
        "wsss4luad": [masked_sample(np.full((32, 32), 0, np.uint8))],
        "stas": [masked_sample(np.full((32, 32), 1, np.uint8))] * 7,
        "lc25000": [masked_sample(np.full((32, 32), 2, np.uint8))] * 2,
    }
    asked = plain(batch_size=400, shares={"wsss4luad": 3.0, "stas": 1.0})

    labels = BatchSource(sources, WSSS4LUAD, asked).batch(0).labels

    np.testing.assert_allclose(labels.mean(dim=0), [0.75, 0.25, 0.0], atol=0.08)


def test_a_source_without_images_is_refused_by_name():
    with pytest.raises(InvalidData) as caught:
        BatchSource({"wsss4luad": []}, WSSS4LUAD, recipe())
    assert str(caught.value) == "the recipe draws from wsss4luad, and there are no images of it to learn from"


def test_batches_are_drawn_by_those_weights():
    samples = [masked_sample(np.full((32, 32), index, np.uint8)) for index in (0, 0, 0, 0, 0, 0, 0, 0, 0, 1)]

    def share_of_stroma(rarity):
        source = source_of(samples, plain(batch_size=100, rarity=rarity))
        return float(source.batch(0).labels[:, 1].mean())

    assert share_of_stroma(0.0) < 0.25
    assert 0.35 < share_of_stroma(1.0) < 0.65


# CutMix and blur


def changed_by_cutmix(samples, **changes):
    asked = plain(crop_px=32, scale=(1.0, 1.0), batch_size=40, cutmix=1.0, **changes)
    return source_of(samples, asked.model_copy(update={"cutmix": 0.0})).batch(0), source_of(samples, asked).batch(0)


def test_cutmix_lays_one_rectangle_of_the_next_crop_over_a_crop_and_its_class_map():
    samples = [masked_sample(np.full((64, 64), index, np.uint8)) for index in range(4)]

    before, after = changed_by_cutmix(samples)

    whole = [bool(inside.all()) for inside in before.inside]  # no corner of the turned crop lies outside its image
    checked = 0
    for index in range(len(whole) - 1):
        truth, foreign = after.class_maps[index], before.class_maps[index + 1]
        if not (whole[index] and whole[index + 1]) or torch.equal(foreign, before.class_maps[index]):
            continue
        checked += 1
        rows, columns = torch.where(truth != before.class_maps[index])
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert len(rows) == height * width  # a whole rectangle
        assert min(height, width) >= 9
        assert max(height, width) <= 22  # 0.3 to 0.7 of 32 px
        mixed = torch.where((truth == foreign)[None], before.images[index + 1], before.images[index])
        assert torch.equal(after.images[index], mixed)
        held = {int(before.class_maps[index, 0, 0]), int(foreign[0, 0])}
        assert after.labels[index].tolist() == [float(label in held) for label in range(3)]
    assert checked >= 3


def test_cutmix_is_not_for_crops_of_which_no_pixel_is_known():
    before, after = changed_by_cutmix([label_only_sample((True, False, False), 64)])

    assert torch.equal(before.images, after.images)
    assert torch.equal(before.labels.nan_to_num(9), after.labels.nan_to_num(9))


def test_a_mixture_lacks_what_both_crops_lack_and_the_unknown_hides_the_rest():
    class_map = np.full((64, 64), IGNORE, np.uint8)
    class_map[::4] = 0
    bag = replace(masked_sample(class_map), labels=(True, True, False), guesses=(0, 1))

    _, after = changed_by_cutmix([bag])

    assert (after.labels[:, 0] == 1).all()
    assert after.labels[:, 1].isnan().all()
    assert (after.labels[:, 2] == 0).all()


def test_blur_spreads_a_point_as_a_gaussian_and_keeps_its_light():
    image = torch.zeros((3, 21, 21))
    image[:, 10, 10] = 1.0

    spread = blurred(image, 1.5)

    torch.testing.assert_close(spread.sum(dim=(1, 2)), torch.ones(3))
    away = torch.arange(21.0) - 10
    np.testing.assert_allclose(float((spread[0].sum(dim=0) * away**2).sum()), 1.5**2, rtol=0.02)
    assert torch.equal(spread, spread.flip(1))


def test_blur_leaves_an_even_image_alone():
    torch.testing.assert_close(blurred(torch.full((3, 16, 16), 7.0), MAX_BLUR_PX), torch.full((3, 16, 16), 7.0))


def test_a_recipes_blur_is_for_that_part_of_the_crops():
    samples = drawn_samples(1)
    sharp, some = (source_of(samples, plain(batch_size=32, crop_px=32, blur=share)).batch(0) for share in (0.0, 0.5))

    softened = (sharp.images != some.images).flatten(1).any(dim=1)
    assert 8 <= int(softened.sum()) <= 24
    roughness = [batch.images.diff(dim=3).abs().mean(dim=(1, 2, 3)) for batch in (sharp, some)]
    assert (roughness[1][softened] < roughness[0][softened]).all()
    assert torch.equal(sharp.class_maps, some.class_maps)
