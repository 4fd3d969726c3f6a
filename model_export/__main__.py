"""The offline step: `python -m model_export train | evaluate | cross-validate | robustness | export | verify`.

python -m model_export train --pairs DATA/pairs --patches DATA/patches --run runs/mine
python -m model_export export --checkpoint runs/mine/best.pth --out bundle --name mine --version 1.0.0
tessera serve --bundle bundle
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import torch

from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import MODEL_FILE
from model_export.bundle import read_manifest
from model_export.config import DEFAULT_RECIPE, MAX_SEED, Recipe, load_recipe
from model_export.corruptions import CORRUPTIONS
from model_export.errors import InvalidData, InvalidRecipe, ModelExportError
from model_export.evaluate import cross_validate, evaluate_checkpoint, fold_of
from model_export.evaluate import evaluate as write_scores
from model_export.export import MARGIN_PX, WINDOW_PX, ModelCard, export_bundle, serving_graph
from model_export.factory import load_classes, load_network
from model_export.jobs import run_side_by_side
from model_export.measured import read_measured
from model_export.network import INPUT_MEAN, INPUT_STD, STRIDE
from model_export.report.record import read_record
from model_export.robustness import checkpoints_of, held_out_by, score_corruption, write_results
from model_export.training.corpus import Corpus, read_corpus
from model_export.training.dataset import Sample, read_labelled_patches, read_pairs
from model_export.training.folds import Fold, split, untaught
from model_export.training.hardware import Hardware, opened
from model_export.training.loggers import Kind, require
from model_export.training.loop import BEST_FILE, RECIPE_FILE
from model_export.training.pipeline import train_recipe
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
    """Progress on a terminal: a bar for an epoch's steps, a line for each phase; of several processes one talks."""

    def __init__(self, hardware: Hardware) -> None:
        self._talks = hardware.first

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        return click.progressbar(steps, label=title, hidden=not (self._talks and sys.stdout.isatty()))

    def line(self, text: str) -> None:
        if self._talks:
            click.echo(text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Train a network, score it, and turn it into a bundle that the service runs."""


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    pairs = click.option("--pairs", required=True, type=_FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
    patches = click.option("--patches", type=_FOLDER, help="Folder of PNG patches with labels in their names.")
    return pairs(patches(command))


def _source_options(command: Callable[..., None]) -> Callable[..., None]:
    stas = click.option("--stas", type=_FOLDER, help="Folder of STAS, with img/ and mask/, for recipes that use it.")
    ebhi = click.option("--ebhi-seg", type=_FOLDER, help="Folder of EBHI-SEG, likewise.")
    lc25000 = click.option("--lc25000", type=_FOLDER, help="Folder of LC25000, with lung_n/ and lung_aca/, likewise.")
    return stas(ebhi(lc25000(command)))


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    recipe = click.option("--recipe", default=DEFAULT_RECIPE, help="A recipe's name, or a TOML file.")
    epochs = click.option("--epochs", type=click.IntRange(1), help="Train this many epochs instead of the recipe's.")
    seed = click.option("--seed", type=click.IntRange(0, MAX_SEED), help="Use this seed instead of the recipe's.")
    threads = click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
    return recipe(epochs(seed(threads(command))))


def _hardware_options(command: Callable[..., None]) -> Callable[..., None]:
    kinds = click.Choice(["csv", "tensorboard", "wandb"])
    logger = click.option("--logger", default="csv", type=kinds, help="Where numbers go, beside the CSV files.")
    devices = click.Choice(["auto", "cpu", "cuda"])
    device = click.option("--device", default="auto", type=devices, help="auto takes a GPU if torch sees one.")
    workers = click.option("--workers", default=0, type=click.IntRange(0), help="Processes that cut crops ahead.")
    return logger(device(workers(command)))


def _recipe(name: str, epochs: int | None, seed: int | None) -> Recipe:
    asked = {key: value for key, value in {"epochs": epochs, "seed": seed}.items() if value is not None}
    return load_recipe(name).model_copy(update=asked)


def _extra(patches: Path | None) -> list[Sample]:
    return read_labelled_patches(patches, WSSS4LUAD) if patches else []


def _corpus(recipe: Recipe, pairs: Path, patches: Path | None, folders: dict[str, Path | None]) -> Corpus:
    return read_corpus(pairs, patches, folders, recipe.sources, WSSS4LUAD)


@main.command()
@_data_options
@_source_options
@_training_options
@_hardware_options
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
    logger: Kind,
    device: str,
    workers: int,
    run: Path,
    fold: str,
    resume: bool,
    **folders: Path | None,
) -> None:
    """Train the network; the best weights are kept in RUN/best.pth, scores of the last epoch's in RUN/scores.json."""
    if threads:
        torch.set_num_threads(threads)
    held = Fold.parse(fold)
    asked = _recipe(recipe, epochs, seed)
    if not resume and (run / RECIPE_FILE).exists():
        raise InvalidData(f"{run}: holds a run already; pass --resume to go on, or choose another folder")
    require(logger)
    with opened(device, workers) as hardware:
        progress = _Terminal(hardware)
        sources, held_out = _corpus(asked, pairs, patches, folders).part(held)
        counts = ", ".join(f"{len(samples)} of {name}" for name, samples in sources.items())
        progress.line(f"images to learn from: {counts}; held out: {len(held_out)}")
        for note in untaught(sources, held_out, WSSS4LUAD, held):
            progress.line(note)
        trainer = train_recipe(run, WSSS4LUAD, asked, sources, held_out, held, progress, hardware, logger)
        if held_out and hardware.first:
            write_scores(trainer.averaged, held_out, WSSS4LUAD, run)
        if hardware.first:
            _draw_curves(run)
        progress.line(f"kept: {run / BEST_FILE}")


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


@main.command()
@click.option("--pairs", required=True, type=_FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
@click.option("--run", type=_FOLDER, help="Run folder of a cross-validation; each fold's network is scored on its own.")
@click.option("--checkpoint", type=_FILE, help="Or one checkpoint, scored on what its training held out.")
@click.option("--out", required=True, type=_FOLDER, help="Folder for robustness.json and robustness.md.")
@click.option("--before", type=_FILE, help="robustness.json of another network, for a table of both.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
def robustness(
    pairs: Path, run: Path | None, checkpoint: Path | None, out: Path, before: Path | None, threads: int | None
) -> None:
    """Score networks on spoiled images: JPEG, blur, brightness, stain and scale."""
    if threads:
        torch.set_num_threads(threads)
    if (run is None) == (checkpoint is None):
        raise click.UsageError("pass either --run or --checkpoint")
    checkpoints = checkpoints_of(run) if run else [checkpoint] if checkpoint else []
    networks = held_out_by(checkpoints, read_pairs(pairs, WSSS4LUAD), WSSS4LUAD)
    results = {}
    for corruption in CORRUPTIONS:
        results[corruption.name] = score_corruption(corruption, networks, WSSS4LUAD)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in results[corruption.name].items())
        click.echo(f"{corruption.name:36} {shown}")
    write_results(results, sum(len(samples) for _, samples in networks), out, before)
    click.echo(f"written: {out}")


def _fold_commands(run: Path, folds: int, given: Mapping[str, object]) -> dict[str, list[str]]:
    """Return a `train` command for each fold, with the options `given`."""
    options = {name.replace("_", "-"): str(value) for name, value in given.items() if value is not None}
    shared = [text for name, value in options.items() for text in (f"--{name}", value)]
    train_one = [sys.executable, "-m", "model_export", "train", "--resume", *shared]
    return {
        f"fold {index}/{folds}": [*train_one, "--run", str(run / f"fold-{index}"), "--fold", f"{index}/{folds}"]
        for index in range(1, folds + 1)
    }


@main.command("cross-validate")
@_data_options
@_source_options
@_training_options
@_hardware_options
@click.option("--run", required=True, type=_FOLDER, help="Folder for the folds' runs and scores.json.")
@click.option("--folds", default=4, type=click.IntRange(2), help="Number of folds.")
@click.option(
    "--jobs", default=1, type=click.IntRange(1), help="Folds to train at a time, each on a share of the cores."
)
def cross_validate_command(
    pairs: Path,
    patches: Path | None,
    recipe: str,
    epochs: int | None,
    seed: int | None,
    threads: int | None,
    logger: Kind,
    device: str,
    workers: int,
    run: Path,
    folds: int,
    jobs: int,
    **folders: Path | None,
) -> None:
    """Score a recipe on images that each network never saw; goes on where an interrupt stopped it."""
    if threads:
        torch.set_num_threads(threads)
    asked = _recipe(recipe, epochs, seed)
    require(logger)
    if jobs > 1:
        given = {"pairs": pairs, "patches": patches, **folders, "recipe": recipe, "epochs": epochs, "seed": seed}
        given |= {"threads": threads or max(1, torch.get_num_threads() // jobs)}
        given |= {"logger": logger, "device": device, "workers": workers}
        run_side_by_side(_fold_commands(run, folds, given), jobs, click.echo)
    corpus = _corpus(asked, pairs, patches, folders)
    with opened(device, workers) as hardware:
        if hardware.processes > 1:
            raise InvalidRecipe(
                "cross-validate is one process: train --fold K/N with torchrun, fold by fold, before it"
            )
        summary = cross_validate(run, WSSS4LUAD, asked, corpus, folds, _Terminal(hardware), hardware, logger)
    _draw_curves(run)
    for name, value in summary["pooled"].items():
        click.echo(f"{name:16} {value:.4f}   folds {summary['mean'][name]:.4f} +- {summary['sd'][name]:.4f}")
    after, labels = summary["calibrated"], summary["labels"]
    click.echo("chosen on all folds, and judged on each fold as the others choose:")
    click.echo(f"temperature {after['temperature']:.3f}: ece {after['ece']:.4f}")
    for name, threshold, value in zip(labels["classes"], labels["thresholds"], labels["f1"], strict=True):
        click.echo(f"threshold of {name} {threshold:.3f}: f1 {'-' if value is None else f'{value:.4f}'}")


def _draw_curves(run: Path) -> None:
    from model_export.report.charts import write_curves  # noqa: PLC0415  matplotlib imports slowly

    write_curves(read_record(run))


@main.command("report")
@click.argument("run", type=_FOLDER)
@click.option("--out", type=_FILE, help="The page; RUN/report.html by default.")
def report_command(run: Path, out: Path | None) -> None:
    """Write one page of a training or a cross-validation, and its curves.png."""
    from model_export.report.page import REPORT_FILE, write_report  # noqa: PLC0415  others do not wait for it

    _draw_curves(run)
    write_report(read_record(run), out or run / REPORT_FILE)
    click.echo(f"written: {out or run / REPORT_FILE}")


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
@click.option("--scores", type=_FILE, help="scores.json of a cross-validation: metrics, label thresholds, temperature.")
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
    card = _card(classes, mean, std, stride, **rest)
    if scores:
        card = replace(card, **asdict(read_measured(scores, card.classes)))
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
    temperature = read_manifest(bundle).temperature
    card = _card(classes, mean, std, stride, name="verified", version="0", temperature=temperature)
    graph = serving_graph(load_network(checkpoint, card.classes, factory), card)
    if not (bundle / MODEL_FILE).is_file():
        raise InvalidData(f"{bundle / MODEL_FILE}: no such file")
    for comparison in verify(graph, bundle / MODEL_FILE):
        click.echo(str(comparison))
    click.echo("verified")


if __name__ == "__main__":
    main(prog_name="python -m model_export")
