"""The bundle's contract: what a model's graph expects, what it returns and what that means.

A bundle is a folder with the three files named here. `model_export` writes it, `app/inference/bundle.py` loads it.
The same model in another precision, a variant, is a bundle of its own in the subfolder `fp16` or `int8`.

The serving graph has one input and three outputs:

- `image`: uint8 (N, H, W, 3) RGB; H and W are multiples of the manifest's stride; normalisation is inside.
- `class_map`: uint8 (N, H, W), indices into the manifest's classes.
- `confidence`: uint8 (N, H, W), the winning class's probability times 255, rounded; see `temperature`.
- `label_probability`: float32 (N, L), one for each class with `label: true`, in list order.
"""

import re
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.pathology.classes import TissueClass, label_indices
from app.pathology.geometry import LEAST_UM_PER_PX, MOST_UM_PER_PX

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"
"""Arrays `image`, `class_map`, `confidence` and `label_probability`, as of the graph's input and outputs."""

GRAPH_INPUT = "image"
GRAPH_OUTPUTS = ("class_map", "confidence", "label_probability")

GOLDEN_PIXEL_AGREEMENT = 0.999
"""The share of class-map pixels that must agree with the golden pair, and PyTorch's with ONNX Runtime's."""
GOLDEN_PROBABILITY_TOLERANCE = 1e-3
"""The largest difference of a label probability between the two."""
VARIANT_PIXEL_AGREEMENT, VARIANT_PROBABILITY_TOLERANCE = 0.99, 0.02
"""The same two bounds for fp16 and int8, where devices may round a number that lies between two steps differently."""

HE = "H&E"
"""Haematoxylin and eosin, as a manifest's `stain` says it."""
_MEANS_HE = re.compile(r"h\W*(and)?\W*e|ha?ematoxylin\W*(and)?\W*eosin", re.IGNORECASE)

Precision = Literal["fp32", "fp16", "int8"]
"""The numbers that a graph computes with."""
Views = Literal[1, 2, 4, 8]
"""The number of orientations in which a graph looks at an image: 1 is the image as it is, 2 adds it turned by 180
degrees, 4 adds both mirrored, 8 adds all four transposed."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Variant(BaseModel):
    """Where a graph of lower precision comes from, and what it costs against the float32 one on the same images.

    Attributes:
        made_from: Digest of the float32 model file.
        measured_on: Which images: how many, and whether the network had learned from them.
        images: How many of them have a class map to compare with.
        mean_iou_lost: Mean IoU of the label classes, in points of 100; negative where the variant scores better.
        pixel_accuracy_lost: Pixel accuracy over all classes, likewise.
        labels_changed: Labels of all images that the variant gives or takes, of `labels_judged`.
        labels_judged: Images times label classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_from: Sha256
    measured_on: str
    images: int = Field(ge=1)
    mean_iou_lost: float = Field(ge=-100, le=100)
    pixel_accuracy_lost: float = Field(ge=-100, le=100)
    labels_changed: int = Field(ge=0)
    labels_judged: int = Field(ge=0)


