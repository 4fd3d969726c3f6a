import json

import numpy as np
import pytest
import torch
from torch import nn

from app.pathology.classes import STROMA, TUMOR, WSSS4LUAD
from app.pathology.geometry import Size
from model_export.checkpoint import save_checkpoint
from model_export.corruptions import CORRUPTIONS
from model_export.errors import InvalidCheckpoint, InvalidData
from model_export.held_out import checkpoints_of
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


def test_the_table_says_each_score_and_what_it_lost():
    assert table(RESULTS).splitlines() == [
        "| corruption | tissue_miou (change) | pixel_accuracy (change) |",
        "|---|---|---|",
        "| none | 0.800 (+0.000) | 0.900 (+0.000) |",
        "| JPEG | 0.700 (-0.100) | 0.950 (+0.050) |",
    ]


def test_another_networks_results_stand_beside_and_a_missing_one_is_a_dash(tmp_path):
    write_results(BEFORE, 3, tmp_path / "first")
    write_results(RESULTS, 3, tmp_path / "second", read_results(tmp_path / "first" / "robustness.json"))

    assert json.loads((tmp_path / "second" / "robustness.json").read_text()) == {"images": 3, "corruptions": RESULTS}
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
        read_results(path)

    assert str(caught.value).startswith(f"{path}: not a robustness.json")


def write_fold(run, index, epochs_done=2, count=10):
    (run / f"fold-{index}").mkdir()
    asked = {"fold": f"{index}/{count}", "recipe": {"epochs": 2}}
    save_checkpoint(run / f"fold-{index}" / "last.pth", {"asked": asked, "epochs_done": epochs_done})


def test_the_folds_of_a_run_come_in_order(tmp_path):
    for index in range(10, 0, -1):
        write_fold(tmp_path, index)

    assert [path.parent.name for path in checkpoints_of(tmp_path)] == [f"fold-{index}" for index in range(1, 11)]


def test_a_fold_that_is_missing_is_named(tmp_path):
    for index in (1, 3):
        write_fold(tmp_path, index, count=3)

    with pytest.raises(InvalidData) as caught:
        checkpoints_of(tmp_path)
    missing = tmp_path / "fold-2" / "last.pth"
    assert str(caught.value) == f"{missing}: missing; the same cross-validate command as before goes on with it"


@pytest.mark.parametrize("index", [1, 2])
def test_a_fold_that_is_not_finished_is_named(tmp_path, index):
    for each in (1, 2):
        write_fold(tmp_path, each, epochs_done=1 if each == index else 2, count=2)

    with pytest.raises(InvalidData, match=rf"fold-{index}/last\.pth: fold {index}/2 has 1 of 2 epochs; "):
        checkpoints_of(tmp_path)


def test_a_checkpoint_that_does_not_say_which_fold_it_is_of_is_refused(tmp_path):
    (tmp_path / "fold-1").mkdir()
    save_checkpoint(tmp_path / "fold-1" / "last.pth", {"asked": None})

    with pytest.raises(InvalidCheckpoint, match="does not note its fold and its epochs"):
        checkpoints_of(tmp_path)


def test_a_failed_write_leaves_the_old_results_whole(tmp_path, monkeypatch):
    write_results(BEFORE, 3, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_results(RESULTS, 3, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_without_folds_is_refused(tmp_path):
    with pytest.raises(InvalidData, match=r"the run folder of a cross-validation is needed$"):
        checkpoints_of(tmp_path)
