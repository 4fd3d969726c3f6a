"""`evaluate` and `robustness`: scores of networks that are there."""

from pathlib import Path

import click
import torch

from app.pathology.classes import WSSS4LUAD
from model_export.cli.options import FILE, FOLDER
from model_export.corruptions import CORRUPTIONS
from model_export.evaluate import chosen_by_score, evaluate_checkpoint, held_out_of
from model_export.robustness import checkpoints_of, held_out_by, read_results, score_corruption, write_results
from model_export.training.dataset import read_pairs


@click.command()
@click.option("--pairs", required=True, type=FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
@click.option("--checkpoint", required=True, type=FILE, help="Weights of the project's own network.")
@click.option("--out", required=True, type=FOLDER, help="Folder for scores.json and grid.png.")
@click.option("--all", "every", is_flag=True, help="Score every pair; by default those that the training held out.")
def evaluate(pairs: Path, checkpoint: Path, out: Path, every: bool) -> None:
    """Score a checkpoint and draw image, truth and prediction side by side."""
    known = read_pairs(pairs, WSSS4LUAD)
    held_out = held_out_of(checkpoint, known)
    scored = known if every else held_out or known
    if every and held_out:
        click.echo(f"note: {len(known) - len(held_out)} of these {len(known)} images may be ones that it learned from")
    elif not held_out:
        click.echo("note: nothing was held out; these scores are of images the network may have learned from")
    for note in chosen_by_score(checkpoint) if held_out else []:
        click.echo(note)
    click.echo(f"scored: {len(scored)} of {len(known)} pairs" + ("" if every or not held_out else ", those held out"))
    scores = evaluate_checkpoint(checkpoint, scored, WSSS4LUAD, out)
    for name, value in scores.as_dict().items():
        click.echo(f"{name:16} {value:.4f}")
    click.echo(f"written: {out}")


@click.command()
@click.option("--pairs", required=True, type=FOLDER, help="Folder with img/ and mask/ of PNG pairs.")
@click.option("--run", type=FOLDER, help="Run folder of a cross-validation; each fold's network is scored on its own.")
@click.option("--checkpoint", type=FILE, help="Or one checkpoint, scored on what its training held out.")
@click.option("--out", required=True, type=FOLDER, help="Folder for robustness.json and robustness.md.")
@click.option("--before", type=FILE, help="robustness.json of another network, for a table of both.")
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
    earlier = read_results(before) if before else None
    networks = held_out_by(checkpoints, read_pairs(pairs, WSSS4LUAD), WSSS4LUAD)
    for note in chosen_by_score(checkpoint) if checkpoint else []:
        click.echo(note)
    results = {}
    for corruption in CORRUPTIONS:
        results[corruption.name] = score_corruption(corruption, networks, WSSS4LUAD)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in results[corruption.name].items())
        click.echo(f"{corruption.name:36} {shown}")
    write_results(results, sum(len(samples) for _, samples in networks), out, earlier)
    click.echo(f"written: {out}")
