"""`quantize`: a bundle's variant of lower precision, kept only where it loses little."""

from pathlib import Path
from typing import cast

import click

from app.pathology.manifest import MODEL_FILE, ModelManifest, Precision
from model_export.bundle import read_manifest
from model_export.checkpoint import Checkpoint, read_checkpoint
from model_export.cli.options import FILE, FOLDER, FiniteRange, data_options
from model_export.errors import InvalidCheckpoint, InvalidData, VerificationFailed
from model_export.export import GraphForm, serving_graph
from model_export.factory import load_network
from model_export.held_out import chosen_by_score, held_out_of
from model_export.training.dataset import read_labelled_patches, read_pairs
from model_export.variant import MAX_LABELS_CHANGED, MAX_LOST, Trial, write_variant
from model_export.verify import verify


@click.command()
@click.argument("bundle", type=FOLDER)
@click.option(
    "--precision", required=True, type=click.Choice(["int8", "fp16"]), help="int8 is for CPUs, fp16 for GPUs."
)
@data_options
@click.option(
    "--checkpoint",
    type=FILE,
    help="The bundle's weights: the variant is then judged on the pairs that their training held out.",
)
@click.option(
    "--unseen",
    is_flag=True,
    help="Say that the network, one of your own, never learned from these pairs. int8 is then calibrated on --patches"
    " alone or, without them, on every other pair, and judged on the rest.",
)
@click.option(
    "--max-lost", default=MAX_LOST, type=FiniteRange(0, 100), help="Points of mean IoU that the variant may lose."
)
@click.option(
    "--max-labels-changed",
    default=MAX_LABELS_CHANGED,
    type=FiniteRange(0, 100),
    help="Percent of the labels that the variant may change; one it may in any case.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing variant.")
def quantize(
    bundle: Path,
    precision: str,
    pairs: Path,
    patches: Path | None,
    checkpoint: Path | None,
    unseen: bool,
    max_lost: float,
    max_labels_changed: float,
    overwrite: bool,
) -> None:
    """Write BUNDLE/int8 or BUNDLE/fp16; if it loses too much, nothing is written and the exit code is 2."""
    if unseen and checkpoint:
        raise click.UsageError("--unseen goes without --checkpoint, which notes itself what it held out")
    manifest = read_manifest(bundle)
    classes = manifest.classes
    known = read_pairs(pairs, classes)
    beside = read_labelled_patches(patches, classes) if patches else []
    trained = read_checkpoint(checkpoint) if checkpoint else None
    if unseen:
        held_out = known[::2] if precision == "int8" and not beside else known
    else:
        held_out = held_out_of(trained, known) if trained else []
    hidden = {sample.name for sample in held_out}
    seen = [sample.image for sample in [*known, *beside] if sample.name not in hidden]
    if precision == "int8" and not seen:
        judged, more = ("is judged", "more pairs") if unseen else ("the training held out", "all pairs of the training")
        raise InvalidData(
            f"{pairs}: holds nothing but what {judged}, and int8 takes its scales from other images;"
            f" pass {more}, or --patches"
        )
    if trained and held_out:
        _check_weights(trained, bundle, manifest)
    for note in chosen_by_score(trained) if trained else []:
        click.echo(note)
    if held_out:
        measured_on = f"{len(held_out)} pairs that the network never saw"
    else:
        measured_on = f"{len(known)} pairs that the network may have learned from"
        click.echo("note: nothing was held out; what is lost is of images the network may have learned from")
    trial = Trial(seen, held_out or known, measured_on)
    variant = write_variant(bundle, cast(Precision, precision), trial, max_lost, max_labels_changed, overwrite)
    click.echo(
        f"on {measured_on}: {variant.mean_iou_lost:.2f} points of mean IoU lost,"
        f" {variant.pixel_accuracy_lost:.2f} of pixel accuracy,"
        f" {variant.labels_changed} of {variant.labels_judged} labels changed"
        + ("; by its weights alone, for a CPU computes fp16 in float32" if precision == "fp16" else "")
    )
    megabytes = [(folder / MODEL_FILE).stat().st_size / 1e6 for folder in (bundle, bundle / precision)]
    click.echo(f"written: {bundle / precision} ({megabytes[1]:.1f} MB, fp32 {megabytes[0]:.1f} MB)")


def _check_weights(checkpoint: Checkpoint, bundle: Path, manifest: ModelManifest) -> None:
    """Refuse a checkpoint that the bundle was not exported from: another's held-out pairs may be what it learned from.

    The project's own mean and deviation are taken, whatever the bundle was exported by.

    Raises:
        InvalidCheckpoint: It answers otherwise.
    """
    form = GraphForm(
        classes=manifest.classes,
        views=manifest.views,
        stride=manifest.stride,
        temperature=manifest.temperature,
    )
    try:
        network = load_network(checkpoint, manifest.classes, key=manifest.producer.get("weights"), note=click.echo)
        verify(serving_graph(network, form), bundle / MODEL_FILE)
    except VerificationFailed as error:
        raise InvalidCheckpoint(
            f"{checkpoint.path}: not what {bundle} was exported from, or not by the default --mean: {error}"
        ) from error
