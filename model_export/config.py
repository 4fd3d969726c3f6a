"""Recipes: everything that decides a training's outcome besides the images, as one TOML file."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_export.errors import InvalidRecipe

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

DEFAULT_RECIPE = "luad-lite0"
MAX_SEED = 2**32 - 1


class Recipe(BaseModel):
    """What `train` does to the images it is given.

    Attributes:
        seed: Seed of every random choice; the choices of a step depend on the seed and the step alone.
        epochs: Number of epochs; validation and a checkpoint follow each.
        steps_per_epoch: Optimiser steps in an epoch.
        batch_size: Crops in a step.
        crop_px: Side of a crop, in px, a multiple of the network's stride.
        learning_rate: Peak rate of the heads; the schedule is a linear warm-up, then a cosine to zero.
        encoder_rate: The encoder's rate as a fraction of `learning_rate`.
        warmup: Fraction of all steps spent warming up.
        weight_decay: AdamW's decoupled weight decay.
        dropout: Dropout before each head.
        dice_weight: Weight of the Dice loss beside the cross-entropy.
        label_weight: Weight of the classification loss.
        average_decay: Decay of the exponential moving average of the weights, the one that is kept.
        scale: Range of the random zoom; 2.0 shows tissue twice as large.
        stain_sigma: Strength of the H&E stain jitter.
        brightness: Half range of the random brightness factor.
        rarity: 0 draws all images equally often, 1 draws each class equally often.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    epochs: int = Field(default=14, ge=1)
    steps_per_epoch: int = Field(default=100, ge=1)
    batch_size: int = Field(default=16, ge=2)
    crop_px: int = Field(default=224, ge=32, multiple_of=32)
    learning_rate: Positive = 1e-3
    encoder_rate: Positive = 0.5
    warmup: Fraction = 0.05
    weight_decay: float = Field(default=1e-2, ge=0.0)
    dropout: Fraction = 0.2
    dice_weight: float = Field(default=0.5, ge=0.0)
    label_weight: float = Field(default=0.2, ge=0.0)
    average_decay: Fraction = 0.99
    scale: tuple[Positive, Positive] = (0.7, 1.5)
    stain_sigma: float = Field(default=0.1, ge=0.0)
    brightness: Fraction = 0.15
    rarity: Fraction = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must go from the smaller to the larger zoom")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe that ships with the project, by name, or a TOML file, by path.

    Raises:
        InvalidRecipe: There is no such recipe, or a value in it is unknown or out of range.
    """
    shipped = files("model_export") / "recipes" / f"{name_or_path}.toml"
    source = shipped if shipped.is_file() else Path(name_or_path)
    try:
        return Recipe.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InvalidRecipe(f"{name_or_path}: neither a recipe of the project nor a file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidRecipe(f"{name_or_path}: not readable as TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRecipe(f"{name_or_path}: {where}: {first['msg']}") from error
