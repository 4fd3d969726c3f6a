"""Class maps as DICOM Segmentation objects that archives keep and viewers draw.

BINARY and sparse, uncompressed: what dicom-microscopy-viewer, and with it Slim and OHIF, renders right.
Source: DICOM PS3.3, sections A.51 and C.8.20.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.imaging.dicom_packages import require_dicom
from app.interop.dicom_codes import coding_of, concept, private_schemes
from app.interop.dicom_identity import (
    LONG_STRING,
    MANUFACTURER,
    common_arguments,
    complete,
    derived_uid,
    make_reproducible,
    parameters_of,
    repeating_the_source,
    result_key,
    series_uid,
)
from app.interop.provenance import Conditions
from app.pathology.arrays import ClassMap
from app.pathology.classes import label_indices
from app.pathology.manifest import HE, ModelManifest
from app.software import software_version

if TYPE_CHECKING:
    from pydicom import Dataset

_CONTENT_LABEL = "TISSUE_CLASSES"


@dataclass(frozen=True, slots=True)
class PyramidLevel:
    """What a Segmentation is a level of (PS3.3, module Multi-Resolution Pyramid).

    Attributes:
        series_uid: Series Instance UID of all levels.
        pyramid_uid: Names all levels and what they show.
        number: 1 for the finest.
    """

    series_uid: str
    pyramid_uid: str
    number: int

    def identity(self) -> dict[str, Any]:
        """Return what replaces and completes the arguments that `dicom_identity.common_arguments` gives."""
        return {
            "series_instance_uid": self.series_uid,
            "pyramid_uid": self.pyramid_uid,
            "instance_number": self.number,
        }


def segmentation_object(
    source: "Dataset",
    class_map: ClassMap,
    manifest: ModelManifest,
    conditions: Conditions,
    level: PyramidLevel | None = None,
) -> "Dataset":
    """Return a Segmentation with a segment for each label class, numbered from 1 in list order.

    A class that is absent is described all the same and has no frames, so that a number always means the same class.
    Background is the absence of segments. Frames without a segment's pixels are left out; a map without any segment
    keeps one empty frame, since an object has at least one. Patient and study are the source's. UIDs depend on the
    source, the class map, the model, the conditions and this version of tessera, dates and times on source and model:
    the same input gives the same bytes.

    Args:
        source: Header of the instance that was segmented, from a file or from the JSON of WADO-RS. Pixel data is not
            looked at.
        class_map: (H, W) uint8, the size of the source's total pixel matrix or frame.
        manifest: The model that made the map.
        conditions: How it saw the image.
        level: Of a pyramid; None for an object of its own.

    Raises:
        UnsupportedImage: The source lacks what the object must repeat.
        ValueError: The class map is not of the source's size.
        ExtraMissing: The packages that write DICOM are not installed.
    """
    require_dicom()
    from highdicom.seg import Segmentation  # noqa: PLC0415

    with repeating_the_source():
        placed = _placed(source)
        is_tiled = "TotalPixelMatrixRows" in placed
        shape = (
            (placed.TotalPixelMatrixRows, placed.TotalPixelMatrixColumns) if is_tiled else (placed.Rows, placed.Columns)
        )
        identity = common_arguments(source, manifest, "Tissue classes", "SEG", series_uid(source, manifest))
        if level is None:
            tracked = uid = _content_uid(source, class_map, manifest, conditions)
        else:
            tracked, uid = level.pyramid_uid, derived_uid("level", level.pyramid_uid, str(source.SOPInstanceUID))
            identity |= level.identity()
    if class_map.shape != shape:
        raise ValueError(f"the class map has {class_map.shape} rows and columns, its source {shape}")
    segments = _segments(class_map, manifest)
    is_empty = not segments.any()
    if is_empty:
        segments[0, 0] = 1  # of an empty map highdicom would write every frame; this one is emptied again below
    with repeating_the_source():
        result: Dataset = Segmentation(
            source_images=[placed],
            pixel_array=segments,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(manifest, conditions, tracked),
            sop_instance_uid=uid,
            tile_pixel_array=is_tiled,
            content_label=_CONTENT_LABEL,
            content_description=_content_description(manifest),
            coding_schemes=private_schemes(manifest),
            **identity,
        )
        result.PatientOrientation = None  # type 2C, and highdicom leaves it out (PS3.3, section C.7.6.1)
        make_reproducible(result, source, manifest)
    if is_empty:
        result.PixelData = bytes(len(result.PixelData))
    return result


def _content_description(manifest: ModelManifest) -> str:
    if manifest.stain == HE:
        return "Tissue classes of an H&E image"
    return f"Tissue classes, stain {manifest.stain}"[:LONG_STRING].replace("\\", "/")  # which would part two values


def _content_uid(source: "Dataset", class_map: ClassMap, manifest: ModelManifest, conditions: Conditions) -> str:
    """Return a UID for this very content: on another device the model may give another map of the same slide."""
    origin = str(source.SOPInstanceUID)
    content = hashlib.sha256(np.ascontiguousarray(class_map).data).hexdigest()
    return derived_uid("segmentation", origin, result_key(manifest), content, str(parameters_of(manifest, conditions)))


def _placed(source: "Dataset") -> "Dataset":
    """Return the source as highdicom takes it, with what says where its frames lie, if they lie anywhere.

    A single frame's centre and spacing do not place it by DICOM's rules, which ask for an orientation and a thickness
    beside them; the reference to the source says where the map lies: on its pixels.
    """
    copy = complete(source)
    if "TotalPixelMatrixRows" not in copy:
        for keyword in ("ImageCenterPointCoordinatesSequence", "PixelSpacing"):
            copy.pop(keyword, None)
    return copy


def _segments(class_map: ClassMap, manifest: ModelManifest) -> NDArray[np.uint8]:
    """Return (H, W) uint8 with segment numbers, 0 for none."""
    numbers = np.zeros(256, np.uint8)
    labels = list(label_indices(manifest.classes))
    numbers[labels] = np.arange(1, len(labels) + 1)
    return numbers[class_map]


def _descriptions(manifest: ModelManifest, conditions: Conditions, tracked: str) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence  # noqa: PLC0415
    from highdicom.color import CIELabColor  # noqa: PLC0415
    from highdicom.seg import SegmentDescription  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    algorithm = AlgorithmIdentificationSequence(
        name=manifest.name,
        family=codes.DCM.ArtificialIntelligence,
        version=manifest.version,
        source=f"{MANUFACTURER} {software_version()}",
        parameters=parameters_of(manifest, conditions),
    )
    descriptions = []
    for number, tissue in enumerate(manifest.label_classes, start=1):
        coding = coding_of(tissue)
        described = SegmentDescription(
            segment_number=number,
            segment_label=tissue.name,
            segmented_property_category=concept(coding.category),
            segmented_property_type=concept(coding.type),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=derived_uid("segment", tracked, str(number)),
            tracking_id=tissue.name,
            display_color=CIELabColor.from_rgb(*tissue.color),
        )
        if coding.modifier is not None:
            (kind,) = described.SegmentedPropertyTypeCodeSequence
            kind.SegmentedPropertyTypeModifierCodeSequence = [concept(coding.modifier)]
        descriptions.append(described)
    return descriptions
