"""`export`, and `verify`, which compares a bundle with the weights again."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click

from app.pathology.classes import WSSS4LUAD
from app.pathology.manifest import GOLDEN_FILE, HE, MODEL_FILE
from model_export.bundle import read_manifest, require_intact, sha256_of
from model_export.checkpoint import read_checkpoint
from model_export.cli.doubts import doubts_of_classes, doubts_of_comparisons, doubts_of_scores, doubts_of_spacing
from model_export.cli.options import FILE, FOLDER, views_option
from model_export.encoders import INPUT_MEAN, INPUT_STD
from model_export.errors import InvalidData, VerificationFailed
from model_export.export import GraphForm, ModelCard, export_bundle, serving_graph
from model_export.factory import load_classes, load_network
from model_export.held_out import epoch_noted, recipe_noted
from model_export.measured import of_others, read_measured
from model_export.network import MARGIN_PX, STRIDE, WINDOW_PX
from model_export.training.dataset import read_rgb
from model_export.verify import Comparison, verify


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


def _day(_ctx: click.Context, _param: click.Parameter, when: datetime | None) -> date | None:
    return None if when is None else when.date()


def _network_options(command: Callable[..., None]) -> Callable[..., None]:
    options = (
        click.option("--checkpoint", required=True, type=FILE, help="Trained weights; reading them runs no code."),
        click.option(
            "--weights",
            metavar="KEY",
            help="Key of the checkpoint that the weights lie under; by default the first of model, state_dict,"
            " model_state_dict, averaged.",
        ),
        click.option("--factory", help="package.module:callable that returns the network; the project's by default."),
        click.option(
            "--classes",
            type=FILE,
            help="JSON class list of the network; the four of WSSS4LUAD, or needed with --factory.",
        ),
        click.option(
            "--mean",
            callback=_numbers,
            help="Mean of RGB in 0 to 1, as R,G,B; the project's, or needed with --factory.",
        ),
        click.option("--std", callback=_numbers, help="Standard deviation, likewise."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _stated(
    factory: str | None, classes: Path | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, Any]:
    """Return the `classes`, `mean` and `std` of a `GraphForm`, the project's own where none are stated.

    Raises:
        click.UsageError: One is missing that belongs to what is stated.
    """
    if factory is not None and (mean is None or std is None):
        raise click.UsageError(
            "--factory needs --mean and --std, as the network was trained with, for RGB in 0 to 1: ImageNet's are"
            " 0.485,0.456,0.406 and 0.229,0.224,0.225; 0,0,0 and 1,1,1 leave 0 to 1 as it is"
        )
    if factory is not None and classes is None:
        raise click.UsageError(
            "--factory needs --classes: a JSON list of the network's classes in the order of its logits, each with"
            ' name, letter and color, and with "label": false where it is no tissue to report'
        )
    if (mean is None) != (std is None):
        raise click.UsageError("pass both --mean and --std, or neither: one belongs to the other")
    known = load_classes(classes) if classes else WSSS4LUAD
    return {"classes": known, "mean": mean or INPUT_MEAN, "std": std or INPUT_STD}


@click.command()
@_network_options
@click.option(
    "--stride", default=STRIDE, type=click.IntRange(1, 256), help="Sides of inputs are multiples of this, px."
)
@views_option
@click.option("--out", required=True, type=FOLDER, help="Folder of the bundle; it appears complete or not at all.")
@click.option("--name", required=True, help="The model's name.")
@click.option("--version", required=True, help="The model's version.")
@click.option(
    "--released",
    type=click.DateTime(["%Y-%m-%d"]),
    callback=_day,
    help="Day of the version's release; its DICOM results are not dated before it.",
)
@click.option("--description", default="", help="One sentence that describes the model to people.")
@click.option("--window", "window_px", default=WINDOW_PX, help="Side of the largest window to run at once, px.")
@click.option(
    "--margin",
    "margin_px",
    default=MARGIN_PX,
    help="Width of the border in which a window's class map is unreliable, px.",
)
@click.option("--um-per-px", type=float, help="Pixel spacing of the training images, um/px, if known.")
@click.option(
    "--stain",
    default=HE,
    help=f"Stain of the training images, as in 'PD-L1 IHC'; {HE} by default, the only one whose colours are judged.",
)
@click.option("--training-data", multiple=True, help="What the weights were trained on; may be repeated.")
@click.option(
    "--scores", type=FILE, help="scores.json of a cross-validation; gives metrics, label thresholds, temperature."
)
@click.option(
    "--trial",
    "trials",
    multiple=True,
    type=FILE,
    help="An image of your own to compare on, beside drawn tissue; may be repeated. The first is kept in the bundle,"
    " for the service to check itself on.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing bundle.")
def export(
    checkpoint: Path,
    weights: str | None,
    factory: str | None,
    classes: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    out: Path,
    scores: Path | None,
    trials: tuple[Path, ...],
    overwrite: bool,
    **rest: Any,
) -> None:
    """Turn trained weights into a verified bundle."""
    card = ModelCard(**_stated(factory, classes, mean, std), **rest)
    if scores:
        card = replace(card, **asdict(read_measured(scores, card.classes, card.views)))
    images = [read_rgb(path) for path in trials]
    trained = read_checkpoint(checkpoint)
    given = {"factory": factory, "weights": weights}
    of_which = {"checkpoint_sha256": sha256_of(checkpoint), **{name: text for name, text in given.items() if text}}
    card = replace(card, made_of=of_which)
    network = load_network(trained, card.classes, factory, weights, click.echo)
    for note in of_others(scores, recipe_noted(trained), epoch_noted(trained), weights) if scores else []:
        click.echo(note)
    for note in doubts_of_scores(bool(scores)) if factory is None else []:
        click.echo(note)
    for note in (*doubts_of_classes(card.classes), *doubts_of_spacing(card.um_per_px)):
        click.echo(note)
    _show(export_bundle(network, card, out, overwrite, images), card)
    if card.stain != HE:
        click.echo(f"note: the stain is {card.stain!r}, not {HE}: colours of images will not be judged")
    click.echo(f"written: {out}")


@click.command("verify")
@_network_options
@click.option("--bundle", required=True, type=FOLDER, help="The bundle to compare with the weights.")
def verify_command(
    checkpoint: Path,
    weights: str | None,
    factory: str | None,
    classes: Path | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    bundle: Path,
) -> None:
    """Compare PyTorch with ONNX Runtime, and the bundle's files with its manifest; exit code 2 if they disagree."""
    manifest = read_manifest(bundle)
    if manifest.precision != "fp32":
        raise InvalidData(
            f"{bundle}: is {manifest.precision}, which never answers as the weights do; pass the fp32 bundle it is of"
        )
    stated = _stated(factory, classes, mean, std)
    form = GraphForm(**stated, stride=manifest.stride, views=manifest.views, temperature=manifest.temperature)
    if [tissue.name for tissue in form.classes] != [tissue.name for tissue in manifest.classes]:
        named = ", ".join(tissue.name for tissue in manifest.classes)
        wanted = ", ".join(tissue.name for tissue in form.classes)
        raise InvalidData(f"{bundle}: its classes are {named}, and not {wanted}; state the network's by --classes")
    require_intact(bundle / MODEL_FILE, manifest.sha256)
    require_intact(bundle / GOLDEN_FILE, manifest.golden_sha256)
    network = load_network(read_checkpoint(checkpoint), form.classes, factory, weights, click.echo)
    graph = serving_graph(network, form)
    try:
        comparisons = verify(graph, bundle / MODEL_FILE, manifest.window_px, manifest.margin_px)
    except VerificationFailed as error:
        raise VerificationFailed(
            f"{error}; is the bundle of this --checkpoint, and of the same --weights, --factory, --mean and --std?"
        ) from error
    _show(comparisons, form)
    click.echo("verified")


def _show(comparisons: Iterable[Comparison], form: GraphForm) -> None:
    rows = list(comparisons)
    for line in (*map(str, rows), *doubts_of_comparisons(rows, form.classes)):
        click.echo(line)
