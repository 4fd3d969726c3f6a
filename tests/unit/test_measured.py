import json

import numpy as np
import pytest
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.errors import InvalidData
from model_export.evaluate import summarise
from model_export.held_out import epoch_noted
from model_export.measured import of_others, read_measured
from model_export.training.scores import Scores
from tests.model_export_support import TWO_CLASSES, masked_sample

SAMPLES = (
    masked_sample(np.arange(4, dtype=np.uint8).reshape(2, 2).repeat(16, axis=0).repeat(16, axis=1), "all.png"),
    masked_sample(np.array([[0], [3]], np.uint8).repeat(16, axis=0).repeat(32, axis=1), "tumor.png"),
)


def fold(seed):
    """Scores as of a network that is right with two pixels of three, and far too sure."""
    scores = Scores(WSSS4LUAD)
    generator = torch.Generator().manual_seed(seed)
    for sample in SAMPLES:
        truth = torch.from_numpy(sample.class_map).long()
        wrong = torch.rand(truth.shape, generator=generator) < 1 / 3
        said = torch.where(wrong, (truth + 1) % 4, truth)
        scores.add_class_map(sample.class_map, said.byte().numpy())
        scores.add_logits(sample.class_map, 5.0 * torch.nn.functional.one_hot(said, 4).permute(2, 0, 1).float())
        scores.labels.add(sample.labels, [0.4 if has else 0.1 for has in sample.labels])
        scores.images = [*scores.images, {"name": sample.name, **scores.pixel_scores()}]
    return scores


FOLDS = [fold(0), fold(1)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(summarise(FOLDS), allow_nan=False), encoding="utf-8")
    return path


def test_a_cross_validation_is_summed_up_over_pixels_and_over_folds():
    total = FOLDS[0] + FOLDS[1]

    summary = summarise(FOLDS)

    assert summary["pooled"] == total.as_dict()
    assert summary["folds"] == [scores.as_dict() for scores in FOLDS]
    for name in summary["pooled"]:
        values = [scores.as_dict()[name] for scores in FOLDS]
        assert summary["mean"][name] == pytest.approx(sum(values) / 2)
        assert summary["sd"][name] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)  # of a sample of two
        assert summary["count"][name] == 2
    assert summary["classes"] == ["tumor", "stroma", "normal", "background"]
    assert summary["confusion"] == total.confusion.tolist()
    assert summary["calibration"] == total.calibration.unchanged.as_dict()
    assert [image["name"] for image in summary["images"]] == ["all.png", "tumor.png"] * 2


def test_a_score_that_one_fold_alone_has_says_so_and_has_no_spread():
    glass = Scores(WSSS4LUAD)
    glass.add_class_map(np.full((4, 4), 3, np.uint8), np.full((4, 4), 3, np.uint8))

    summary = summarise([FOLDS[0], glass])

    assert (summary["count"]["iou_tumor"], summary["count"]["iou_background"]) == (1, 2)
    assert summary["mean"]["iou_tumor"] == FOLDS[0].as_dict()["iou_tumor"]
    assert summary["sd"]["iou_tumor"] is None


@pytest.mark.parametrize("edge", [0.5, 4.0])
def test_a_temperature_at_the_edge_of_the_search_is_refused(path, edge):
    found = json.loads(path.read_text())
    found["calibrated"]["temperature"] = edge
    path.write_text(json.dumps(found))

    with pytest.raises(InvalidData) as caught:
        read_measured(path, WSSS4LUAD, 1)

    assert str(caught.value).startswith(
        f"{path}: temperature {edge:g} is at the edge of the range that is searched, 0.5 to 4"
    )
    assert len(str(caught.value).splitlines()) == 1


def test_a_network_that_is_too_sure_gets_a_temperature_that_helps_on_the_other_fold():
    summary = summarise(FOLDS)

    assert summary["calibrated"]["temperature"] > 2
    assert summary["calibrated"]["ece"] < 0.1 < summary["calibration"]["ece"]


