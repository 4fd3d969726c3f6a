"""Options that commands share, and what they ask for."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import Views
from model_export.config import DEFAULT_RECIPE, MAX_SEED, Recipe, load_recipe, sources_of
from model_export.errors import InvalidData
from model_export.training.corpus import Corpus, read_corpus
from model_export.training.environment import RECIPE_FILE
from model_export.training.folds import FOLD_FOLDER
from model_export.training.run_state import LAST_FILE
from model_export.training.slides import is_shipped, load_slides, require_named

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)


class FiniteRange(click.FloatRange):
    """A number within a range. `nan`, which click finds in any, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or refuse it."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for the pairs and the patches with labels."""
    pairs = click.option("--pairs", required=True, type=FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
    patches = click.option("--patches", type=FOLDER, help="Folder of PNG patches with labels in their names.")
    return pairs(patches(command))


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for the folder of each further source."""
    stas = click.option("--stas", type=FOLDER, help="Folder of STAS, with img/ and mask/, for recipes that use it.")
    ebhi = click.option("--ebhi-seg", type=FOLDER, help="Folder of EBHI-SEG, for recipes that use it.")
    lc25000 = click.option(
        "--lc25000", type=FOLDER, help="Folder of LC25000, with lung_n/ and lung_aca/, for recipes that use it."
    )
    return stas(ebhi(lc25000(command)))


def training_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what a training does."""
    recipe = click.option("--recipe", default=DEFAULT_RECIPE, help="Name of a shipped recipe, or path of a TOML file.")
    epochs = click.option("--epochs", type=click.IntRange(1), help="Train this many epochs instead of the recipe's.")
    seed = click.option(
        "--seed", type=click.IntRange(0, MAX_SEED), help="Use this seed instead of the recipe's; teachers keep theirs."
    )
    threads = click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
    return recipe(epochs(seed(threads(command))))


def hardware_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say what a training runs on, and who watches."""
    kinds = click.Choice(["csv", "tensorboard", "wandb"])
    logger = click.option(
        "--logger", default="csv", type=kinds, help="Where to log metrics, in addition to the CSV files."
    )
    devices = click.Choice(["auto", "cpu", "cuda"])
    device = click.option("--device", default="auto", type=devices, help="auto takes a GPU if torch sees one.")
    workers = click.option(
        "--workers",
        default=0,
        type=click.IntRange(0),
        help="Processes that cut crops in advance; 0 cuts them between steps.",
    )
    return logger(device(workers(command)))


def views_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option for how often a network looks at an image."""
    return click.option(
        "--views",
        default=1,
        type=click.Choice(get_args(Views)),
        help="Views to average: 1 is the image as it is; 2 adds it turned by 180 degrees; 4 adds both mirrored; 8 adds"
        " all four transposed.",
    )(command)


def checkpoints_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options for what it scores: one checkpoint, or a cross-validation's."""
    run = click.option(
        "--run",
        type=FOLDER,
        help="Run folder of a cross-validation: each fold's network is scored on what its training held out.",
    )
    checkpoint = click.option(
        "--checkpoint", type=FILE, help="Instead of --run: one checkpoint, scored on what its training held out."
    )
    return run(checkpoint(command))


def refuse_run(out: Path) -> None:
    """Refuse to write scores over those that a training or a cross-validation keeps in its folder.

    Raises:
        InvalidData: `out` is such a folder.
    """
    folders = [out, *out.glob(f"{FOLD_FOLDER}*")]
    if any((folder / name).exists() for folder in folders for name in (RECIPE_FILE, LAST_FILE)):
        raise InvalidData(f"{out}: the folder of a run, which keeps its own scores there; pass --out {out / 'scores'}")


def either(run: Path | None, checkpoint: Path | None, *others: str) -> None:
    """Refuse both of `checkpoints_option`, and neither; `others` are what the command takes instead of them."""
    if (run is None) == (checkpoint is None):
        *names, last = "--run", "--checkpoint", *others
        raise click.UsageError(f"pass either {', '.join(names)} or {last}")


def recipe_of(name: str, epochs: int | None, seed: int | None) -> Recipe:
    """Return the recipe that is asked for; `epochs` and `seed` win over its own."""
    asked = {key: value for key, value in {"epochs": epochs, "seed": seed}.items() if value is not None}
    return load_recipe(name).model_copy(update=asked)


def corpus_of(recipe: Recipe, pairs: Path, patches: Path | None, folders: dict[str, Path | None]) -> Corpus:
    """Read every image that `recipe` needs.

    Raises:
        InvalidData: An image or a folder is wrong, or the recipe's own table of slides is of other images.
    """
    slides = load_slides(recipe.slides)
    corpus = read_corpus(pairs, patches, folders, sources_of(recipe), WSSS4LUAD, slides)
    if recipe.slides is not None and not is_shipped(recipe.slides):  # a shipped one comes with a shipped recipe
        require_named(recipe.slides, slides, (pair.name for pair in corpus.pairs))
    return corpus
