"""The JSON that the service sends. Field descriptions are its documentation."""

import base64
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field

from app.api.problems import Problem
from app.api.renderings import View
from app.api.running import Reason
from app.imaging.plausibility import WarningCode
from app.pathology.classes import TissueClass, code
from app.pathology.composition import tissue_fractions
from app.pathology.manifest import HE, ModelManifest, Precision, Views
from app.segmentation.patch import SegmentedPatch
from app.segmentation.scale import Source, Unchanged

Share = Annotated[float, Field(ge=0, le=1)]
_DIGITS = 6


class ImageInfo(BaseModel):
    """The image as it was received."""

    width: int = Field(description="Width in px, upright.")
    height: int = Field(description="Height in px, upright.")
    sha256: str = Field(description="SHA-256 digest of the uploaded bytes.")


class ScaleInfo(BaseModel):
    """The scale at which the model saw the image. Masks, fractions and polygons always count the image's own pixels."""

    um_per_px: float | None = Field(description="The image's pixel spacing; null when not known.")
    source: Source | None = Field(
        description="Where um_per_px is from: the request's mpp, the DICOM header, or another file's own words, which"
        " are a TIFF's; null when not known."
    )
    model_um_per_px: float | None = Field(
        description="Pixel spacing that the model was trained at; null when not known."
    )
    factor: float = Field(
        description="Pixels that the model saw for one pixel of the image, along a side; 1 if it saw the image's own."
    )
    unchanged: Unchanged | None = Field(
        description="Why the model saw the image's own pixels: one of the two spacings is not known, or they are within"
        " 2 % of each other, or so close that the image would keep its size; null when the image was rescaled."
    )


class InputWarning(BaseModel):
    """Why the answer may be worth little: the image is too small, or does not look like H&E tissue in focus.

    The answer itself stays the same.
    """

    code: WarningCode = Field(description="The kind of warning, for programs.")
    message: str = Field(description="The warning in words, for people, with what was measured.")


class ModelReference(BaseModel):
    """The model that answered."""

    name: str
    version: str
    sha256: str = Field(description="SHA-256 digest of the model file.")

    @classmethod
    def of(cls, manifest: ModelManifest) -> Self:
        """Return what names the model of a manifest."""
        return cls(name=manifest.name, version=manifest.version, sha256=manifest.sha256)


class ClassScore(BaseModel):
    """What the model says about one class."""

    name: str
    letter: str
    color: tuple[int, int, int] = Field(description="sRGB, 0 to 255.")
    probability: Share | None = Field(
        description="Probability that the patch contains the class or, of a model without a label head, the largest"
        " share that the class has of any block of the mask; null for a class that is no label, such as background."
    )


class ClassResult(ClassScore):
    """What the model says about one class, and how much of the patch the class fills."""

    fraction: Share = Field(description="The class's share of the patch's pixels.")
    tissue_fraction: Share | None = Field(
        description="The class's share of the patch's tissue: of the pixels of all classes that can be labels. Null for"
        " a class that is no label, such as background, and if there is no tissue."
    )


class Picture(BaseModel):
    """A picture of the patch's size."""

    media_type: str = "image/png"
    width: int = Field(description="Width in px.")
    height: int = Field(description="Height in px.")
    base64: str = Field(description="The file, base64-encoded.")


class Classification(BaseModel):
    """Which tissues a patch contains."""

    labels: list[str] = Field(description="Names of the label classes that the patch contains.")
    code: str = Field(description="Letters of the labels, as in T+S; empty if there are none.")
    classes: list[ClassScore]
    image: ImageInfo
    scale: ScaleInfo
    warnings: list[InputWarning] = Field(description="Why the answer may be worth little; empty for most images.")
    model: ModelReference
    request_id: str


class Segmentation(BaseModel):
    """Which tissues a patch contains, and where."""

    labels: list[str] = Field(description="Names of the label classes that the patch contains.")
    code: str = Field(description="Letters of the labels, as in T+S; empty if there are none.")
    classes: list[ClassResult]
    mask: Picture = Field(description="Palette PNG; the index of a pixel is the position of its class in classes.")
    overlay: Picture | None = Field(default=None, description="RGB PNG, with view=overlay only.")
    confidence: Picture | None = Field(
        default=None,
        description="Greyscale PNG, with view=confidence only: the winning class's probability times 255.",
    )
    image: ImageInfo
    scale: ScaleInfo
    warnings: list[InputWarning] = Field(description="Why the answer may be worth little; empty for most images.")
    model: ModelReference
    request_id: str


