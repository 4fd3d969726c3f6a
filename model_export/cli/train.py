"""`train`, and `cross-validate`, which trains once a fold."""

import sys
from collections.abc import Mapping
from pathlib import Path

import click
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.cli.options import (
    FOLDER,
    corpus_of,
    data_options,
    hardware_options,
    recipe_of,
    source_options,
    training_options,
)
from model_export.cli.report import draw_curves
from model_export.cli.terminal import Terminal, show_summary
from model_export.errors import InvalidData, InvalidRecipe
from model_export.evaluate import cross_validate, evaluate
from model_export.jobs import run_side_by_side
from model_export.training.environment import RECIPE_FILE
from model_export.training.folds import FOLD_FOLDER, Fold, untaught, without_slides
from model_export.training.hardware import opened
from model_export.training.loggers import Kind, require
from model_export.training.pipeline import seen_by, train_recipe
from model_export.training.run_state import BEST_FILE, LAST_FILE


@click.command()
@data_options
@source_options
@training_options
@hardware_options
@click.option("--run", required=True, type=FOLDER, help="Folder for checkpoints and metrics.")
@click.option("--fold", default="all", help="Hold out fold K of N for validation, as K/N; all trains on every pair.")
@click.option("--resume", is_flag=True, help="Continue after the last epoch in the run folder.")
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
    """Train the network.

    RUN/best.pth keeps the best weights, RUN/scores.json the scores of the last epoch's weights on the fold held out.
    """
    if threads:
        torch.set_num_threads(threads)
    held = Fold.parse(fold)
    asked = recipe_of(recipe, epochs, seed)
    begun = (run / RECIPE_FILE).exists() or (run / LAST_FILE).exists()
    if begun and not resume:
        raise InvalidData(f"{run}: holds a run already; pass --resume to go on, or choose another folder")
    require(logger)
    with opened(device, workers) as hardware:
        progress = Terminal(hardware)
        if resume and not begun:
            progress.line(f"{run}: nothing to resume, this is the start")
        corpus = corpus_of(asked, pairs, patches, folders)
        progress.line(str(corpus))
        sources, held_out = corpus.part(held)
        counts = ", ".join(f"{len(samples)} of {name}" for name, samples in sources.items())
        progress.line(f"images to learn from: {counts}; held out: {len(held_out)}")
        untold = untaught(seen_by(asked, sources, WSSS4LUAD), held_out, WSSS4LUAD, held)
        for note in (*without_slides(corpus.pairs, held), *untold):
            progress.line(note)
        network = train_recipe(run, WSSS4LUAD, asked, sources, held_out, held, progress, hardware, logger)
        if held_out and hardware.first:
            evaluate(network, held_out, WSSS4LUAD, run)
        if hardware.first:
            draw_curves(run)
        progress.line(f"kept: {run / BEST_FILE}")


def _fold_commands(run: Path, folds: int, given: Mapping[str, object]) -> dict[str, list[str]]:
    """Return a `train` command for each fold, with the options `given`."""
    options = {name.replace("_", "-"): str(value) for name, value in given.items() if value is not None}
    shared = [text for name, value in options.items() for text in (f"--{name}", value)]
    train_one = [sys.executable, "-m", "model_export", "train", "--resume", *shared]
    return {
        f"fold {index}/{folds}": [*train_one, "--run", str(run / f"{FOLD_FOLDER}{index}"), "--fold", f"{index}/{folds}"]
        for index in range(1, folds + 1)
    }


@click.command("cross-validate")
@data_options
@source_options
@training_options
@hardware_options
@click.option("--run", required=True, type=FOLDER, help="Folder for the folds' runs and scores.json.")
@click.option("--folds", default=4, type=click.IntRange(2), help="Number of folds.")
@click.option(
    "--jobs",
    default=1,
    type=click.IntRange(1),
    help="Folds to train at the same time, each on a share of the cores; --threads is each job's.",
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
    """Train once per fold, and score the recipe on images that each network never saw; resumes after an interrupt."""
    if threads:
        torch.set_num_threads(threads)
    asked = recipe_of(recipe, epochs, seed)
    require(logger)
    corpus = corpus_of(asked, pairs, patches, folders)
    click.echo(str(corpus))
    for note in without_slides(corpus.pairs, Fold(count=folds)):
        click.echo(note)
    if jobs > 1:
        for index in range(folds):  # a fold that is refused is so before the first one trains
            corpus.part(Fold(index, folds))
        given = {"pairs": pairs, "patches": patches, **folders, "recipe": recipe, "epochs": epochs, "seed": seed}
        given |= {"threads": threads or max(1, torch.get_num_threads() // jobs)}
        given |= {"logger": logger, "device": device, "workers": workers}
        run_side_by_side(_fold_commands(run, folds, given), jobs, click.echo)
    with opened(device, workers) as hardware:
        if hardware.processes > 1:
            raise InvalidRecipe(
                "cross-validate is one process: train --fold K/N with torchrun, fold by fold, before it"
            )
        summary = cross_validate(run, WSSS4LUAD, asked, corpus, folds, Terminal(hardware), hardware, logger)
    draw_curves(run)
    show_summary(summary)
