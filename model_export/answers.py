"""What a bundle's graph answers on whole images: window by window, as the service asks it, and how that scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.pathology.arrays import ClassMap, ConfidenceMap, Probabilities, RgbBatch, RgbImage
from app.pathology.geometry import Size
from app.pathology.manifest import MANIFEST_FILE, MODEL_FILE, ModelManifest, Precision
from app.pathology.tiling import Stitcher, Window, pad_to_stride, plan_windows
from model_export.bundle import read_manifest, require_intact
from model_export.errors import InvalidData
from model_export.runtime import OnnxGraph
from model_export.training.dataset import Sample
from model_export.training.scores import Scores


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one image.

    Attributes:
        class_map: (H, W) uint8.
        confidence: (H, W) uint8, the winning class's probability times 255.
        label_probabilities: (L,) float32, of several windows the largest.
    """

    class_map: ClassMap
    confidence: ConfidenceMap
    label_probabilities: Probabilities


def graph_in(bundle: Path, precision: Precision | None = None) -> tuple[Path, ModelManifest]:
    """Return the graph of a bundle, or of its variant of that precision, and its manifest.

    Raises:
        InvalidData: There is none, it is not the one that its manifest names, or the variant is of another model.
    """
    manifest = read_manifest(bundle)
    if precision is not None and precision != manifest.precision:
        parent, bundle = manifest, bundle / precision
        if parent.precision != "fp32" or not (bundle / MANIFEST_FILE).is_file():
            raise InvalidData(f"{bundle}: no such variant; quantize makes one of an fp32 bundle")
        manifest = read_manifest(bundle)
        if (fault := manifest.why_no_variant(parent, precision)) is not None:
            raise InvalidData(f"{bundle}: {fault}; run quantize again")
    require_intact(bundle / MODEL_FILE, manifest.sha256)
    return bundle / MODEL_FILE, manifest


def answers(model: Path, manifest: ModelManifest, images: Sequence[RgbImage]) -> list[Answer]:
    """Return what a graph says of each (H, W, 3) uint8 image, on the CPU.

    Raises:
        VerificationFailed: ONNX Runtime does not load or run the graph.
    """
    graph = OnnxGraph(model)
    found = []
    for image in images:
        stitcher, probabilities = Stitcher(Size.of(image)), []
        for window, batch in windows_of(image, manifest):
            [class_map], [confidence], [of_labels] = graph.run(batch)
            stitcher.add(window, class_map, confidence)
            probabilities.append(of_labels)
        found.append(Answer(stitcher.class_map, stitcher.confidence, np.max(probabilities, axis=0)))
    return found


def windows_of(image: RgbImage, manifest: ModelManifest) -> Iterator[tuple[Window, RgbBatch]]:
    """Yield the windows of an (H, W, 3) uint8 image, each with the batch of one that the service would ask for it."""
    for window in plan_windows(Size.of(image), manifest.window_px, manifest.margin_px, manifest.stride):
        yield window, pad_to_stride(image[window.read.slices], manifest.stride)[None]


def scored(manifest: ModelManifest, samples: Sequence[Sample], found: Sequence[Answer]) -> Scores:
    """Return the scores of what was `found` on each of `samples`, all with class maps."""
    total = Scores(manifest.classes)
    for sample, answer in zip(samples, found, strict=True):
        one = Scores(manifest.classes)
        one.add_class_map(sample.class_map, answer.class_map)
        one.add_confidence(sample.class_map, answer.class_map, answer.confidence)
        known = [label for label in sample.labels if label is not None]
        if len(known) == len(sample.labels):
            one.labels.add(known, answer.label_probabilities.tolist())
        one.images = [{"name": sample.name, "confusion": one.confusion.tolist(), **one.pixel_scores()}]
        total = total + one
    return total
