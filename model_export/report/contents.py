"""What the JSON files of a run folder have to hold, as far as a report shows it; the rest of them may be anything."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model_export.errors import InvalidRecipe
from model_export.training.folds import Fold

Score = float | None
Seconds = Annotated[float, Field(ge=0.0, le=1e9)]


class _Contents(BaseModel):
    model_config = ConfigDict(strict=True)


class Asked(_Contents):
    """`recipe.json`."""

    recipe: dict[str, Any] = {}
    fold: str = "all"

    @field_validator("fold")
    @classmethod
    def _known(cls, fold: str) -> str:
        try:
            Fold.parse(fold)
        except InvalidRecipe as error:
            raise ValueError(str(error)) from error
        return fold


class Environment(_Contents):
    """`environment.json`."""

    seconds: Seconds = 0.0


class Bin(_Contents):
    """Pixels of a range of confidences."""

    low: float
    high: float
    count: int = Field(ge=0)
    confidence: Score
    accuracy: Score

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if self.count and (self.confidence is None or self.accuracy is None):
            raise ValueError("a bin that holds pixels has a confidence and an accuracy")
        return self


class Calibration(_Contents):
    """How far the confidences can be believed."""

    ece: Score
    bins: list[Bin]


class Calibrated(_Contents):
    """The same with a temperature."""

    ece: Score
    temperature: float


class Labels(_Contents):
    """The labels of the images; each row of `truth` is an image."""

    classes: list[str]
    thresholds: list[float]
    f1: list[Score]
    truth: list[list[bool]]

    @model_validator(mode="after")
    def _matching(self) -> Self:
        rows: list[Sequence[object]] = [self.thresholds, self.f1, *self.truth]
        if any(len(row) != len(self.classes) for row in rows):
            raise ValueError("thresholds, f1 and each row of truth hold one value for each of the classes")
        return self


class Image(_Contents):
    """One image: its name, its scores and, if it has a class map, its confusion."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Score] = Field(init=False)

    name: str
    confusion: Any = None
    pixel_accuracy: float = 1.0


class Scores(_Contents):
    """`scores.json`, of one network or of a cross-validation, which has `pooled` and what goes with it."""

    scores: dict[str, Score] = {}
    pooled: dict[str, Score] = {}
    mean: dict[str, Score] = {}
    sd: dict[str, Score] = {}
    count: dict[str, int] = {}
    folds: list[dict[str, Score]] = []
    classes: list[str] = []
    confusion: list[list[Annotated[int, Field(ge=0)]]] = []
    calibration: Calibration = Calibration(ece=None, bins=[])
    calibrated: Calibrated = Calibrated(ece=None, temperature=1.0)
    labels: Labels = Labels(classes=[], thresholds=[], f1=[], truth=[])
    images: list[Image] = []

    @model_validator(mode="after")
    def _matching(self) -> Self:
        given = self.model_fields_set
        if "pooled" in given and not {"mean", "sd", "folds"} <= given:
            raise ValueError("pooled needs mean, sd and folds beside it")
        if {"classes", "confusion"} <= given and len(self.classes) != len(self.confusion):
            raise ValueError("confusion holds one row for each of the classes")
        return self
