import json

import numpy as np
import pytest
import torch
from torch import nn

from app.pathology.classes import STROMA, TUMOR, WSSS4LUAD
from app.pathology.geometry import Size
from model_export.corruptions import CORRUPTIONS
from model_export.errors import InvalidData
from model_export.robustness import read_results, score_corruption, table, write_results
from model_export.synthetic import draw_patch
from tests.model_export_support import masked_sample, one_thread

IMAGE = draw_patch(0, Size(130, 97), (TUMOR, STROMA))[0]
NAMES = [corruption.name for corruption in CORRUPTIONS]
BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}

TURNS = ("mirrored", "turned by 90 degrees")
SAME_SIZE = [name for name in NAMES if name not in ("turned by 90 degrees", "scale x 0.5", "scale x 2")]


class ByColour(nn.Module):
    """Calls each pixel the class whose colour is nearest: right on `masked_sample`'s images, whatever their place."""

    def forward(self, images):
        colors = torch.tensor([tissue.color for tissue in WSSS4LUAD]).view(1, 4, 3, 1, 1)
        logits = -(images[:, None] * 128 + 127 - colors).square().sum(dim=2)
        return {"out": logits, "labels": torch.zeros((len(images), 3))}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def blocks():
    """A class map of large blocks, none of them symmetric."""
    class_map = np.zeros((48, 64), np.uint8)
    class_map[:16, 40:], class_map[24:, :24], class_map[30:, 40:] = 1, 2, 3
    return class_map


@pytest.mark.parametrize("name", NAMES)
def test_a_corruption_gives_an_image_and_always_the_same_one(name):
    before = IMAGE.copy()

    changed = BY_NAME[name].change(IMAGE)

    assert changed.dtype == np.uint8
    assert changed.shape[2] == 3
    np.testing.assert_array_equal(changed, BY_NAME[name].change(IMAGE))
    np.testing.assert_array_equal(IMAGE, before)
    assert (name == "none") == (changed.shape == IMAGE.shape and bool((changed == IMAGE).all()))
    assert (name in SAME_SIZE) == (changed.shape == IMAGE.shape)


@pytest.mark.parametrize(("factor", "brighter"), [("0.8", False), ("1.2", True)])
def test_brightness_changes_in_its_direction(factor, brighter):
    changed = BY_NAME[f"brightness x {factor}"].change(IMAGE).astype(float)

    assert (changed.mean() > IMAGE.mean()) == brighter
    np.testing.assert_allclose(changed, np.clip(IMAGE * float(factor), 0, 255), atol=0.5)


@pytest.mark.parametrize("stain", ["haematoxylin", "eosin"])
def test_more_stain_is_darker_and_less_is_paler(stain):
    less, more = (BY_NAME[f"{stain} x {factor}"].change(IMAGE).mean() for factor in ("0.6", "1.5"))

    assert more < IMAGE.mean() < less


def test_blur_and_a_low_quality_take_detail_away():
    detail = [
        np.abs(np.diff(BY_NAME[f"Gaussian blur, sigma {px} px"].change(IMAGE).astype(int), axis=1)).mean()
        for px in (1, 2)
    ]

    assert detail[1] < detail[0] < np.abs(np.diff(IMAGE.astype(int), axis=1)).mean()


@pytest.mark.parametrize("name", ["none", *TURNS])
def test_a_class_map_is_brought_back_before_it_is_compared(name):
    scores = score_corruption(BY_NAME[name], [(ByColour(), [masked_sample(blocks())])], WSSS4LUAD)

    assert scores["pixel_accuracy"] == scores["tissue_miou"] == 1.0


@pytest.mark.parametrize("name", ["scale x 0.5", "scale x 0.5, brought back", "scale x 2", "scale x 2, brought back"])
@pytest.mark.parametrize("side", [1, 47, 64])
def test_a_scaled_image_is_compared_at_its_own_size(name, side):
    sample = masked_sample(blocks()[:side, :side])

    scores = score_corruption(BY_NAME[name], [(ByColour(), [sample])], WSSS4LUAD)

    assert scores["pixel_accuracy"] > 0.9  # what is lost lies along the borders of the blocks


def test_scores_are_pooled_over_networks_each_on_its_own_samples():
    class AllTumor(ByColour):
        def forward(self, images):
            outputs = super().forward(images)
            outputs["out"] = torch.zeros_like(outputs["out"])
            outputs["out"][:, 0] = 1
            return outputs

    stroma = masked_sample(np.full((8, 8), 1, np.uint8))
    tumor = masked_sample(np.full((16, 8), 0, np.uint8))

    scores = score_corruption(BY_NAME["none"], [(ByColour(), [tumor]), (AllTumor(), [stroma])], WSSS4LUAD)

    assert scores["pixel_accuracy"] == 128 / 192


RESULTS = {"none": {"tissue_miou": 0.8, "pixel_accuracy": 0.9}, "JPEG": {"tissue_miou": 0.7, "pixel_accuracy": 0.95}}
BEFORE = {"none": {"tissue_miou": 0.6, "pixel_accuracy": 0.7}}
IMAGES = ["00.png", "01.png", "02.png"]


def test_the_table_says_each_score_and_what_it_lost():
    assert table(RESULTS).splitlines() == [
        "| corruption | tissue_miou (change) | pixel_accuracy (change) |",
        "|---|---|---|",
        "| none | 0.800 (+0.000) | 0.900 (+0.000) |",
        "| JPEG | 0.700 (-0.100) | 0.950 (+0.050) |",
    ]


def test_another_networks_results_stand_beside_and_a_missing_one_is_a_dash(tmp_path):
    write_results(BEFORE, IMAGES, tmp_path / "first")
    before = read_results(tmp_path / "first" / "robustness.json", IMAGES[::-1])
    write_results(RESULTS, IMAGES, tmp_path / "second", before)

    written = json.loads((tmp_path / "second" / "robustness.json").read_text())
    assert written == {"images": IMAGES, "corruptions": RESULTS}
    assert (tmp_path / "second" / "robustness.md").read_text().splitlines()[2:] == [
        "| none | 0.600 (+0.000) | 0.800 (+0.000) | 0.700 (+0.000) | 0.900 (+0.000) |",
        "| JPEG | - | 0.700 (-0.100) | - | 0.950 (+0.050) |",
    ]


@pytest.mark.parametrize("content", [None, "", "{}", '{"corruptions": {}}', '{"corruptions": {"none": 3}}'])
def test_results_that_are_none_are_refused_by_name(tmp_path, content):
    path = tmp_path / "before.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(InvalidData) as caught:
        read_results(path, IMAGES)

    assert str(caught.value).startswith(f"{path}: not a robustness.json")


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (IMAGES[:2], "of other images than these: it lacks 02.png"),
        ([*IMAGES, "99.png"], "of other images than these: it has 99.png"),
        (["a.png"], "of other images than these: it lacks 00.png"),
        (3, "does not name its images; write it anew with `robustness`"),  # as earlier versions wrote
        (None, "does not name its images; write it anew with `robustness`"),
        ([0, 1, 2], "does not name its images; write it anew with `robustness`"),
    ],
)
def test_results_on_other_images_are_not_put_beside(tmp_path, images, reason):
    path = tmp_path / "before.json"
    path.write_text(json.dumps({"images": images, "corruptions": BEFORE}))

    with pytest.raises(InvalidData) as caught:
        read_results(path, IMAGES)

    assert str(caught.value) == f"{path}: {reason}"


def test_a_failed_write_leaves_the_old_results_whole(tmp_path, monkeypatch):
    write_results(BEFORE, IMAGES, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_results(RESULTS, IMAGES, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
