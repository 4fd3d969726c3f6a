"""The offline step's commands: `python -m model_export train | evaluate | cross-validate | export | verify`.

python -m model_export train --pairs DATA/pairs --patches DATA/patches --run runs/mine
python -m model_export export --checkpoint runs/mine/best.pth --out bundle --name mine --version 1.0.0
tessera serve --bundle bundle
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import torch

from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import MODEL_FILE
from model_export.config import DEFAULT_RECIPE, MAX_SEED, Recipe, load_recipe
from model_export.errors import InvalidData, ModelExportError
from model_export.evaluate import cross_validate, evaluate_checkpoint, fold_of
from model_export.export import MARGIN_PX, WINDOW_PX, ModelCard, export_bundle, serving_graph
from model_export.factory import load_classes, load_network
from model_export.network import INPUT_MEAN, INPUT_STD, STRIDE
from model_export.training.dataset import Sample, read_labelled_patches, read_pairs
from model_export.training.folds import Fold, split
from model_export.training.loop import Trainer
from model_export.verify import verify

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns the project's errors into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModelExportError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            if error.filename is None:
                raise
            click.echo(f"error: {error.filename}: {error.strerror}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            hint = ": --resume goes on after the last whole epoch" if ctx.invoked_subcommand == "train" else ""
            click.echo(f"interrupted{hint}", err=True)
            ctx.exit(_INTERRUPTED)


class _Terminal:
    """Progress on a terminal: a bar for the steps of an epoch, a line for each phase."""

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        return click.progressbar(steps, label=title)

    def line(self, text: str) -> None:
        click.echo(text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Train a network, score it, and turn it into a bundle that the service runs."""


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    pairs = click.option("--pairs", required=True, type=_FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
    patches = click.option("--patches", type=_FOLDER, help="Folder of PNG patches with labels in their names.")
    return pairs(patches(command))


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    recipe = click.option("--recipe", default=DEFAULT_RECIPE, help="A recipe's name, or a TOML file.")
    epochs = click.option("--epochs", type=click.IntRange(1), help="Train this many epochs instead of the recipe's.")
    seed = click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Use this seed instead of the recipe's.")
    threads = click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
    return recipe(epochs(seed(threads(command))))


def _recipe(name: str, epochs: int | None, seed: int | None) -> Recipe:
    asked = {key: value for key, value in {"epochs": epochs, "seed": seed}.items() if value is not None}
    return load_recipe(name).model_copy(update=asked)


def _extra(patches: Path | None) -> list[Sample]:
    return read_labelled_patches(patches, WSSS4LUAD) if patches else []


@main.command()
@_data_options
@_training_options
@click.option("--run", required=True, type=_FOLDER, help="Folder for checkpoints and metrics.")
@click.option("--fold", default="all", help="Hold out fold K of N for validation, as K/N; all trains on every pair.")
@click.option("--resume", is_flag=True, help="Go on from the run folder's last epoch.")
def train(
    pairs: Path,
    patches: Path | None,
    recipe: str,
    epochs: int | None,
    seed: int | None,
    threads: int | None,
    run: Path,
    fold: str,
    resume: bool,
) -> None:
    """Train the network; the best weights are kept in RUN/best.pth."""
    if threads:
        torch.set_num_threads(threads)
    held = Fold.parse(fold)
    training, held_out = split(read_pairs(pairs, WSSS4LUAD), held)
    samples = [*training, *_extra(patches)]
    trainer = Trainer(run, WSSS4LUAD, _recipe(recipe, epochs, seed), samples, held_out, held)
    if resume and trainer.resume():
        click.echo(f"resuming after epoch {trainer.epochs_done}")
    elif (run / "last.pth").exists():
        raise InvalidData(f"{run}: holds a run already; pass --resume to go on, or choose another folder")
    click.echo(f"{len(samples)} images to learn from, {len(held_out)} held out")
    click.echo(f"kept: {trainer.train(_Terminal())}")


@main.command()
@_data_options
@click.option("--checkpoint", required=True, type=_FILE, help="Weights of the project's own network.")
@click.option("--out", required=True, type=_FOLDER, help="Folder for scores.json and grid.png.")
@click.option("--fold", help="Score only fold K of N, as K/N, or all; by default what the training held out.")
def evaluate(pairs: Path, patches: Path | None, checkpoint: Path, out: Path, fold: str | None) -> None:
    """Score a checkpoint and draw image, truth and prediction side by side."""
    held = Fold.parse(fold or fold_of(checkpoint))
    training, held_out = split(read_pairs(pairs, WSSS4LUAD), held)
    if not held.count:
        click.echo("note: nothing was held out; these scores are of images the network may have learned from")
    scores = evaluate_checkpoint(checkpoint, [*(held_out or training), *_extra(patches)], WSSS4LUAD, out)
    for name, value in scores.as_dict().items():
        click.echo(f"{name:16} {value:.4f}")
    click.echo(f"written: {out}")


@main.command("cross-validate")
@_data_options
@_training_options
@click.option("--run", required=True, type=_FOLDER, help="Folder for the folds' runs and scores.json.")
@click.option("--folds", default=4, type=click.IntRange(2), help="Number of folds.")
def cross_validate_command(
    pairs: Path,
    patches: Path | None,
    recipe: str,
    epochs: int | None,
    seed: int | None,
    threads: int | None,
    run: Path,
    folds: int,
) -> None:
    """Score a recipe on images that each network never saw; goes on where an interrupt stopped it."""
    if threads:
        torch.set_num_threads(threads)
    asked = _recipe(recipe, epochs, seed)
    samples = read_pairs(pairs, WSSS4LUAD)
    summary = cross_validate(run, WSSS4LUAD, asked, samples, _extra(patches), folds, _Terminal())
    for name, value in summary["pooled"].items():
        click.echo(f"{name:16} {value:.4f}   folds {summary['mean'][name]:.4f} +- {summary['sd'][name]:.4f}")


def _numbers(_ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Read three comma-separated numbers of 0 to 1; return them as of 0 to 255."""
    if text is None:
        return None
    try:
        values = tuple(255 * float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(0 <= value <= 255 and (value or param.name != "std") for value in values):
        raise click.BadParameter("three numbers for RGB in 0 to 1, such as 0.485,0.456,0.406")
    return values


def _network_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--checkpoint", required=True, type=_FILE, help="Trained weights; read without running code."),
        click.option("--factory", help="package.module:callable that returns the network; the project's by default."),
        click.option("--classes", type=_FILE, help="JSON class list of the network; the four of WSSS4LUAD by default."),
        click.option("--mean", callback=_numbers, help="Mean of RGB in 0 to 1, as R,G,B; the project's by default."),
        click.option("--std", callback=_numbers, help="Standard deviation of RGB in 0 to 1, likewise."),
        click.option("--stride", default=STRIDE, type=click.IntRange(1, 256), help="Inputs are multiples of it, px."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _card(
    classes: Path | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, stride: int, **rest: Any
) -> ModelCard:
    known = load_classes(classes) if classes else WSSS4LUAD
    return ModelCard(classes=known, mean=mean or INPUT_MEAN, std=std or INPUT_STD, stride=stride, **rest)


@main.command()
@_network_options
@click.option("--out", required=True, type=_FOLDER, help="The bundle's folder; made in one step.")
@click.option("--name", required=True, help="The model's name.")
@click.option("--version", required=True, help="The model's version.")
@click.option("--description", default="", help="One sentence for people.")
@click.option("--window", "window_px", default=WINDOW_PX, help="Side of the largest window to run at once, px.")
@click.option("--margin", "margin_px", default=MARGIN_PX, help="How far a window's border spoils its class map, px.")
@click.option("--um-per-px", type=float, help="Pixel spacing of the training images, um/px, when known.")
@click.option("--training-data", multiple=True, help="What the weights were trained on; may be repeated.")
@click.option("--scores", type=_FILE, help="scores.json of a cross-validation, for the manifest.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(
    checkpoint: Path,
    factory: str | None,
    classes: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    stride: int,
    out: Path,
    scores: Path | None,
    overwrite: bool,
    **rest: Any,
) -> None:
    """Turn trained weights into a verified bundle."""
    card = _card(classes, mean, std, stride, metrics=_metrics(scores) if scores else {}, **rest)
    network = load_network(checkpoint, card.classes, factory)
    for comparison in export_bundle(network, card, out, overwrite):
        click.echo(str(comparison))
    click.echo(f"written: {out}")


@main.command("verify")
@_network_options
@click.option("--bundle", required=True, type=_FOLDER, help="The bundle to compare with the weights.")
def verify_command(
    checkpoint: Path,
    factory: str | None,
    classes: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    stride: int,
    bundle: Path,
) -> None:
    """Compare PyTorch with ONNX Runtime; exit code 2 when they disagree."""
    card = _card(classes, mean, std, stride, name="verified", version="0")
    graph = serving_graph(load_network(checkpoint, card.classes, factory), card)
    if not (bundle / MODEL_FILE).is_file():
        raise InvalidData(f"{bundle / MODEL_FILE}: no such file")
    for comparison in verify(graph, bundle / MODEL_FILE):
        click.echo(str(comparison))
    click.echo("verified")


def _metrics(path: Path) -> dict[str, float]:
    """Read the pooled scores of a cross-validation, each name with `cv_` before it."""
    try:
        pooled = json.loads(path.read_text(encoding="utf-8"))["pooled"]
        return {f"cv_{name}": round(float(value), 4) for name, value in pooled.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidData(f"{path}: not the scores of a cross-validation: {error}") from error


if __name__ == "__main__":
    main(prog_name="python -m model_export")
