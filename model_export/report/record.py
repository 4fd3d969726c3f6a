"""What a run folder holds, read for people: of one training, or of a cross-validation and its folds."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model_export.errors import InvalidData, first_fault
from model_export.evaluate import GRID_FILE, SCORES_FILE
from model_export.report.contents import Asked, Environment, Scores
from model_export.training.environment import ENVIRONMENT_FILE, RECIPE_FILE
from model_export.training.folds import FOLD_FOLDER, Fold
from model_export.training.loggers import METRICS_FILE, STEPS_FILE
from model_export.training.pipeline import TEACHER_FOLDER

_COUNT_DIGITS = 15
"""Digits of the largest epoch or step that is read: a float holds each such number exactly."""


@dataclass(frozen=True, slots=True)
class Record:
    """A run folder's files; what is not there is empty.

    Attributes:
        folder: The folder.
        asked: `recipe.json`.
        environment: `environment.json`.
        metrics: `metrics.csv`, a row for each phase of each epoch.
        steps: `steps.csv`, a row for each optimiser step.
        scores: `scores.json`.
        grid: `grid.png`.
        folds: The runs of a cross-validation, in order.
        teachers: The runs of the networks that labelled images for this one.
    """

    folder: Path
    asked: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Sequence[Mapping[str, str]]
    steps: Sequence[Mapping[str, str]]
    scores: Mapping[str, Any]
    grid: Path | None
    folds: Sequence["Record"] = field(default=())
    teachers: Sequence["Record"] = field(default=())

    @property
    def trainings(self) -> Sequence["Record"]:
        """The runs that learned what this folder keeps: itself, or its folds."""
        return self.folds or [self]

    @property
    def fold(self) -> Fold:
        """Which part of the pairs it was asked to hold out."""
        return Fold.parse(self.asked.get("fold", "all"))

    def series(self, phase: str, name: str) -> tuple[list[int], list[float]]:
        """Return the epochs in which `phase` has a value of `name`, and the values."""
        rows = [row for row in self.metrics if row["phase"] == phase and row.get(name)]
        return [int(row["epoch"]) for row in rows], [float(row[name]) for row in rows]

    def step_series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps that have a value of `name`, and the values."""
        rows = [row for row in self.steps if row.get(name)]
        return [int(row["step"]) for row in rows], [float(row[name]) for row in rows]


def read_record(run: Path) -> Record:
    """Read a run folder.

    Raises:
        InvalidData: It holds neither a training nor a cross-validation, or one of its files is damaged.
    """
    folds = _folds_of(run)
    if not folds and not (run / RECIPE_FILE).is_file():
        raise InvalidData(f"{run}: no run here: neither {RECIPE_FILE} nor fold-1/{RECIPE_FILE}")
    return Record(
        folder=run,
        asked=_json(run / RECIPE_FILE, Asked),
        environment=_json(run / ENVIRONMENT_FILE, Environment),
        metrics=_csv(run / METRICS_FILE, ("epoch", "phase")),
        steps=_csv(run / STEPS_FILE, ("step",)),
        scores=_json(run / SCORES_FILE, Scores),
        grid=run / GRID_FILE if (run / GRID_FILE).is_file() else None,
        folds=[read_record(folder) for folder in folds],
        teachers=[read_record(path.parent) for path in sorted((run / TEACHER_FOLDER).glob(f"seed-*/{RECIPE_FILE}"))],
    )


def _folds_of(run: Path) -> list[Path]:
    """Return the run folders of the folds in `run`, in the order of their numbers."""
    found = run.glob(f"{FOLD_FOLDER}*/{RECIPE_FILE}")
    numbers = {path.parent: path.parent.name.removeprefix(FOLD_FOLDER) for path in found}
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))


def _json(path: Path, contents: type[BaseModel]) -> Mapping[str, Any]:
    """Return the object that the file holds, which has what `contents` asks for."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidData(f"{path}: holds a {type(found).__name__}, an object is needed")
    try:
        contents.model_validate(found)
    except ValidationError as error:
        raise InvalidData(f"{path}: {first_fault(error)}") from error
    return found


def _csv(path: Path, needed: Sequence[str]) -> Sequence[Mapping[str, str]]:
    """Return the rows, which count by the first column of `needed`; a line that a full disk cut off is no row."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    reader = csv.DictReader(line for line in lines if line.endswith("\n"))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise InvalidData(f"{path}: not a table: {error}") from error
    if reader.fieldnames is None:  # just begun
        return []
    if not set(needed) <= set(reader.fieldnames):
        raise InvalidData(f"{path}: has no column {', '.join(needed)}")
    for row in rows:
        if not _is_count(row[needed[0]]):
            raise InvalidData(f"{path}: {needed[0]} is {row[needed[0]]!r} in a row, a whole number is needed")
        for name, value in row.items():
            if name != "phase" and not _is_number(value):
                raise InvalidData(f"{path}: {name} is {value!r} in a row, a number is needed")
    return rows


def _is_count(text: str | None) -> bool:
    return text is not None and text.isdecimal() and len(text) <= _COUNT_DIGITS


def _is_number(text: object) -> bool:
    try:
        float(str(text or 0))
    except ValueError:
        return False
    return True
