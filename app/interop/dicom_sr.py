"""How much of an image each class fills, and how large that is, as a DICOM structured report that cites the segments.

Source: DICOM PS3.16, templates TID 1500 (Measurement Report), 1411 (measurements of a segment) and 4019 (algorithm).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.imaging.dicom_packages import require_dicom
from app.interop.dicom_codes import AREA, PIXEL_FRACTION, coding_of, concept, private_scheme
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
from app.pathology.classes import TissueClass, label_indices
from app.pathology.manifest import ModelManifest

if TYPE_CHECKING:
    from pydicom import Dataset

_DIGITS = 6
"""Significant digits of an area."""


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
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID),
        # Named here and not by frames, of which an absent class has none and a slide's class too many to list.
        referenced_segment=sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            segment.SegmentNumber,
            source_images=[sr.SourceImageForSegmentation(source.SOPClassUID, source.SOPInstanceUID)],
        ),
        finding_category=concept(coding.category),
        finding_type=concept(coding.type),
        algorithm_id=sr.AlgorithmIdentification(
            name=manifest.name,
            version=manifest.version,
            parameters=[f"{name}={value}" for name, value in parameters_of(manifest, conditions).items()],
            family=codes.DCM.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        ),
        measurements=measurements,
    )
