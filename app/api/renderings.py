"""The forms in which one segmented patch is answered, by media type; JSON, which answers several, is not among them."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from pydantic import Field

from app.api.problems import NotAcceptable
from app.api.running import Service
from app.api.stated import Stated
from app.imaging.contours import MAX_AREA_CHANGE, MAX_AREA_CHANGE_PX, polygonise
from app.imaging.paint import DEFAULT_OPACITY, paint_confidence, paint_mask, paint_overlay
from app.interop import asap, dsa, geojson
from app.interop.annotations import Annotations
from app.interop.dicom_file import to_bytes
from app.interop.dicom_seg import segmentation_object
from app.interop.dicom_sr import measurement_report
from app.interop.provenance import picture_text
from app.pathology.classes import label_indices
from app.pathology.geometry import Placement, area_mm2, of_microscope
from app.pathology.manifest import ModelManifest
from app.segmentation.patch import SegmentedPatch
from app.slides.dicom import MEDIA_TYPE as DICOM
from app.slides.dicom import header, is_dicom
from app.slides.dicom_matrix import um_per_px

PNG = "image/png"

View = Literal["mask", "overlay", "confidence"]


class Rendering(Stated):
    """How to answer, beside what is stated of the upload: the query parameters of `/segment`."""

    view: View = Field(
        default="mask",
        description="The picture that image/png gives. JSON always holds the mask, and with overlay or confidence that"
        " picture too.",
    )
    opacity: float = Field(default=DEFAULT_OPACITY, ge=0, le=1, description="Opacity of the overlay's colours.")
    x: float = Field(
        default=0,
        ge=-1e9,
        le=1e9,
        description="The patch's left edge on its slide, in full-resolution px; for polygons.",
    )
    y: float = Field(
        default=0,
        ge=-1e9,
        le=1e9,
        description="The patch's top edge on its slide, in full-resolution px; for polygons.",
    )
    downsample: float = Field(
        default=1,
        ge=0.01,
        le=10_000,
        description="Full-resolution px per px of the patch, along a side; for polygons.",
    )
    simplify: float = Field(
        default=1.5,
        ge=0,
        le=10,
        description="Tolerance of the polygons' outlines, in px of the patch; 0 keeps every corner. It is lowered if a"
        f" class's area would otherwise change by more than both {MAX_AREA_CHANGE:.1%} and {MAX_AREA_CHANGE_PX} px.",
    )
    min_area: int = Field(
        default=0,
        ge=0,
        le=2**31 - 1,
        description="Regions of fewer px of the patch are merged into their largest neighbour or, if all regions are"
        " that small, into the largest of all. A small region with only small neighbours may stay.",
    )
    dicom: Literal["seg", "sr"] = Field(
        default="seg",
        description="The object that application/dicom gives: a Segmentation, or a TID 1500 report of the fractions.",
    )

    @property
    def placement(self) -> Placement:
        """Where the patch lies on its slide."""
        return Placement(self.x, self.y, self.downsample)


def paint(view: View, patch: SegmentedPatch, manifest: ModelManifest, opacity: float) -> bytes:
    """Return a picture of the patch, as PNG that says where it comes from."""
    text = picture_text(manifest, patch.conditions)
    match view:
        case "mask":
            return paint_mask(patch.class_map, manifest.classes, text)
        case "overlay":
            return paint_overlay(patch.image, patch.class_map, manifest.classes, opacity, text)
        case "confidence":
            return paint_confidence(patch.confidence, text)


def _annotations(manifest: ModelManifest, patch: SegmentedPatch, how: Rendering, *, everything: bool) -> Annotations:
    keep = range(len(manifest.classes)) if everything else label_indices(manifest.classes)
    polygons = polygonise(patch.class_map, patch.confidence, keep, how.simplify, how.min_area)
    return Annotations(polygons, how.placement, manifest, patch.sha256, patch.conditions)


def _dicom(manifest: ModelManifest, data: bytes, patch: SegmentedPatch, how: Rendering) -> bytes:
    source = header(data)
    segmentation = segmentation_object(source, patch.class_map, manifest, patch.conditions)
    if how.dicom == "seg":
        return to_bytes(segmentation)
    # The header's spacing also where another was stated: the Segmentation that the report cites has it from there.
    spacing = of_microscope(um_per_px(source)) or patch.conditions.um_per_px
    image_mm2 = area_mm2(patch.size, spacing)
    return to_bytes(measurement_report(source, segmentation, patch.fractions, manifest, patch.conditions, image_mm2))


_POLYGONS: dict[str, tuple[Callable[[Annotations], bytes], bool]] = {
    geojson.MEDIA_TYPE: (geojson.document, False),
    dsa.MEDIA_TYPE: (dsa.document, False),
    asap.MEDIA_TYPE: (asap.document, True),
}
"""The forms of polygons: what writes them, and whether background has polygons too."""

MEDIA_TYPES = (PNG, *_POLYGONS, DICOM)


def _rendered(media_type: str, manifest: ModelManifest, data: bytes, patch: SegmentedPatch, how: Rendering) -> bytes:
    if media_type == PNG:
        return paint(how.view, patch, manifest, how.opacity)
    if media_type == DICOM:
        return _dicom(manifest, data, patch, how)
    document, everything = _POLYGONS[media_type]
    return document(_annotations(manifest, patch, how, everything=everything))


def check_uploaded(media_type: str, data: bytes) -> None:
    """Refuse a form that the upload `data` cannot be answered in, before it costs inference.

    Raises:
        NotAcceptable: DICOM was asked for and not uploaded.
    """
    if media_type == DICOM and not is_dicom(data):
        raise NotAcceptable(f"{DICOM} answers a DICOM upload alone, whose patient and study it refers to")


def render(service: Service, media_type: str, data: bytes, patch: SegmentedPatch, how: Rendering) -> Awaitable[bytes]:
    """Return `patch`, which was uploaded as `data`, in the form of `media_type`, made in a worker thread.

    Raises:
        TooManyRegions: It has too many for polygons.
        UnsupportedImage: The DICOM upload lacks what an object of it must repeat.
        ExtraMissing: The form needs packages that are not installed.
    """
    work = partial(_rendered, media_type, service.segmenter.manifest, data, patch, how)
    return service.workers.run("encode", work)
