"""A bundle's variant in int8 or fp16: made, compared with the float32 graph on real images, kept if it lost little."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from app.pathology.arrays import RgbImage
from app.pathology.manifest import (
    GOLDEN_FILE,
    GRAPH_INPUT,
    MANIFEST_FILE,
    MODEL_FILE,
    ModelManifest,
    Precision,
    Variant,
)
from app.pathology.tiling import pad_to_stride
from model_export.answers import answers, scored, windows_of
from model_export.bundle import new_folder, read_manifest, require_intact, sha256_of
from model_export.errors import InvalidData, TooMuchLost
from model_export.export import strip_traces, write_golden
from model_export.reduced_precision import RUNTIME_VERSION, to_fp16, to_int8, with_extremes
from model_export.runtime import OnnxGraph
from model_export.training.dataset import Sample
from model_export.training.scores import Scores

MAX_LOST = 0.5
"""Points of mean IoU that a variant may lose."""
MAX_LABELS_CHANGED = 2.0
"""Percent of the labels that a variant may change; one it may in any case, for of few labels one is many percent."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a variant is made with and judged on.

    Attributes:
        calibration: Images that int8's scales are taken from, each (H, W, 3) uint8.
        judged: Images with class maps on which it is compared with float32.
        measured_on: What to call these in the manifest.
    """

    calibration: Sequence[RgbImage]
    judged: Sequence[Sample]
    measured_on: str


def write_variant(
    bundle: Path,
    precision: Precision,
    trial: Trial,
    max_lost: float = MAX_LOST,
    max_labels_changed: float = MAX_LABELS_CHANGED,
    overwrite: bool = False,
) -> Variant:
    """Write the variant of the float32 bundle at `bundle` into its subfolder `precision`, in one step.

    Returns:
        What the manifest says of it.

    Raises:
        InvalidData: The bundle is no whole float32 one, the graph cannot be converted, the images hold no tissue to
            compare on, or there is a variant already, or something else in its place.
        TooMuchLost: It lost more than `max_lost` points of mean IoU, changed more than `max_labels_changed` percent of
            the labels, says what is no number, or would leave fp16's range. Nothing is left behind.
        VerificationFailed: ONNX Runtime does not run it.
    """
    manifest = read_manifest(bundle)
    model, target = bundle / MODEL_FILE, bundle / precision
    if manifest.precision != "fp32":
        raise InvalidData(f"{bundle}: is {manifest.precision} already; variants are made of an fp32 bundle")
    require_intact(model, manifest.sha256)
    require_intact(bundle / GOLDEN_FILE, manifest.golden_sha256)
    with np.load(bundle / GOLDEN_FILE, allow_pickle=False) as arrays:
        golden = arrays[GRAPH_INPUT]
    with new_folder(target, overwrite) as folder:
        made = folder / MODEL_FILE
        images = [pad_to_stride(image, manifest.stride)[None] for image in trial.calibration]
        graph = to_int8(model, images) if precision == "int8" else to_fp16(model)
        strip_traces(graph.graph)
        onnx.save(graph, made)
        if precision == "fp16":
            _require_fp16_range(model, folder / "extremes.onnx", manifest, trial)
        variant = _compare(model, made, manifest, precision, trial)
        if variant.mean_iou_lost > max_lost:
            raise TooMuchLost(
                f"{precision} loses {variant.mean_iou_lost:.2f} points of mean IoU on {trial.measured_on},"
                f" and {max_lost:g} are allowed; nothing was written"
            )
        if variant.labels_changed > max(1, max_labels_changed / 100 * variant.labels_judged):
            raise TooMuchLost(
                f"{precision} changes {variant.labels_changed} of {variant.labels_judged} labels on"
                f" {trial.measured_on}, and {max_labels_changed:g} % are allowed; nothing was written"
            )
        write_golden(golden, made, folder / GOLDEN_FILE)
        of_graph = {
            "precision": precision,
            "variant": variant,
            "sha256": sha256_of(made),
            "golden_sha256": sha256_of(folder / GOLDEN_FILE),
            "opset": next(entry.version for entry in graph.opset_import if not entry.domain),
            "producer": {**manifest.producer, "onnxruntime": RUNTIME_VERSION},
        }
        said = ModelManifest.model_validate({**manifest.model_dump(), **of_graph})
        (folder / MANIFEST_FILE).write_text(said.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return variant


def _require_fp16_range(model: Path, scratch: Path, manifest: ModelManifest, trial: Trial) -> None:
    """Refuse a network whose values would be infinite in float16, which arithmetic on a CPU does not show."""
    extremes = with_extremes(model, scratch)
    graph = OnnxGraph(scratch)
    scratch.unlink()
    most = float(np.finfo(np.float16).max)
    found = [graph.run(batch, extremes) for sample in trial.judged for _, batch in windows_of(sample.image, manifest)]
    largest = float(np.abs(found).max())  # no number, where any is none
    if not largest <= most:
        raise TooMuchLost(
            f"fp16 ends at {most:.0f}, and between convolutions the network's values reach {largest:.0f} on"
            f" {trial.measured_on}; nothing was written"
        )


def _compare(fp32: Path, made: Path, manifest: ModelManifest, precision: Precision, trial: Trial) -> Variant:
    before, labels_before = _scored(fp32, manifest, trial.judged)
    after, labels_after = _scored(made, manifest, trial.judged)
    if not np.isfinite(labels_after).all():
        raise TooMuchLost(
            f"{precision} says of labels what is no number, on {trial.measured_on}: a value leaves its range; nothing"
            " was written"
        )
    thresholds = np.array(manifest.label_thresholds)
    old, new = before.pixel_scores(), after.pixel_scores()
    if "tissue_miou" not in old:
        names = ", ".join(tissue.name for tissue in manifest.label_classes)
        raise InvalidData(f"no image to compare on holds any of {names}; pass pairs that do")
    return Variant(
        made_from=manifest.sha256,
        measured_on=trial.measured_on,
        images=len(trial.judged),
        mean_iou_lost=round(100 * (old["tissue_miou"] - new["tissue_miou"]), 3),
        pixel_accuracy_lost=round(100 * (old["pixel_accuracy"] - new["pixel_accuracy"]), 3),
        labels_changed=int(((labels_before >= thresholds) != (labels_after >= thresholds)).sum()),
        labels_judged=labels_before.size,
    )


def _scored(model: Path, manifest: ModelManifest, samples: Sequence[Sample]) -> tuple[Scores, NDArray[np.float32]]:
    """Return the scores of a graph's class maps, and its labels' probabilities, (images, L)."""
    found = answers(model, manifest, [sample.image for sample in samples])
    labels = np.array([answer.label_probabilities for answer in found], np.float32)
    return scored(manifest, samples, found), labels.reshape(len(samples), -1)
