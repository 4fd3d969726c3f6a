"""Recipes: everything that decides a training's outcome besides the images, as one TOML file."""

import tomllib
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model_export.errors import InvalidRecipe, first_fault

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Below1 = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Zoom = Annotated[float, Field(ge=0.1, le=10.0)]

DEFAULT_RECIPE = "luad-lite0"
MAX_SEED = 2**32 - 1


Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
TeacherScale = Annotated[float, Field(ge=0.25, le=4.0)]

Source = Literal["wsss4luad", "stas", "ebhi_seg", "lc25000"]
"""Data sets that training crops come from; see `training/sources.py`."""

EncoderName = Literal["efficientnet-lite0", "efficientnet-lite2"]
"""Encoders of the network; see `encoders.py`."""

DEFAULT_ENCODER: EncoderName = "efficientnet-lite0"

BLOCKS: dict[EncoderName, int] = {"efficientnet-lite0": 16, "efficientnet-lite2": 21}
"""How many blocks each encoder has."""


class Teacher(BaseModel):
    """A first network, trained before, whose class maps label what the sources leave unknown.

    Attributes:
        recipe: The name of its recipe, or a TOML file.
        seeds: Train one for each, each another, and average what they say.
        confidence: The least probability of a pixel's class, of those that its image may hold; less stays unknown.
        scales: The zooms at which each image is seen, and over which the probabilities are averaged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    recipe: str
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, strict=False)  # TOML has lists and no tuples
    confidence: Fraction = 0.8
    scales: tuple[TeacherScale, ...] = Field(default=(1.0,), min_length=1, strict=False)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ: one named twice would train the same network again")
        return self


class Recipe(BaseModel):
    """What `train` does to the images it is given.

    What a recipe leaves out is as in `luad-lite0`, but for `slides`: a table is of one set of images.

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
        encoder: The network's encoder, which starts from its ImageNet weights.
        dropout: Dropout before each head.
        detail: Whether the decoder reads half and full resolution too, or stops at a quarter.
        dice_weight: Weight of the Dice loss beside the cross-entropy.
        label_weight: Weight of the classification loss.
        precision: What the network computes in while it learns; weights, losses and validation stay float32.
        average_decay: Decay of the exponential moving average of the weights, the one that is kept.
        statistics_batches: After each epoch the averaged network's batch statistics are taken anew from this many
            batches; with 0 they are the average of those of the network that learns.
        scale: Range of the random zoom; 2.0 shows tissue twice as large.
        overhang: How much of its side a crop may reach beyond its image, if it is not turned, at most half; what lies
            there is not learned from. With 0 an image's rim is hardly ever in a crop.
        stain_sigma: Strength of the H&E stain jitter.
        brightness: Half range of the random brightness factor.
        rarity: 0 draws all images of a source equally often, 1 draws each of its classes equally often.
        shares: How large a part of the crops comes from each source, relative to the others.
        frozen_blocks: The encoder's stem and this many of its first blocks keep the ImageNet weights.
        frozen_statistics: The encoder's batch normalisation keeps the ImageNet statistics.
        cutmix: Probability that a rectangle of another crop is laid over a crop.
        blur: Probability that a crop is out of focus.
        label_patch_px: Learn from labels alone: the pairs are cut into patches of about this side, in px, which keep
            their labels and lose their class maps; see `training/weak.py`.
        bag_weight: Weight of the loss that teaches the class maps from labels.
        slides: Table of which pairs and patches come from one slide, which no split cuts: the name of one that ships,
            or a CSV file with the columns `image` and `slide`. None: each image is a slide of its own. A teacher learns
            from the training part of the network that it teaches, so its own table is not asked.
        teacher: How the unknown pixels of the sources get a class, if at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    seed: Seed = 0
    epochs: int = Field(default=10, ge=1)
    steps_per_epoch: int = Field(default=100, ge=1)
    batch_size: int = Field(default=16, ge=2)
    crop_px: int = Field(default=224, ge=32, multiple_of=32)
    learning_rate: Positive = 1e-3
    encoder_rate: Positive = 0.5
    warmup: Fraction = 0.05
    weight_decay: NotNegative = 1e-2
    encoder: EncoderName = DEFAULT_ENCODER
    dropout: Below1 = 0.2
    detail: bool = True
    dice_weight: NotNegative = 0.5
    label_weight: NotNegative = 0.2
    precision: Literal["float32", "bfloat16"] = "float32"
    average_decay: Below1 = 0.99
    statistics_batches: int = Field(default=0, ge=0)
    scale: tuple[Zoom, Zoom] = Field(default=(0.7, 1.5), strict=False)
    overhang: float = Field(default=0.0, ge=0.0, le=0.5)
    stain_sigma: float = Field(default=0.1, ge=0.0, le=1.0)
    brightness: Fraction = 0.15
    rarity: Fraction = 0.5
    shares: dict[Source, Positive] = Field(default={"wsss4luad": 1.0}, min_length=1)
    frozen_blocks: int = Field(default=0, ge=0)
    frozen_statistics: bool = False
    cutmix: Fraction = 0.0
    blur: Fraction = 0.1
    label_patch_px: int | None = Field(default=None, ge=32)
    bag_weight: NotNegative = 0.0
    slides: str | None = None
    teacher: Teacher | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must go from the smaller to the larger zoom")
        if self.frozen_blocks > BLOCKS[self.encoder]:
            raise ValueError(f"frozen_blocks must be at most {BLOCKS[self.encoder]}, the blocks of {self.encoder}")
        if self.statistics_batches and (self.frozen_statistics or self.frozen_blocks):
            raise ValueError("statistics_batches must be 0 where statistics are frozen: it would replace them")
        return self

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self.epochs * self.steps_per_epoch


