"""Loading a bundle: manifest, digests, golden pair. Anything wrong stops start-up with one line."""

import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from app.errors import InvalidBundle
from app.inference.result import BatchResult
from app.pathology.arrays import RgbBatch
from app.pathology.manifest import (
    GOLDEN_FILE,
    GOLDEN_PIXEL_AGREEMENT,
    GOLDEN_PROBABILITY_TOLERANCE,
    GRAPH_INPUT,
    GRAPH_OUTPUTS,
    MANIFEST_FILE,
    MODEL_FILE,
    VARIANT_PIXEL_AGREEMENT,
    VARIANT_PROBABILITY_TOLERANCE,
    ModelManifest,
    Precision,
)

if TYPE_CHECKING:  # who reads manifests alone need not load a runtime
    from app.inference.session import OnnxSession

_ANEW = "copy the bundle anew, or export it anew"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are what its manifest says.

    Attributes:
        manifest: The contract.
        model: The serialised graph.
        golden_image: (N, H, W, 3) uint8.
        golden: What the graph returned for it when it was exported.
    """

    manifest: ModelManifest
    model: bytes
    golden_image: RgbBatch
    golden: BatchResult


def read_manifest(folder: Path) -> ModelManifest:
    """Read a bundle's contract alone.

    Raises:
        InvalidBundle: It is missing, or is not one.
    """
    try:
        return ModelManifest.model_validate_json(_read(folder / MANIFEST_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise InvalidBundle(f"{folder / MANIFEST_FILE}: not a manifest: {reason}; {_ANEW}") from error


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and check its digests.

    Raises:
        InvalidBundle: A file is missing or damaged, the manifest is not one, or a digest differs.
    """
    manifest = read_manifest(folder)
    model = _read_checked(folder / MODEL_FILE, manifest.sha256)
    golden = _read_checked(folder / GOLDEN_FILE, manifest.golden_sha256)
    try:
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            image = arrays[GRAPH_INPUT]
            outputs = BatchResult(*(arrays[name] for name in GRAPH_OUTPUTS))
    except (KeyError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidBundle(f"{folder / GOLDEN_FILE}: not a golden pair: {error}") from error
    return Bundle(manifest, model, image, outputs)


def find_precision(folder: Path, precision: Precision) -> Path:
    """Return the folder in which the bundle at `folder` has this precision: itself, or its variant's.

    Raises:
        InvalidBundle: There is none, or it is no variant of exactly this model.
    """
    manifest = read_manifest(folder)
    if manifest.precision == precision:
        return folder
    place = folder / precision
    make = "python -m model_export quantize makes one"
    if manifest.precision != "fp32":
        raise InvalidBundle(f"{folder}: is an {manifest.precision} variant; {precision} is in the bundle that holds it")
    if not place.is_dir():
        raise InvalidBundle(f"{folder}: has no {precision} variant; {make}")
    if (fault := read_manifest(place).why_no_variant(manifest, precision)) is not None:
        raise InvalidBundle(f"{place}: {fault}; {make} anew")
    return place


def precisions_of(folder: Path) -> tuple[Precision, ...]:
    """Return in which precisions the bundle at `folder` lies there, its own first; whether they fit is not checked."""
    own = read_manifest(folder).precision
    others: tuple[Precision, ...] = ("fp16", "int8") if own == "fp32" else ()
    return (own, *(precision for precision in others if (folder / precision).is_dir()))


def check_golden(bundle: Bundle, session: "OnnxSession") -> None:
    """Run the golden input through `session`, which also warms it up, and compare.

    Raises:
        InvalidBundle: The runtime fails on it, or its answer is another model's.
    """
    name = f"model {bundle.manifest.name} {bundle.manifest.version}"
    try:
        result = session.run(bundle.golden_image)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise InvalidBundle(
            f"{name} does not run its golden input: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if result.class_maps.shape != bundle.golden.class_maps.shape:
        raise InvalidBundle(f"{name} returns class maps of {result.class_maps.shape}, not as in its golden pair")
    if result.class_maps.shape != bundle.golden_image.shape[:3]:
        raise InvalidBundle(f"{name} returns class maps of {result.class_maps.shape}, not of its input's size")
    if int(result.class_maps.max()) >= len(bundle.manifest.classes):
        raise InvalidBundle(f"{name} predicts class {int(result.class_maps.max())}, which its manifest does not name")
    if result.confidences.shape != bundle.golden.confidences.shape:
        raise InvalidBundle(f"{name} returns confidences of {result.confidences.shape}, not as in its golden pair")
    if result.label_probabilities.shape != bundle.golden.label_probabilities.shape:
        raise InvalidBundle(f"{name} returns labels of {result.label_probabilities.shape}, not as in its golden pair")
    agreement = float((result.class_maps == bundle.golden.class_maps).mean())
    difference = float(np.abs(result.label_probabilities - bundle.golden.label_probabilities).max())
    exact = bundle.manifest.precision == "fp32"
    least = GOLDEN_PIXEL_AGREEMENT if exact else VARIANT_PIXEL_AGREEMENT
    tolerance = GOLDEN_PROBABILITY_TOLERANCE if exact else VARIANT_PROBABILITY_TOLERANCE
    if agreement < least or not difference <= tolerance:  # not a number is no difference that is allowed
        raise InvalidBundle(
            f"{name} does not reproduce its golden pair on {session.device}: {agreement:.3%} of pixels agree,"
            f" label probabilities differ by up to {difference:.1e}; {_ANEW}"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidBundle(f"{path}: cannot be read: {error.strerror}; a bundle is a folder that holds it") from error


def _read_checked(path: Path, sha256: str) -> bytes:
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise InvalidBundle(f"{path}: its SHA-256 is {digest}, the manifest says {sha256}; {_ANEW}")
    return content
