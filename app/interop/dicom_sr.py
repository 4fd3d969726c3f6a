"""How much of an image each class fills, and how large that is, as a DICOM structured report that cites the segments.

Source: DICOM PS3.16, templates TID 1500 (Measurement Report), 1411 (measurements of a segment) and 4019 (algorithm).
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.imaging.dicom_packages import require_dicom
from app.interop.dicom_codes import AREA, PIXEL_FRACTION, PRIVATE_SCHEME, coding_of, concept, private_scheme
from app.interop.dicom_identity import (
    MANUFACTURER,
    common_arguments,
    complete,
    derived_uid,
    make_reproducible,
    parameters_of,
    repeating_the_source,
    result_key,
)
from app.interop.provenance import Conditions
from app.pathology.classes import Code, Coding, TissueClass, label_indices
from app.pathology.manifest import ModelManifest

if TYPE_CHECKING:
    from pydicom import Dataset

_DIGITS = 6
"""Significant digits of an area."""
_MEANING = 64
"""Characters of a Code Meaning (PS3.5, section 6.2, LO)."""
_TYPE = Code(value="TYPE", scheme=PRIVATE_SCHEME, meaning="Segmented property type")
_MODIFIER = Code(value="TYPE-MODIFIER", scheme=PRIVATE_SCHEME, meaning="Segmented property type modifier")


def measurement_report(
    source: "Dataset",
    seg: "Dataset",
    fractions: Sequence[float],
    manifest: ModelManifest,
    conditions: Conditions,
    image_mm2: float | None,
) -> "Dataset":
    """Return a Comprehensive SR with a measurement group for each label class: its segment, its share and its area.

    The share is of all pixels, in percent; the area, in mm2, is given where the image's is known. The series follows
    from the Segmentation's, so that reports of several levels or scanned areas share none. Deterministic, as
    `dicom_seg.segmentation_object` is.

    Args:
        source: Header of the segmented instance.
        seg: What `segmentation_object` returned for it and for `conditions`.
        fractions: The share of the pixels that each class of the manifest has, 0 to 1, background included.
        manifest: The model.
        conditions: How it saw the image.
        image_mm2: The area of the pixels that `fractions` are shares of; None where it is not known.

    Raises:
        UnsupportedImage: The source lacks what the object must repeat.
        ExtraMissing: The packages that write DICOM are not installed.
    """
    require_dicom()
    from highdicom import sr  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    shares = [fractions[index] for index in label_indices(manifest.classes)]
    measured = list(zip(seg.SegmentSequence, manifest.label_classes, shares, strict=True))
    with repeating_the_source():
        of_series = derived_uid("report series", str(seg.SeriesInstanceUID))
        completed = complete(source)
        observer = sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=derived_uid("device", result_key(manifest)),
                name=MANUFACTURER,
                manufacturer_name=MANUFACTURER,
                model_name=manifest.name,
                serial_number=manifest.sha256,
            ),
        )
        content = sr.MeasurementReport(
            observation_context=sr.ObservationContext(observer_device_context=observer),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=[
                _group(source, seg, segment, tissue, manifest, conditions, _measurements(fraction, image_mm2))
                for segment, tissue, fraction in measured
            ],
            title=codes.DCM.ImagingMeasurementReport,
            referenced_images=[completed],
        )
        report: Dataset = sr.ComprehensiveSR(
            evidence=[completed, seg],
            content=content,
            sop_instance_uid=derived_uid("report", str(seg.SOPInstanceUID), *map(repr, (*fractions, image_mm2))),
            is_complete=True,
            coding_schemes=[private_scheme()],
            **common_arguments(source, manifest, "Tissue fractions", "SR", of_series),
        )
        make_reproducible(report, source, manifest)
    return report


def _measurements(fraction: float, image_mm2: float | None) -> list[Any]:
    from highdicom import sr  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    share = sr.Measurement(name=concept(PIXEL_FRACTION), value=round(100 * fraction, 4), unit=codes.UCUM.Percent)
    if image_mm2 is None:
        return [share]
    area = float(f"{fraction * image_mm2:.{_DIGITS}g}")
    return [share, sr.Measurement(name=concept(AREA), value=area, unit=codes.UCUM.SquareMillimeter)]


def _group(
    source: "Dataset",
    seg: "Dataset",
    segment: "Dataset",
    tissue: TissueClass,
    manifest: ModelManifest,
    conditions: Conditions,
    measurements: list[Any],
) -> Any:
    from highdicom import sr  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    coding = coding_of(tissue)
    group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID),
        # Named here and not by frames, of which an absent class has none and a slide's class too many to list.
        referenced_segment=sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            segment.SegmentNumber,
            source_images=[sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID)],
        ),
        finding_category=concept(coding.category),
        finding_type=concept(_finding(coding)),
        algorithm_id=sr.AlgorithmIdentification(
            name=manifest.name,
            version=manifest.version,
            parameters=[f"{name}={value}" for name, value in parameters_of(manifest, conditions).items()],
            family=codes.DCM.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        ),
        measurements=measurements,
    )
    if coding.modifier is not None:
        (finding,) = (item for item in group[0].ContentSequence if item.name == codes.DCM.Finding)
        parts = (_TYPE, coding.type), (_MODIFIER, coding.modifier)
        how = sr.RelationshipTypeValues.HAS_CONCEPT_MOD
        finding.ContentSequence = sr.ContentSequence(
            [sr.CodeContentItem(concept(name), concept(part), how) for name, part in parts]
        )
    return group


def _finding(coding: Coding) -> Code:
    """Return what a group's Finding is: the type, or a private code for a type and its modifier together.

    Programs, highdicom among them, read the code of a finding and none of the items below it; to them "Lung" that only
    an item below calls "Normal" is any lung. So the code says both, and items below it, HAS CONCEPT MOD, give the two
    of the segment's description. The code's value is made of theirs, so that it means the same in any model.

    Source: DICOM PS3.16, section 6.2.4: content items may have such items also where their template shows none. PS3.3,
    section C.17.3.2.4, table C.17.3-8, explains a local code by one.
    """
    kind, modifier = coding.type, coding.modifier
    if modifier is None:
        return kind
    both = f"{modifier.scheme} {modifier.value} {kind.scheme} {kind.value}"
    value = hashlib.sha256(both.encode()).hexdigest()[:16]
    return Code(value=value, scheme=PRIVATE_SCHEME, meaning=f"{modifier.meaning} {kind.meaning}"[:_MEANING].rstrip())