def test_the_manifest_gets_what_the_network_is_served_with(path):
    summary = summarise(FOLDS)

    measured = read_measured(path, WSSS4LUAD, 1)

    assert measured.label_thresholds == tuple(round(value, 4) for value in summary["labels"]["thresholds"])
    assert measured.temperature == round(summary["calibrated"]["temperature"], 4)
    assert measured.metrics["cv_pixel_accuracy"] == round(summary["pooled"]["pixel_accuracy"], 4)
    assert measured.metrics["cv_ece"] == round(summary["calibrated"]["ece"], 4)
    assert measured.metrics["cv_label_f1_micro"] == round(summary["labels"]["scores"]["label_f1_micro"], 4)
    assert set(measured.metrics) >= {f"cv_{name}" for name in summary["pooled"]}


def test_scores_of_other_classes_are_refused(path):
    with pytest.raises(InvalidData) as caught:
        read_measured(path, TWO_CLASSES, 1)

    assert str(caught.value) == f"{path}: scores of the classes tumor, stroma, normal, background, not of gland, other"


@pytest.mark.parametrize(("scored", "asked"), [(None, 4), (4, 1), (8, 4)])
def test_scores_of_other_views_are_refused(path, scored, asked):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found if scored is None else {**found, "views": scored}))

    with pytest.raises(InvalidData, match=f"look in {scored or 1} orientations, not in {asked}"):
        read_measured(path, WSSS4LUAD, asked)


def test_a_temperature_in_quotes_is_a_number_all_the_same(path):
    found = json.loads(path.read_text())
    found["calibrated"]["temperature"] = "1.25"
    path.write_text(json.dumps(found))

    assert read_measured(path, WSSS4LUAD, 1).temperature == 1.25


@pytest.mark.parametrize(
    ("scored", "trained", "said"),
    [
        ({"seed": 0, "epochs": 14}, {"seed": 3, "epochs": 14}, "with seed 0, these weights with 3: "),
        ({"seed": 0}, {"seed": 0, "blur": 0.5}, "with blur None, these weights with 0.5: "),
        ({"seed": 0}, {"seed": 0}, None),
        (None, {"seed": 3}, None),
    ],
)
def test_scores_of_another_recipe_are_noted_where_both_are_known(path, scored, trained, said):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found if scored is None else {**found, "recipe": scored}))

    notes = of_others(path, trained, 14)

    if said is None:
        assert notes == []
    else:
        [note] = notes
        assert note.startswith(f"note: {path} is of networks trained {said}")


@pytest.mark.parametrize("scored", [None, {"seed": 0, "epochs": 14}])
def test_scores_beside_weights_of_an_unknown_training_are_noted(path, scored):
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found if scored is None else {**found, "recipe": scored}))

    assert of_others(path, {}, 3) == [
        f"note: these weights do not note by which recipe they were trained, as those of {path} were:"
        " its scores, thresholds and temperature may not be theirs"
    ]


@pytest.mark.parametrize(
    ("noted", "epoch"), [({"epochs_done": 3}, 3), ({"epoch": 4}, 4), ({}, None), ({"epoch": "last"}, None)]
)
def test_scores_beside_an_unfinished_checkpoint_are_noted(path, tmp_path, noted, epoch):
    recipe = {"seed": 0, "epochs": 5}
    path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": recipe}))
    save_checkpoint(tmp_path / "last.pth", {"weight": torch.zeros(1), **noted})

    assert epoch_noted(read_checkpoint(tmp_path / "last.pth")) == epoch
    assert of_others(path, recipe, 5) == []
    assert of_others(path, recipe, epoch) == (
        []
        if epoch is None
        else [
            f"note: {path} is of finished trainings, these weights of epoch {epoch} of 5:"
            " its scores, thresholds and temperature may not be theirs"
        ]
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pooled": {"ece": 1}}', '{"scores": {"tissue_miou": 0.5}}'])
def test_anything_else_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_text(content)

    with pytest.raises(InvalidData) as caught:
        read_measured(path, WSSS4LUAD, 1)

    assert str(caught.value).startswith(f"{path}: not the scores of a cross-validation: ")
    assert len(str(caught.value).splitlines()) == 1
