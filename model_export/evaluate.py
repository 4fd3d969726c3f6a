"""Scoring checkpoints: one on given samples, or a recipe by cross-validation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from app.pathology.classes import TissueClass
from app.pathology.manifest import ModelManifest, Views
from model_export.answers import answers, scored
from model_export.atomic import write_text
from model_export.calibration import calibrated
from model_export.config import Recipe
from model_export.labels import f1, with_chosen_thresholds
from model_export.pictures import write_grid
from model_export.predict import predict
from model_export.training.corpus import Corpus
from model_export.training.dataset import Sample
from model_export.training.folds import FOLD_FOLDER, Fold, untaught
from model_export.training.hardware import Hardware
from model_export.training.loggers import Kind
from model_export.training.loop import Progress
from model_export.training.pipeline import seen_by, train_recipe
from model_export.training.scores import Scores, score

SCORES_FILE = "scores.json"
GRID_FILE = "grid.png"


def evaluate(
    network: nn.Module, samples: Sequence[Sample], classes: Sequence[TissueClass], out: Path, pictures: int = 12
) -> Scores:
    """Score `network` on `samples`; write `scores.json` and `grid.png`, of the first `pictures` masked ones, to `out`.

    `scores.json` holds `scores` by name, `classes`, `confusion`, `calibration` of the network's own probabilities,
    `labels` with the probabilities they were read off, and `images`, each with its own scores and confusion.

    Returns:
        The scores, summed over the samples.
    """
    scores, _ = score(network, samples, classes)
    out.mkdir(parents=True, exist_ok=True)
    shown = [sample for sample in samples if sample.has_mask][:pictures]
    if shown:
        maps = [predict(network, sample.image).class_map for sample in shown]
        write_grid(out / GRID_FILE, shown, maps, classes)
    _write_json(out / SCORES_FILE, {"scores": scores.as_dict(), **_parts(scores), "labels": scores.labels.as_dict()})
    return scores


def evaluate_bundle(
    model: Path, manifest: ModelManifest, samples: Sequence[Sample], out: Path | None = None, pictures: int = 12
) -> dict[str, float]:
    """Score a bundle's graph on samples with class maps, its labels by the manifest's thresholds.

    The graph gives the winner's confidence alone, in steps of 1/255, which is what `ece` needs. What needs the other
    classes' too (`nll`, `brier`, scores with the background given) is left out.

    Args:
        model: The graph.
        manifest: What the bundle says of it.
        samples: What to score it on, with class maps of its own classes.
        out: Gets `scores.json` and `grid.png`, as `evaluate` writes them, where it is given.
        pictures: How many rows the grid has at most.

    Returns:
        The scores by name, summed over the samples.

    Raises:
        VerificationFailed: ONNX Runtime does not load or run the graph.
    """
    found = answers(model, manifest, [sample.image for sample in samples])
    scores = scored(manifest, samples, found)
    given = scores.labels.predicted(manifest.label_thresholds)
    by_name = {**scores.pixel_scores(), **scores.confidence_scores(), **scores.labels.scores(given)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_grid(out / GRID_FILE, samples[:pictures], [one.class_map for one in found[:pictures]], manifest.classes)
        parts = _parts(scores)
        parts["calibration"] = {name: parts["calibration"][name] for name in ("ece", "bins")}
        truth = np.array(scores.labels.truth, np.bool_).reshape(given.shape)
        by_thresholds = {"thresholds": list(manifest.label_thresholds), "f1": f1(truth, given)}
        labels = {**scores.labels.as_dict(), **by_thresholds}
        _write_json(out / SCORES_FILE, {"scores": by_name, **parts, "labels": labels})
    return by_name


def cross_validate(
    run: Path,
    classes: Sequence[TissueClass],
    recipe: Recipe,
    corpus: Corpus,
    folds: int,
    progress: Progress,
    hardware: Hardware | None = None,
    logger: Kind = "csv",
) -> dict[str, Any]:
    """Train once without each fold, score each on its own fold's images, and sum up.

    The run folder gets a run `fold-K` for each fold and `scores.json`. A second call goes on where the first stopped.
    What is scored is each run's last epoch, not its best: choosing the epoch on the fold that is reported would be
    tuning on it.

    Args:
        run: The run folder.
        classes: The classes of the class maps.
        recipe: What each training does.
        corpus: The pairs to split, and what every training part gets beside its own.
        folds: How many folds.
        progress: Told of every epoch.
        hardware: What to compute on; one process on the CPU by default.
        logger: What each training keeps beside the CSV files.

    Returns:
        What `summarise` makes of the folds, the `recipe`, and `views`: 1, which is what a training has.
    """
    by_fold: list[Scores] = []
    parts = [(fold, *corpus.part(fold)) for fold in (Fold(index, folds) for index in range(folds))]
    for fold, sources, held_out in parts:
        for note in untaught(seen_by(recipe, sources, classes), held_out, classes, fold):
            progress.line(note)
    for fold, sources, held_out in parts:
        folder = run / f"{FOLD_FOLDER}{fold.index + 1}"
        network = train_recipe(folder, classes, recipe, sources, held_out, fold, progress, hardware, logger)
        by_fold.append(evaluate(network, held_out, classes, folder))
    return _summed_up(by_fold, run, recipe.model_dump(mode="json"))


def evaluate_folds(
    networks: Sequence[tuple[nn.Module, Sequence[Sample]]],
    classes: Sequence[TissueClass],
    out: Path,
    recipe: Mapping[str, Any],
    views: Views = 1,
) -> dict[str, Any]:
    """Score each fold's network on the images that it never saw, and sum up, as `cross_validate` does.

    Args:
        networks: Each fold's network, in order, with what its training held out.
        classes: The classes of the class maps.
        out: Gets a folder `fold-K` for each fold and `scores.json`.
        recipe: What the folds were trained by, for the record.
        views: In how many orientations each network looks, for the record.

    Returns:
        What `summarise` makes of the folds, the `recipe` and `views`.
    """
    by_fold = [
        evaluate(network, samples, classes, out / f"{FOLD_FOLDER}{index}")
        for index, (network, samples) in enumerate(networks, start=1)
    ]
    return _summed_up(by_fold, out, recipe, views)


def _summed_up(by_fold: Sequence[Scores], out: Path, recipe: Mapping[str, Any], views: Views = 1) -> dict[str, Any]:
    summary = {**summarise(by_fold), "recipe": recipe, "views": views}
    _write_json(out / SCORES_FILE, summary)
    return summary


def summarise(folds: Sequence[Scores]) -> dict[str, Any]:
    """Sum up a cross-validation.

    Label thresholds and the temperature are chosen on all folds, which is what a network trained on all images may be
    served with. What they are worth is said of each fold with what the others choose, never of the images they were
    chosen on. One tie is left: the probabilities that the others choose by come from networks that learned from the
    judged fold. Only a nested cross-validation, a training for each pair of folds, would be free of it.

    Args:
        folds: At least two, each scored by a network that never saw its images.

    Returns:
        `pooled` (from the sums over all folds), `mean` and `sd` over `folds`, each scores by name, without any choice:
        at temperature 1 and thresholds of one half. `count` tells over how many folds: one whose images say nothing
        about a score is left out. `sd` is the sample standard deviation, None for one fold.
        `classes`, `confusion`, `calibration` and `images` as `evaluate` writes them. `calibrated` as
        `calibration.calibrated` and `labels` as `labels.with_chosen_thresholds` return them.
    """
    each = [scores.as_dict() for scores in folds]
    names = list(dict.fromkeys(name for scores in each for name in scores))
    values = {name: [scores[name] for scores in each if name in scores] for name in names}
    total = sum(folds, start=Scores(folds[0].classes))
    return {
        "pooled": total.as_dict(),
        "mean": {name: float(np.mean(found)) for name, found in values.items()},
        "sd": {name: float(np.std(found, ddof=1)) if len(found) > 1 else None for name, found in values.items()},
        "count": {name: len(found) for name, found in values.items()},
        "folds": each,
        **_parts(total),
        "calibrated": calibrated([scores.calibration for scores in folds]),
        "labels": with_chosen_thresholds([scores.labels for scores in folds]),
    }


def _parts(scores: Scores) -> dict[str, Any]:
    return {
        "classes": [tissue.name for tissue in scores.classes],
        "confusion": scores.confusion.tolist(),
        "calibration": scores.calibration.unchanged.as_dict(),
        "images": scores.images,
    }


def _write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
