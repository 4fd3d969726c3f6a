"""From a network to a verified bundle."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from pydantic import ValidationError

from app.pathology.arrays import RgbBatch, RgbImage
from app.pathology.classes import WSSS4LUAD, TissueClass
from app.pathology.manifest import (
    GOLDEN_FILE,
    GRAPH_INPUT,
    GRAPH_OUTPUTS,
    HE,
    MANIFEST_FILE,
    MODEL_FILE,
    ModelManifest,
    Views,
)
from app.pathology.tiling import pad_to_stride
from model_export.bundle import new_folder, sha256_of
from model_export.encoders import INPUT_MEAN, INPUT_STD
from model_export.errors import InvalidCheckpoint, InvalidData, first_fault
from model_export.folding import fold_norms
from model_export.labels import NEUTRAL
from model_export.network import MARGIN_PX, STRIDE, WINDOW_PX, blockwise
from model_export.runtime import OnnxGraph
from model_export.serving_graph import ServingGraph
from model_export.trials import plan_trials
from model_export.verify import Comparison, verify
from model_export.views import with_views

OPSET = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphForm:
    """What makes the graph, beside the weights; the fields but `views` mean what `ServingGraph` says."""

    classes: tuple[TissueClass, ...] = WSSS4LUAD
    mean: tuple[float, ...] = INPUT_MEAN
    std: tuple[float, ...] = INPUT_STD
    views: Views = 1
    stride: int = STRIDE
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelCard(GraphForm):
    """What the exporter cannot read off the weights; the fields of its own mean what `ModelManifest` says.

    Without `label_thresholds`, a label is given from one half on. `made_of` says of which weights, for `producer`.
    """

    name: str
    version: str
    released: date | None = None
    description: str = ""
    window_px: int = WINDOW_PX
    margin_px: int = MARGIN_PX
    um_per_px: float | None = None
    stain: str = HE
    training_data: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    label_thresholds: tuple[float, ...] | None = None
    made_of: dict[str, str] = field(default_factory=dict)


def serving_graph(network: torch.nn.Module, form: GraphForm) -> ServingGraph:
    """Wrap `network` in this form."""
    return ServingGraph(
        with_views(network, form.views), form.classes, form.mean, form.std, form.stride, form.temperature
    )


def export_bundle(
    network: torch.nn.Module,
    card: ModelCard,
    target: Path,
    overwrite: bool = False,
    trials: Sequence[RgbImage] = (),
) -> list[Comparison]:
    """Export `network`, verify the result and put the bundle at `target`.

    Args:
        network: In evaluation mode.
        card: What is said of it.
        target: The bundle's folder.
        overwrite: Whether it may replace a bundle that is there.
        trials: (H, W, 3) uint8 images to compare on beside the drawn ones, each as far as one window shows it; the
            first makes the golden pair, which otherwise is of drawn tissue.

    Returns:
        How PyTorch and ONNX Runtime compared, a row for each trial batch.

    Raises:
        InvalidCheckpoint: The network's outputs do not fit the card, or it cannot be exported.
        InvalidData: The card is not one of a manifest, or `target` exists already, is no bundle or cannot be written.
        VerificationFailed: The exported graph disagrees with the network. Nothing is left behind.
    """
    draft = _draft_manifest(card)
    graph = serving_graph(network, card)
    with new_folder(target, overwrite) as folder:
        model = folder / MODEL_FILE
        _write_onnx(serving_graph(blockwise(network), card), model)
        own = [pad_to_stride(image[: card.window_px, : card.window_px], graph.block_px)[None] for image in trials]
        comparisons = verify(graph, model, card.window_px, card.margin_px, own)
        write_golden(own[0] if own else next(plan_trials(graph.block_px)).batch, model, folder / GOLDEN_FILE)
        manifest = draft.model_copy(
            update={"sha256": sha256_of(model), "golden_sha256": sha256_of(folder / GOLDEN_FILE)}
        )
        (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return comparisons


def _draft_manifest(card: ModelCard) -> ModelManifest:
    """Return the manifest with digests still to come, so that a wrong card is refused before the long part."""
    try:
        return ModelManifest(
            name=card.name,
            version=card.version,
            released=card.released,
            description=card.description,
            classes=card.classes,
            label_thresholds=card.label_thresholds or tuple(NEUTRAL for tissue in card.classes if tissue.label),
            temperature=card.temperature,
            views=card.views,
            stride=card.stride,
            window_px=card.window_px,
            margin_px=card.margin_px,
            um_per_px=card.um_per_px,
            stain=card.stain,
            training_data=card.training_data,
            metrics=card.metrics,
            sha256="0" * 64,
            golden_sha256="0" * 64,
            opset=OPSET,
            producer={
                **{name: version(name) for name in ("torch", "onnx", "onnxscript")},
                **card.made_of,
                **{name: _of_unit_range(values) for name, values in (("mean", card.mean), ("std", card.std))},
            },
        )
    except ValidationError as error:
        raise InvalidData(first_fault(error, "manifest")) from error


def _of_unit_range(values: Sequence[float]) -> str:
    """Return numbers of 0 to 255 as `--mean` and `--std` take them."""
    return ",".join(f"{value / 255:.8g}" for value in values)


def _write_onnx(graph: ServingGraph, path: Path) -> None:
    """Write the graph with dynamic batch, height and width, the sides multiples of the stride."""
    example = torch.full((2, 2 * graph.block_px, 3 * graph.block_px, 3), 240, dtype=torch.uint8)
    dim = torch.export.Dim
    for name in ("torch.onnx", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")  # the exporter tells its own insides, which the comparison below judges
            torch.onnx.export(
                graph,
                (example,),
                str(path),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[GRAPH_INPUT],
                output_names=list(GRAPH_OUTPUTS),
                dynamic_shapes=(
                    {0: dim("batch"), 1: graph.block_px * dim("rows"), 2: graph.block_px * dim("columns")},
                ),
                external_data=False,
            )
    except OSError:  # the disk's, and no fault of the network
        raise
    except Exception as error:  # torch raises errors of many kinds for a network that it cannot trace
        cause: BaseException = error
        while cause.__cause__ is not None:  # each step of the exporter wraps what went wrong in the one before
            cause = cause.__cause__
        reason, *details = str(cause).strip().splitlines() or [type(cause).__name__]
        if reason.endswith(":") and details:
            reason = f"{reason} {details[0].strip()}; if its inputs must be larger multiples, state --stride"
        raise InvalidCheckpoint(f"the network cannot be exported to ONNX: {reason}") from error
    model = onnx.load(path)
    fold_norms(model.graph)
    strip_traces(model.graph)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def strip_traces(graph: onnx.GraphProto) -> None:
    """Drop what the exporter notes of the machine it ran on: source lines and paths of every operation."""
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def write_golden(batch: RgbBatch, model: Path, path: Path) -> None:
    """Write `batch`, (N, H, W, 3) uint8 with sides that are multiples of the stride, and what `model` says of it."""
    outputs = OnnxGraph(model).run(batch)
    arrays: dict[str, Any] = {GRAPH_INPUT: batch, **dict(zip(GRAPH_OUTPUTS, outputs, strict=True))}
    np.savez_compressed(path, **arrays)
