"""The scores that the model card and the README state are those of the shipped bundles' manifests."""

import json
import re
from decimal import ROUND_HALF_UP, Decimal

import pytest

from tests.conftest import ROOT

TISSUES = ("tumor", "stroma", "normal")
CARD, README = ("docs/model-card.md", "README.md")

DEFAULT = {
    "mean IoU of tumor, stroma, normal": ("tissue_miou",),
    "IoU tumor": ("iou_tumor",),
    "IoU stroma": ("iou_stroma",),
    "IoU normal": ("iou_normal",),
    "IoU background": ("iou_background",),
    "pixel accuracy, four classes": ("pixel_accuracy",),
    "label accuracy, three labels": ("label_accuracy",),
    "label F1, micro": ("label_f1_micro",),
}
QUALITY = {
    "mean IoU of tumor, stroma, normal": ("tissue_miou",),
    "pixel accuracy, four classes": ("pixel_accuracy",),
    "mean IoU, background given": ("miou_background_given",),
    "tissue's pixels right, background given": ("accuracy_background_given",),
    "IoU tumor / stroma / normal / background": tuple(f"iou_{name}" for name in (*TISSUES, "background")),
    "label F1, micro, by the chosen thresholds": ("label_f1_micro",),
    "expected calibration error, by the others' temperature": ("ece",),
}
"""What the rows of the card's tables say, by the names of a manifest's metrics; a bundle's own scores are the second
column."""


def manifest(bundle):
    return json.loads((ROOT / "app" / bundle / "manifest.json").read_text(encoding="utf-8"))


def stated(values, digits=3):
    """Return numbers as a text states them, each half rounded up."""
    least = Decimal(1).scaleb(-digits)
    return [str(Decimal(str(value)).quantize(least, ROUND_HALF_UP)) for value in values]


def text_of(path):
    """Return a page's text in one line."""
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


def second_column(heading):
    """Return what the first table under a heading of the card says in its second column of numbers, by row."""
    _, section = (ROOT / CARD).read_text(encoding="utf-8").split(f"\n{heading}\n")
    rows = re.findall(r"^\|.*\|$", section.split("\n#")[0].split("\n\n|", 1)[1].split("\n\n")[0], re.MULTILINE)
    cells = [[cell.strip().strip("*") for cell in row.strip("|").split("|")] for row in rows]
    return {name: values[1] for name, *values in cells}


@pytest.mark.parametrize(
    ("bundle", "heading", "rows"),
    [
        ("bundle", "## Scores", DEFAULT),
        ("bundle-quality", "### The challenge's own measure, and the quality bundle", QUALITY),
    ],
)
def test_the_cards_tables_state_the_manifests_scores(bundle, heading, rows):
    metrics, table = manifest(bundle)["metrics"], second_column(heading)

    expected = {row: " / ".join(stated(metrics[f"cv_{name}"] for name in names)) for row, names in rows.items()}

    assert {row: table.get(row) for row in rows} == expected


def test_the_cards_sentences_state_the_manifests_scores():
    said, card = manifest("bundle"), text_of(CARD)
    metrics = said["metrics"]
    tumor, stroma, normal = stated((metrics[f"cv_label_f1_{name}"] for name in TISSUES), 2)
    [ece], [temperature] = stated([metrics["cv_ece"]]), stated([said["temperature"]], 2)
    first, second, third = stated(said["label_thresholds"], 2)

    assert f"F1 is {tumor}, {stroma} and {normal} for tumor, stroma and normal" in card
    assert f"as trained, and {ece} with the temperature" in card
    assert f"divided by a temperature of {temperature}," in card
    assert f"Thresholds {first}, {second} and {third} for tumor, stroma and normal" in card


def test_the_cards_images_that_are_not_spoiled_have_the_manifests_scores():
    names = ("cv_tissue_miou", "cv_pixel_accuracy")
    own = [[manifest(bundle)["metrics"][name] for name in names] for bundle in ("bundle", "bundle-quality")]

    rows = re.findall(r"^\| none \|.*\| (.*) \|$", (ROOT / CARD).read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == [" / ".join(stated(scores)) for scores in own]


def test_the_readme_states_the_quality_bundles_score():
    [score] = stated([manifest("bundle-quality")["metrics"]["cv_tissue_miou"]])

    assert re.search(rf"mean IoU on held-out pairs from 0\.\d{{3}} to {re.escape(score)},", text_of(README))
