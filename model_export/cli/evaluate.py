"""`evaluate`, `robustness` and `compare`: scores of networks that are there."""

from pathlib import Path
from typing import get_args

import click
import torch

from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import Precision, Views
from model_export.answers import graph_in
from model_export.atomic import require_writable
from model_export.checkpoint import read_checkpoint
from model_export.cli.options import FILE, FOLDER, checkpoints_option, either, refuse_run, views_option
from model_export.cli.terminal import show_scores, show_summary
from model_export.compare import compare as compare_scores
from model_export.corruptions import CORRUPTIONS
from model_export.evaluate import evaluate as score_and_draw
from model_export.evaluate import evaluate_bundle, evaluate_folds
from model_export.factory import load_network
from model_export.held_out import (
    checkpoints_of,
    chosen_by_score,
    held_out_by,
    held_out_of,
    notes_held_out,
    recipe_noted,
)
from model_export.robustness import read_results, score_corruption, write_results
from model_export.training.dataset import read_pairs
from model_export.views import with_views


@click.command()
@click.option("--pairs", required=True, type=FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
@checkpoints_option
@click.option(
    "--bundle",
    type=FOLDER,
    help="Instead of --run: a bundle, of any network, with its own classes and colours, in windows as it is served.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="With --bundle: the graph of this precision; the bundle's own by default.",
)
@click.option("--out", type=FOLDER, help="Folder for scores.json and grid.png; needed but for --bundle.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Score every pair; by default only those that the training held out, if it held out any.",
)
@views_option
def evaluate(
    pairs: Path,
    run: Path | None,
    checkpoint: Path | None,
    bundle: Path | None,
    precision: Precision | None,
    out: Path | None,
    every: bool,
    views: Views,
) -> None:
    """Score the project's own network, or any bundle, and draw image, truth and prediction side by side."""
    if bundle:
        if run or checkpoint or every or views != 1:
            raise click.UsageError("--bundle goes without --run, --checkpoint, --all and --views")
        _evaluate_bundle(pairs, bundle, precision, out)
        return
    if precision:
        raise click.UsageError("--precision is of a --bundle")
    either(run, checkpoint, "--bundle")
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    if run and every:
        raise click.UsageError("--all is of one checkpoint: a cross-validation scores each pair once as it is")
    refuse_run(out)
    if run:
        checkpoints = checkpoints_of(run)
        networks = held_out_by(checkpoints, read_pairs(pairs, WSSS4LUAD), WSSS4LUAD, views)
        require_writable(out)
        show_summary(evaluate_folds(networks, WSSS4LUAD, out, recipe_noted(checkpoints[0]), views))
    elif checkpoint:
        _evaluate_one(pairs, checkpoint, out, every, views)
    click.echo(f"written: {out}")


def _evaluate_bundle(pairs: Path, bundle: Path, precision: Precision | None, out: Path | None) -> None:
    model, manifest = graph_in(bundle, precision)
    known = read_pairs(pairs, manifest.classes)
    click.echo(
        "note: a bundle does not say which images its network learned from: if none of these pairs is among them, the"
        " scores are honest"
    )
    if precision is None and (bundle / "int8").is_dir():
        click.echo(
            "note: of this bundle the service runs int8 on a CPU, unless told otherwise; --precision int8 scores that"
        )
    click.echo(f"scored: {len(known)} pairs, in {manifest.precision}")
    if out:
        refuse_run(out)
        require_writable(out)
    show_scores(evaluate_bundle(model, manifest, known, out))
    if out:
        click.echo(f"written: {out}")


def _evaluate_one(pairs: Path, path: Path, out: Path, every: bool, views: Views) -> None:
    known = read_pairs(pairs, WSSS4LUAD)
    checkpoint = read_checkpoint(path)
    held_out = held_out_of(checkpoint, known, all_there=not every, or_else=", or --all")
    scored = known if every else held_out or known
    if every and notes_held_out(checkpoint):
        click.echo(f"note: {len(known) - len(held_out)} of these {len(known)} images may be ones that it learned from")
    elif not held_out:
        click.echo(
            f"note: the training of {path.name} held nothing out, or does not note what: if these pairs are not"
            " of its training, the scores are honest"
        )
    for note in chosen_by_score(checkpoint) if held_out else []:
        click.echo(note)
    click.echo(f"scored: {len(scored)} of {len(known)} pairs" + ("" if every or not held_out else ", those held out"))
    network = with_views(load_network(checkpoint, WSSS4LUAD, note=click.echo), views)
    require_writable(out)
    show_scores(score_and_draw(network, scored, WSSS4LUAD, out).as_dict())


@click.command()
@click.option("--pairs", required=True, type=FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
@checkpoints_option
@click.option("--out", required=True, type=FOLDER, help="Folder for robustness.json and robustness.md.")
@click.option(
    "--before",
    type=FILE,
    help="robustness.json of another network on the same images, to put both in one table.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@views_option
def robustness(
    pairs: Path,
    run: Path | None,
    checkpoint: Path | None,
    out: Path,
    before: Path | None,
    threads: int | None,
    views: Views,
) -> None:
    """Score networks on degraded images: JPEG, blur, brightness, stain and scale."""
    if threads:
        torch.set_num_threads(threads)
    either(run, checkpoint)
    refuse_run(out)
    checkpoints = checkpoints_of(run) if run else [read_checkpoint(checkpoint)] if checkpoint else []
    networks = held_out_by(checkpoints, read_pairs(pairs, WSSS4LUAD), WSSS4LUAD, views)
    images = [sample.name for _, samples in networks for sample in samples]
    earlier = read_results(before, images) if before else None
    require_writable(out)
    for note in [] if run else chosen_by_score(checkpoints[0]):
        click.echo(note)
    results = {}
    for corruption in CORRUPTIONS:
        results[corruption.name] = score_corruption(corruption, networks, WSSS4LUAD)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in results[corruption.name].items())
        click.echo(f"{corruption.name:36} {shown}")
    write_results(results, images, out, earlier)
    click.echo(f"written: {out}")


@click.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--slides", help="Name of a shipped table of slides, or a CSV file; else each image is one of its own.")
def compare(first: Path, second: Path, slides: str | None) -> None:
    """Compare two scores.json of the same images: SECOND less FIRST, and 95 % intervals over slides."""
    found = compare_scores(first, second, WSSS4LUAD, slides)
    click.echo(f"{'':16}   first  second  difference   in 95 % of {found.draws} draws of slides")
    for each in found.differences:
        between = f"{each.second - each.first:+7.3f}      {each.low:+.3f} to {each.high:+.3f}"
        click.echo(f"{each.name:16} {each.first:7.3f} {each.second:7.3f}     {between}")
    click.echo("slides with: " + ", ".join(f"{name} {count}" for name, count in found.slides.items()))
