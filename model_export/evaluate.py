"""Scoring checkpoints: one on given samples, or a recipe by cross-validation."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from app.pathology.classes import TissueClass
from model_export.checkpoint import load_checkpoint
from model_export.config import Recipe
from model_export.factory import load_network
from model_export.pictures import write_grid
from model_export.predict import predict
from model_export.training.dataset import Sample
from model_export.training.folds import Fold, split
from model_export.training.loop import Progress, Trainer, score
from model_export.training.scores import Scores

SCORES_FILE = "scores.json"
GRID_FILE = "grid.png"


def evaluate(
    network: nn.Module, samples: Sequence[Sample], classes: Sequence[TissueClass], out: Path, pictures: int = 12
) -> Scores:
    """Score `network` on `samples`; write `scores.json` and `grid.png`, of the first `pictures` masked ones, to `out`.

    Returns:
        The scores, summed over the samples.
    """
    scores, _ = score(network, samples, classes)
    out.mkdir(parents=True, exist_ok=True)
    shown = [sample for sample in samples if sample.has_mask][:pictures]
    if shown:
        maps = [predict(network, sample.image).class_map for sample in shown]
        write_grid(out / GRID_FILE, shown, maps, classes)
    _write_json(out / SCORES_FILE, {"scores": scores.as_dict(), "confusion": scores.confusion.tolist()})
    return scores


def cross_validate(
    run: Path,
    classes: Sequence[TissueClass],
    recipe: Recipe,
    pairs: Sequence[Sample],
    extra: Sequence[Sample],
    folds: int,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Train once without each fold, score each on its own fold's images, and sum up.

    The run folder gets a run `fold-K` for each fold and `scores.json`. A second call goes on where the first stopped.
    What is scored is each run's last epoch, not its best: choosing the epoch on the fold that is reported would be
    tuning on it.

    Args:
        run: The run folder.
        classes: The classes of the class maps.
        recipe: What each training does.
        pairs: The samples to split.
        extra: Samples that every training part gets beside its pairs.
        folds: How many folds.
        progress: Told of every epoch.

    Returns:
        `pooled` (from the summed confusion), `mean` and `sd` over folds; each a dictionary of scores by name.
    """
    by_fold: list[Scores] = []
    for index in range(folds):
        fold = Fold(index, folds)
        training, held_out = split(pairs, fold)
        folder = run / f"fold-{index + 1}"
        trainer = Trainer(folder, classes, recipe, [*training, *extra], held_out, fold)
        trainer.resume()
        trainer.train(progress)
        by_fold.append(evaluate(trainer.averaged, held_out, classes, folder))
    each = [scores.as_dict() for scores in by_fold]
    names = list(dict.fromkeys(name for scores in each for name in scores))
    values = {name: [scores[name] for scores in each if name in scores] for name in names}
    summary = {
        "pooled": sum(by_fold[1:], start=by_fold[0]).as_dict(),
        "mean": {name: float(np.mean(found)) for name, found in values.items()},
        "sd": {name: float(np.std(found)) for name, found in values.items()},
    }
    _write_json(run / SCORES_FILE, {**summary, "folds": each})
    return summary


def evaluate_checkpoint(
    checkpoint: Path, samples: Sequence[Sample], classes: Sequence[TissueClass], out: Path
) -> Scores:
    """Score the project's own network with a checkpoint's weights, as `evaluate` does."""
    return evaluate(load_network(checkpoint, classes), samples, classes, out)


def fold_of(checkpoint: Path) -> str:
    """Return which fold the checkpoint's training held out, as `Fold.parse` reads it; "all" when none is noted."""
    asked = load_checkpoint(checkpoint).get("asked", {})
    return str(asked.get("fold", "all"))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