class ModelManifest(BaseModel):
    """Everything a server has to know about a model that is not in its graph.

    Attributes:
        format: Version of this contract.
        name: The model's name: letters, digits, ".", "_" and "-".
        version: The model's own version.
        released: The day on which that version was made public, which its DICOM results bear unless the image is
            younger; None when it is not known.
        description: One sentence for people.
        intended_use: What the model may be used for.
        classes: The classes of the class map, in index order.
        label_thresholds: For each label class, the probability from which a patch carries the label.
        temperature: What the graph divides the logits by before it takes probabilities; above 1 where a network is
            surer of itself than it is right (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017).
        views: In how many orientations the graph looks at an image, at as many times the cost; it averages the logits.
        stride: The sides of an input are multiples of this, in px.
        window_px: The side of the largest window to run at once, in px; larger patches are tiled.
        margin_px: How far, in px, a window's own border spoils its class map; windows overlap by twice this.
        um_per_px: Pixel spacing that the model was trained at, in um/px; None when it is not known.
        stain: What the training images were stained with: "H&E", or another in one line, as in "PD-L1 IHC". It decides
            which rules images are judged by (`app.imaging.plausibility.rules_for`).
        training_data: What the weights were trained on, a line each.
        metrics: Scores on images that the scored weights never saw, by name; in float32, also in a variant's manifest.
        precision: What the graph computes in.
        variant: Where the graph comes from; None for float32.
        sha256: Digest of the model file.
        golden_sha256: Digest of the golden pair's file.
        opset: ONNX operator set of the graph.
        producer: Versions of what made the bundle, and what it was made of: `checkpoint_sha256`, and as `export` was
            given them `factory`, `weights`, `mean` and `std`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = Field(default=1, ge=1, le=1)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")
    released: date | None = None
    description: str = ""
    intended_use: str = "research use only"
    classes: tuple[TissueClass, ...] = Field(min_length=2, max_length=255)
    label_thresholds: tuple[Probability, ...]
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    views: Views = 1
    stride: int = Field(ge=1, le=256)
    window_px: int = Field(ge=32, le=8192)
    margin_px: int = Field(ge=0)
    um_per_px: float | None = Field(default=None, ge=LEAST_UM_PER_PX, le=MOST_UM_PER_PX)
    stain: str = Field(default=HE, min_length=1, max_length=64)
    training_data: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    precision: Precision = "fp32"
    variant: Variant | None = None
    sha256: Sha256
    golden_sha256: Sha256
    opset: int = Field(ge=1)
    producer: dict[str, str] = {}

    @field_validator("stain")
    @classmethod
    def _in_one_line(cls, stain: str) -> str:
        if not stain.isprintable() or stain != stain.strip():
            raise ValueError("must be printable characters in one line, without spaces around them")
        if stain != HE and _MEANS_HE.fullmatch(stain):  # taken for another stain, it would turn off what H&E has
            raise ValueError(f"must be {HE} where haematoxylin and eosin is meant")
        return stain

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what in ("name", "letter", "color"):
            values = [getattr(tissue, what) for tissue in self.classes]
            if len(set(values)) != len(values):
                raise ValueError(f"two classes share a {what}")
        if not self.label_classes:
            raise ValueError("at least one class must be a label")
        if len(self.label_thresholds) != len(self.label_classes):
            raise ValueError("label_thresholds must hold one number for each label class")
        if self.window_px % self.stride:
            raise ValueError("window_px must be a multiple of stride")
        if 2 * self.margin_px + self.stride > self.window_px:
            raise ValueError("twice margin_px and stride must fit into window_px")
        if (self.precision == "fp32") != (self.variant is None):
            raise ValueError("variant must be stated for fp16 and int8, and for nothing else")
        return self

    @property
    def label_classes(self) -> tuple[TissueClass, ...]:
        """The classes that a patch can carry as labels, in list order."""
        return tuple(self.classes[index] for index in label_indices(self.classes))

    def serves_like(self, other: Self) -> bool:
        """Whether both mean the same by their inputs and outputs, whatever computes them."""
        graph = {"precision", "variant", "sha256", "golden_sha256", "opset", "producer"}
        return self.model_dump(exclude=graph) == other.model_dump(exclude=graph)

    def why_no_variant(self, parent: Self, precision: Precision) -> str | None:
        """Return why this is not `parent` in that lower precision, as the end of a sentence; None where it is."""
        if self.precision != precision or self.variant is None:
            return f"holds an {self.precision} model, not the {precision} variant"
        if self.variant.made_from != parent.sha256:
            return f"was made from model {self.variant.made_from[:12]}..., the bundle's is {parent.sha256[:12]}..."
        return None if self.serves_like(parent) else "its manifest says otherwise than the bundle's"
