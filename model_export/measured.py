"""What a cross-validation found that the bundle has to carry: scores, label thresholds, temperature."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.pathology.classes import TissueClass
from app.pathology.manifest import Views
from model_export.calibration import TEMPERATURES
from model_export.errors import InvalidData
from model_export.training.environment import differing

_DIGITS = 4

_SCORED = ("model", "averaged")
"""Keys of the project's own checkpoints with the averaged weights, which alone are scored."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Fields of the manifest; they mean what `ModelManifest` says.

    Attributes:
        metrics: Each score's name has `cv_` before it.
        label_thresholds: One for each label class.
        temperature: The one that calibrates the confidence.
    """

    metrics: dict[str, float]
    label_thresholds: tuple[float, ...]
    temperature: float


def read_measured(path: Path, classes: Sequence[TissueClass], views: Views) -> Measured:
    """Read the `scores.json` of a cross-validation of a network with these classes, which looks in so many views.

    The metrics are the pooled scores, but the confidence and the labels are scored as they will be served: with the
    temperature and the thresholds that the folds beside the scored one chose.

    Raises:
        InvalidData: It is no such file, its classes or views are others, or the best temperature lies at the edge of
            those that were tried, so that a better one may lie beyond.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics = {**found["pooled"], "ece": found["calibrated"]["ece"], **found["labels"]["scores"]}
        names, thresholds = found["classes"], found["labels"]["thresholds"]
        measured = Measured(
            {f"cv_{name}": round(float(value), _DIGITS) for name, value in metrics.items()},
            tuple(round(float(value), _DIGITS) for value in thresholds),
            round(float(found["calibrated"]["temperature"]), _DIGITS),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidData(f"{path}: not the scores of a cross-validation: {error}") from error
    wanted = [tissue.name for tissue in classes]
    if names != wanted:
        raise InvalidData(f"{path}: scores of the classes {', '.join(map(str, names))}, not of {', '.join(wanted)}")
    if (scored := found.get("views", 1)) != views:
        raise InvalidData(
            f"{path}: scores of networks that look in {scored} orientations, not in {views}: temperature and"
            f" thresholds are others; evaluate --run RUN --views {views} writes those"
        )
    if not min(TEMPERATURES) < measured.temperature < max(TEMPERATURES):
        raise InvalidData(
            f"{path}: temperature {measured.temperature:g} is at the edge of the range that is searched,"
            f" {min(TEMPERATURES):g} to {max(TEMPERATURES):g}: a confidence this far off is not corrected by one;"
            " train the network longer or on more images"
        )
    return measured


def of_others(path: Path, recipe: Mapping[str, Any], epoch: int | None, key: str | None = None) -> list[str]:
    """Return a line for each reason why a `scores.json`, which `read_measured` read, may not be of these weights.

    Args:
        path: The file, of finished trainings; those of earlier versions do not say by which recipe.
        recipe: What the network was trained by; empty where that is not known.
        epoch: How many of the recipe's epochs it was trained for; None where that is not known.
        key: What the weights were asked for under, of a checkpoint of the project's own; None where they were not.
    """
    doubt = "its scores, thresholds and temperature may not be theirs"
    if not recipe:
        return [f"note: these weights do not note by which recipe they were trained, as those of {path} were: {doubt}"]
    notes = []
    if key not in (None, *_SCORED):
        notes.append(f"note: {path} is of averaged weights, these are under {key}: {doubt}")
    scored = json.loads(path.read_text(encoding="utf-8")).get("recipe")
    if isinstance(scored, dict) and (name := differing(recipe, scored)):
        notes.append(
            f"note: {path} is of networks trained with {name} {scored.get(name)}, these weights with"
            f" {recipe.get(name)}: {doubt}"
        )
    wanted = recipe.get("epochs")
    if epoch is not None and isinstance(wanted, int) and epoch < wanted:
        notes.append(f"note: {path} is of finished trainings, these weights of epoch {epoch} of {wanted}: {doubt}")
    return notes