def sources_of(recipe: Recipe) -> set[Source]:
    """Return every source that `recipe` or one of its teachers, whose recipes are read, draws from.

    Raises:
        InvalidRecipe: There is no recipe for a teacher, or a recipe is its own teacher.
    """
    return set(recipe.shares).union(*(teacher.shares for teacher in teachers_of(recipe).values()))


def teachers_of(recipe: Recipe) -> dict[str, Recipe]:
    """Read the recipe of the teacher of `recipe`, of that one's teacher, and so on; return them by name, in this order.

    Raises:
        InvalidRecipe: There is no recipe for a teacher, or a recipe is its own teacher.
    """
    found: dict[str, Recipe] = {}
    while recipe.teacher is not None:
        name = recipe.teacher.recipe
        if name in found:
            raise InvalidRecipe(f"{name}: is its own teacher")
        found[name] = recipe = load_recipe(name)
    return found


def load_recipe(name_or_path: str) -> Recipe:
    """Load a recipe that ships with the project, by name, or a TOML file, by path.

    Raises:
        InvalidRecipe: There is no such recipe, or a value in it is unknown, of another type or out of range.
    """
    folder = files("model_export") / "recipes"
    shipped = folder / f"{name_or_path}.toml"
    source = shipped if shipped.is_file() else Path(name_or_path)
    try:
        return Recipe.model_validate(tomllib.loads(source.read_text(encoding="utf-8")))
    except FileNotFoundError:
        names = sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))
        raise InvalidRecipe(
            f"{name_or_path}: neither a recipe of the project ({', '.join(names)}) nor a file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InvalidRecipe(f"{name_or_path}: not readable as TOML: {error}") from error
    except ValidationError as error:
        raise InvalidRecipe(f"{name_or_path}: {first_fault(error)}{_meant(error)}") from error


def _meant(error: ValidationError) -> str:
    """Return how to go on where the first fault of a recipe is a name that no field has; else nothing."""
    fault = error.errors()[0]
    if fault["type"] != "extra_forbidden":
        return ""
    *table, name = fault["loc"]
    near = get_close_matches(str(name), (Teacher if table else Recipe).model_fields, cutoff=0.7)
    return f"; nearest: {', '.join(near)}" if near else "; model_export/config.py lists them"