class Segmentations(BaseModel):
    """The answers to several files, in the order sent; a file that failed has a problem in its place."""

    results: list[Segmentation | Problem]


class Classifications(BaseModel):
    """The answers to several files, in the order sent; a file that failed has a problem in its place."""

    results: list[Classification | Problem]


class ModelCard(BaseModel):
    """The model being served, and where it runs."""

    name: str
    version: str
    released: date | None = Field(description="Day of the version's release; null when not known.")
    sha256: str
    description: str
    intended_use: str
    classes: list[TissueClass] = Field(description="The classes, in the order of the mask's indices.")
    label_thresholds: list[Share] = Field(
        description="For each label class, the probability from which a patch has the label."
    )
    temperature: float = Field(
        default=1.0,
        description="The number that the class map's logits are divided by, which calibrates the confidence; 1 leaves"
        " it unchanged.",
    )
    views: Views = Field(
        default=1,
        description="Number of orientations in which the model looks at an image; the cost is as many times higher.",
    )
    um_per_px: float | None = Field(description="Pixel spacing of the training images; null when not known.")
    stain: str = Field(
        default=HE,
        description="What the training images were stained with. If it is not H&E, images are not judged by their"
        " colours: no answer has the warnings out_of_distribution and pen_marks.",
    )
    precision: Precision = Field(description="The precision in which the graph computes.")
    training_data: list[str]
    metrics: dict[str, float]
    device: str = Field(description="The device that the model really runs on: cpu or cuda.")
    provider: str = Field(description="ONNX Runtime's name of the execution provider in use.")


class Health(BaseModel):
    """The service's own state."""

    status: str


class Ready(BaseModel):
    """The service takes images now."""

    status: Literal["ready"]


class NotReady(BaseModel):
    """The service takes no images now."""

    status: Literal["not ready"]
    reason: Reason = Field(description="Why, for programs. The service's log says more when this changes.")


def classification(patch: SegmentedPatch, manifest: ModelManifest, request_id: str) -> Classification:
    """Return the answer of `/classify` for one patch."""
    return Classification(
        labels=[tissue.name for tissue in patch.labels],
        code=code(patch.labels),
        classes=_scores(patch, manifest),
        image=_image(patch),
        scale=scale(patch),
        warnings=_warnings(patch),
        model=ModelReference.of(manifest),
        request_id=request_id,
    )


def segmentation(
    patch: SegmentedPatch, manifest: ModelManifest, request_id: str, pictures: Mapping[View, bytes]
) -> Segmentation:
    """Return the answer of `/segment` for one patch and its painted PNGs, the mask among them."""
    shares = zip(patch.fractions, tissue_fractions(patch.fractions, manifest.classes), strict=True)
    scores = zip(_scores(patch, manifest), shares, strict=True)
    return Segmentation(
        labels=[tissue.name for tissue in patch.labels],
        code=code(patch.labels),
        classes=[
            ClassResult(**score.model_dump(), fraction=round(share, _DIGITS), tissue_fraction=_rounded(of_tissue))
            for score, (share, of_tissue) in scores
        ],
        **{view: _picture(patch, png) for view, png in pictures.items()},
        image=_image(patch),
        scale=scale(patch),
        warnings=_warnings(patch),
        model=ModelReference.of(manifest),
        request_id=request_id,
    )


def scale(patch: SegmentedPatch) -> ScaleInfo:
    """Return at which scale the model saw a patch."""
    return ScaleInfo(
        um_per_px=_rounded(patch.scale.um_per_px),
        source=patch.scale.source,
        model_um_per_px=_rounded(patch.scale.model_um_per_px),
        factor=round(patch.scale.factor, _DIGITS),
        unchanged=patch.scale.unchanged,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _warnings(patch: SegmentedPatch) -> list[InputWarning]:
    return [InputWarning(code=warning.code, message=warning.message) for warning in patch.warnings]


def _scores(patch: SegmentedPatch, manifest: ModelManifest) -> list[ClassScore]:
    probabilities = iter(patch.label_probabilities)
    return [
        ClassScore(
            name=tissue.name,
            letter=tissue.letter,
            color=tissue.color,
            probability=round(float(next(probabilities)), _DIGITS) if tissue.label else None,
        )
        for tissue in manifest.classes
    ]


def _image(patch: SegmentedPatch) -> ImageInfo:
    return ImageInfo(width=patch.size.width_px, height=patch.size.height_px, sha256=patch.sha256)


def _picture(patch: SegmentedPatch, png: bytes) -> Picture:
    encoded = base64.b64encode(png).decode("ascii")
    return Picture(width=patch.size.width_px, height=patch.size.height_px, base64=encoded)
