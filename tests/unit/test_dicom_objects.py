import logging
import traceback
from datetime import date, datetime
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_charset_files
from pydicom.uid import UID, ComprehensiveSRStorage, SegmentationStorage

from app.errors import ExtraMissing, UnreadableImage, UnsupportedImage
from app.interop.dicom_file import to_bytes
from app.interop.dicom_identity import moment, result_key, series_uid
from app.interop.dicom_seg import PyramidLevel
from app.interop.provenance import Conditions
from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass
from app.pathology.manifest import ModelManifest
from app.slides import dicom
from tests.dicom_results import measurement_report, segmentation_object
from tests.dicom_sources import CANARY, as_metadata, file_of, header_of, microscopic, secondary_capture, whole_slide
from tests.fakes import classes_of, manifest
from tests.pictures import quarters

IMAGE = quarters(150, 110)
CLASS_MAP = classes_of(IMAGE)
FRACTIONS = tuple(float((index == CLASS_MAP).mean()) for index in range(4))
SLIDE, FIELD = whole_slide(IMAGE), microscopic(IMAGE)
MODEL = manifest()


def segmented(source: Dataset, class_map: ClassMap = CLASS_MAP, model: ModelManifest = MODEL) -> Dataset:
    return segmentation_object(header_of(source), class_map, model)


def reported(source: Dataset, model: ModelManifest = MODEL) -> Dataset:
    header = header_of(source)
    return measurement_report(header, segmentation_object(header, CLASS_MAP, model), FRACTIONS, model)


def numbers_in(seg: Dataset) -> set[int]:
    """Return the segment numbers that have frames."""
    return {
        int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        for group in seg.PerFrameFunctionalGroupsSequence
    }


def test_a_slides_segmentation_is_what_viewers_draw():
    seg = segmented(SLIDE)
    assert seg.SOPClassUID == SegmentationStorage
    assert seg.SegmentationType == "BINARY"
    assert seg.DimensionOrganizationType == "TILED_SPARSE"
    assert (seg.TotalPixelMatrixColumns, seg.TotalPixelMatrixRows) == (150, 110)
    assert (seg.Columns, seg.Rows) == (SLIDE.Columns, SLIDE.Rows)
    assert not seg.file_meta.TransferSyntaxUID.is_compressed
    for keyword in ("FrameOfReferenceUID", "ImageOrientationSlide", "TotalPixelMatrixOriginSequence"):
        assert seg[keyword].value == SLIDE[keyword].value
    assert seg.NumberOfFrames == 2 + 2 + 4  # tiles that tumor, stroma and normal touch; none for background


def test_results_say_in_their_own_attribute_that_they_are_for_research():
    assert segmented(SLIDE).ContentQualification == "RESEARCH"
    assert reported(SLIDE).ContentQualification == "RESEARCH"


def test_segments_carry_codes_colours_and_the_algorithm():
    tumor, stroma, normal = segmented(SLIDE).SegmentSequence
    assert [segment.SegmentNumber for segment in (tumor, stroma, normal)] == [1, 2, 3]
    assert [segment.SegmentLabel for segment in (tumor, stroma, normal)] == ["tumor", "stroma", "normal"]
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in (tumor, stroma, normal)]
    assert [kind.CodeValue for kind in kinds] == ["108369006", "21793004", "39607008"]
    assert kinds[2].SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "17621005"
    assert tumor.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert tumor.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Morphologically Abnormal Structure"
    assert [segment.RecommendedDisplayCIELabValue for segment in (tumor, stroma, normal)] == [
        [17935, 35240, 22354],
        [31234, 22700, 46167],
        [46224, 39504, 52270],
    ]
    (algorithm,) = tumor.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (MODEL.name, MODEL.version)
    stated = "um_per_px=unknown,scale_factor=1.0,warnings=none"
    assert algorithm.AlgorithmParameters == f"model_sha256={MODEL.sha256},{stated}"
    assert tumor.SegmentAlgorithmType == "AUTOMATIC"


def test_an_object_says_who_made_it_and_that_it_is_for_research():
    for made in (segmented(SLIDE), reported(SLIDE)):
        assert (made.Manufacturer, made.ManufacturerModelName) == ("tessera", MODEL.name)
        assert made.DeviceSerialNumber == MODEL.sha256
        assert made.SoftwareVersions[1] == MODEL.version
        assert made.SeriesDescription.endswith("research use only")


def test_a_long_name_is_cut_and_the_warning_is_not():
    model = MODEL.model_copy(update={"name": "n" * 64, "version": "1" * 64})
    description = segmented(SLIDE, model=model).SeriesDescription
    assert len(description) == 64
    assert description.endswith(", research use only")


@pytest.mark.parametrize("make", [segmented, reported])
@pytest.mark.parametrize("source_of", [whole_slide, microscopic])
@pytest.mark.parametrize("patient", ["Doe^Jane", "Roe^John"])
def test_patient_and_study_are_the_sources(make, source_of, patient):
    about = {
        "PatientName": patient,
        "PatientID": f"{patient}-7",
        "PatientBirthDate": "19520304",
        "PatientSex": "O",
        "AccessionNumber": f"A-{patient}"[:16],
        "StudyID": f"S-{patient}"[:16],
    }
    source = source_of(IMAGE, name=patient, **about)
    made = make(source)
    assert {keyword: made[keyword].value for keyword in about} == about
    assert made.StudyInstanceUID == source.StudyInstanceUID
    assert made.StudyInstanceUID not in {SLIDE.StudyInstanceUID, FIELD.StudyInstanceUID}
    assert made.SeriesInstanceUID != source.SeriesInstanceUID


@pytest.mark.parametrize("form", [header_of, as_metadata])
def test_names_keep_their_letters(form):
    source = form(SLIDE)
    seg = segmentation_object(source, CLASS_MAP, MODEL)
    for made in (seg, measurement_report(source, seg, FRACTIONS, MODEL)):
        written = dcmread(BytesIO(to_bytes(made)))
        assert written.SpecificCharacterSet == "ISO_IR 192"
        assert written.ReferringPhysicianName == "Müller^Ängström"


def uploaded(source: Dataset) -> Dataset:
    return dicom.header(file_of(source))


@pytest.mark.parametrize("form", [header_of, as_metadata, uploaded])
@pytest.mark.parametrize(
    ("character_set", "text"),
    [
        ("ISO_IR 100", "Präparat Höhe"),
        (["ISO 2022 IR 6", "ISO 2022 IR 87"], "標本 A"),
        ("ISO_IR 192", "Präparat 標本"),
    ],
)
def test_texts_within_sequences_keep_their_letters(character_set, text, form):
    """pydicom writes what it has not parsed byte for byte, whatever the object's own character set is."""
    source = whole_slide(IMAGE, SpecificCharacterSet=character_set, ReferringPhysicianName="")
    [specimen] = source.SpecimenDescriptionSequence
    step, content, procedure = Dataset(), Dataset(), Dataset()
    specimen.SpecimenIdentifier = specimen.SpecimenDetailedDescription = text
    content.TextValue = procedure.CodeMeaning = text
    step.SpecimenPreparationStepContentItemSequence = [content]
    specimen.SpecimenPreparationSequence = [step]
    source.ProcedureCodeSequence = [procedure]

    header = form(source)
    seg = segmentation_object(header, CLASS_MAP, MODEL)
    report = measurement_report(header, seg, FRACTIONS, MODEL)
    for made in (seg, report):
        written = dcmread(BytesIO(to_bytes(made)))
        assert written.SpecificCharacterSet == "ISO_IR 192"
        assert written.ProcedureCodeSequence[0].CodeMeaning == text
    [specimen] = dcmread(BytesIO(to_bytes(seg))).SpecimenDescriptionSequence
    [step] = specimen.SpecimenPreparationSequence
    [content] = step.SpecimenPreparationStepContentItemSequence
    assert [specimen.SpecimenIdentifier, specimen.SpecimenDetailedDescription, content.TextValue] == [text] * 3


@pytest.mark.parametrize("representation", [b"FD", b"ZZ", b"DS", b"US"])
def test_what_cannot_be_parsed_within_sequences_is_repeated_as_it_is(representation):
    """A number of four bytes where one has eight, and a representation that nobody knows."""
    source = whole_slide(IMAGE)
    step, content = Dataset(), Dataset()
    content.PersonName = "abcd"
    step.SpecimenPreparationStepContentItemSequence = [content]
    source.SpecimenDescriptionSequence[0].SpecimenPreparationSequence = [step]
    written = b"\x40\x00\x23\xa1PN\x04\x00abcd"
    data = file_of(source)
    assert data.count(written) == 1

    header = dicom.header(data.replace(written, written.replace(b"PN", representation)))
    seg = segmentation_object(header, CLASS_MAP, MODEL)

    assert b"\x40\x00\x23\xa1" + representation + b"\x04\x00abcd" in to_bytes(seg)
    assert to_bytes(measurement_report(header, seg, FRACTIONS, MODEL))


def test_sequences_deeper_than_any_standard_has_them_are_refused():
    """With some 250 of them pydicom's writer does not come to an end, and takes gigabytes."""
    source = whole_slide(IMAGE)
    source.ProcedureCodeSequence = [_nested(32)]
    assert dicom.header(file_of(source)).ProcedureCodeSequence
    source.ProcedureCodeSequence = [_nested(33)]
    with pytest.raises(UnreadableImage, match="sequences in sequences, more than 32 deep"):
        dicom.header(file_of(source))


def _nested(depth: int) -> Dataset:
    """Return an item of a sequence that has, with it, so many sequences in one another."""
    item = Dataset()
    item.TextValue = "innermost"
    for _ in range(depth - 1):
        outer = Dataset()
        outer.ContentSequence = [item]
        item = outer
    return item


@pytest.mark.parametrize("name", ["chrArab", "chrH31", "chrH32", "chrI2", "chrRuss", "chrX1", "chrX2"])
def test_names_in_any_character_set_arrive(name):
    (path,) = get_charset_files(f"{name}.dcm")
    data = Path(path).read_bytes()
    seg = segmentation_object(dicom.header(data), np.zeros((32, 32), np.uint8), MODEL)
    assert dcmread(BytesIO(to_bytes(seg))).PatientName == dcmread(path).PatientName


def test_an_object_refers_to_its_source():
    seg = segmented(SLIDE)
    assert seg.SourceImageSequence[0].ReferencedSOPInstanceUID == SLIDE.SOPInstanceUID
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SLIDE.SeriesInstanceUID


@pytest.mark.parametrize("form", [header_of, as_metadata])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_slides_segmentation_comes_back_to_the_pixel(form, sparse, tmp_path):
    seg = segmentation_object(form(whole_slide(IMAGE, sparse=sparse)), CLASS_MAP, MODEL)
    path = tmp_path / "seg.dcm"
    path.write_bytes(to_bytes(seg))
    numbers = hd.seg.segread(path).get_total_pixel_matrix(combine_segments=True)
    assert np.array_equal(numbers, np.array([1, 2, 3, 0])[CLASS_MAP])


@pytest.mark.parametrize("form", [header_of, as_metadata])
@pytest.mark.parametrize(
    "source", [FIELD, microscopic(IMAGE, on_slide=True), secondary_capture(IMAGE)], ids=["field", "on_slide", "capture"]
)
def test_a_single_frames_segmentation_comes_back_to_the_pixel(form, source, tmp_path):
    path = tmp_path / "seg.dcm"
    path.write_bytes(to_bytes(segmentation_object(form(source), CLASS_MAP, MODEL)))
    (numbers,) = hd.seg.segread(path).get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
    assert np.array_equal(numbers, np.array([1, 2, 3, 0])[CLASS_MAP])


@pytest.mark.parametrize("source", [SLIDE, FIELD])
def test_an_absent_class_keeps_its_number_and_has_no_frame(source):
    without_stroma = np.where(CLASS_MAP == 1, 3, CLASS_MAP).astype(np.uint8)
    seg = segmented(source, without_stroma)
    assert [segment.SegmentNumber for segment in seg.SegmentSequence] == [1, 2, 3]
    assert numbers_in(seg) == {1, 3}


@pytest.mark.parametrize("source", [SLIDE, FIELD])
def test_a_map_of_background_alone_is_one_empty_frame(source):
    seg = segmented(source, np.full_like(CLASS_MAP, 3))
    assert seg.NumberOfFrames == 1
    assert not any(seg.PixelData)
    assert len(seg.SegmentSequence) == 3


def test_a_class_without_codes_gets_a_private_one_that_its_name_decides():
    gland, other = (TissueClass(name="gland", letter="G", color=(1, 2, 3)), MODEL.classes[3])
    model = MODEL.model_copy(update={"classes": (gland, other), "label_thresholds": (0.5,)})
    seg = segmented(SLIDE, np.where(CLASS_MAP == 3, 1, 0).astype(np.uint8), model)
    (kind,) = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence
    assert (kind.CodingSchemeDesignator, kind.CodeMeaning) == ("99TESSERA", "gland")
    assert len(kind.CodeValue) <= 16
    assert seg.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99TESSERA"
    assert "CodingSchemeIdentificationSequence" not in segmented(SLIDE)


def test_background_anywhere_in_the_list_is_no_segment():
    classes = (MODEL.classes[3], *MODEL.classes[:3])
    seg = segmented(
        SLIDE, np.roll(np.arange(4, dtype=np.uint8), -1)[CLASS_MAP], MODEL.model_copy(update={"classes": classes})
    )
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["tumor", "stroma", "normal"]
    assert seg.PixelData == segmented(SLIDE).PixelData


@pytest.mark.parametrize("make", [segmented, reported])
@pytest.mark.parametrize("source", [SLIDE, FIELD])
def test_the_same_input_gives_the_same_bytes(make, source):
    assert to_bytes(make(source)) == to_bytes(make(source))


def test_uids_are_valid_distinct_and_follow_source_map_and_model():
    changed = MODEL.model_copy(update={"sha256": "1" * 64})
    recoloured = (MODEL.classes[0].model_copy(update={"color": (9, 9, 9)}), *MODEL.classes[1:])
    seg, report = segmented(SLIDE), reported(SLIDE)
    uids = [
        seg.SOPInstanceUID,
        seg.SeriesInstanceUID,
        seg.DimensionOrganizationSequence[0].DimensionOrganizationUID,
        *(segment.TrackingUID for segment in seg.SegmentSequence),
        report.SOPInstanceUID,
        report.SeriesInstanceUID,
        segmented(whole_slide(IMAGE, name="other")).SOPInstanceUID,
        segmented(SLIDE, CLASS_MAP[::-1]).SOPInstanceUID,
        segmented(SLIDE, model=changed).SOPInstanceUID,
        segmented(SLIDE, model=changed).SeriesInstanceUID,
        segmented(SLIDE, model=MODEL.model_copy(update={"classes": recoloured})).SOPInstanceUID,
    ]
    assert len(set(uids)) == len(uids)
    assert all(UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)


def test_the_stain_counts_only_where_it_is_another():
    """So results of models that were exported before manifests stated one keep their UIDs."""
    assert "stain" not in result_key(MODEL)
    assert result_key(MODEL.model_copy(update={"stain": "PD-L1 IHC"})) != result_key(MODEL)


@pytest.mark.parametrize(
    ("stain", "expected"),
    [
        ("H&E", "Tissue classes of an H&E image"),
        ("PD-L1 IHC", "Tissue classes, stain PD-L1 IHC"),
        ("Trichrome\\Goldner", "Tissue classes, stain Trichrome/Goldner"),
        ("s" * 64, "Tissue classes, stain " + "s" * 42),
    ],
)
def test_the_content_is_described_by_the_models_stain(stain, expected):
    seg = segmented(SLIDE, model=MODEL.model_copy(update={"stain": stain}))
    assert dcmread(BytesIO(to_bytes(seg))).ContentDescription == expected


def test_the_results_series_is_known_before_the_slide_is_segmented():
    header = header_of(SLIDE)
    assert series_uid(header, MODEL) == segmented(SLIDE, CLASS_MAP[::-1]).SeriesInstanceUID


def test_a_class_map_of_another_size_is_a_mistake():
    with pytest.raises(ValueError, match=r"\(110, 149\) rows and columns, its source \(110, 150\)"):
        segmented(SLIDE, CLASS_MAP[:, :149])


def test_times_are_the_sources():
    for made in (segmented(SLIDE), reported(SLIDE)):
        assert f"{made.ContentDate} {made.ContentTime}" == "20200102 030405"
        assert f"{made.InstanceCreationDate} {made.InstanceCreationTime}" == "20200102 030405"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"ContentDate": "20200102", "ContentTime": "030405.678"}, datetime(2020, 1, 2, 3, 4, 5)),
        ({"ContentDate": "20200102"}, datetime(2020, 1, 2)),
        ({"AcquisitionDateTime": "20200102030405+0100", "StudyDate": "20190101"}, datetime(2020, 1, 2, 3, 4, 5)),
        ({"ContentDate": "20200102", "ContentTime": "1011"}, datetime(2020, 1, 2, 10, 11)),
        ({"ContentDate": "20200102", "ContentTime": "10"}, datetime(2020, 1, 2, 10)),
        ({"AcquisitionDateTime": "202001021011"}, datetime(2020, 1, 2, 10, 11)),
        ({"AcquisitionDateTime": "2020010210+0100"}, datetime(2020, 1, 2, 10)),
        ({"AcquisitionDateTime": "202001", "StudyDate": "20190101"}, datetime(2019, 1, 1)),
        ({"ContentDate": "20201399", "StudyDate": "20190101"}, datetime(2019, 1, 1)),
        ({}, datetime(1900, 1, 1)),
    ],
)
def test_the_moment_is_the_first_that_the_source_knows(attributes, expected):
    source = Dataset()
    for keyword, value in attributes.items():
        setattr(source, keyword, value)
    assert moment(source) == expected


@pytest.mark.parametrize(
    ("released", "expected"), [(date(2026, 11, 29), "20261129 000000"), (date(2019, 1, 1), "20200102 030405")]
)
def test_a_result_is_never_older_than_its_model(released, expected):
    model = MODEL.model_copy(update={"released": released})
    for made in (segmented(SLIDE, model=model), reported(SLIDE, model)):
        assert f"{made.ContentDate} {made.ContentTime}" == expected
        assert f"{made.InstanceCreationDate} {made.InstanceCreationTime}" == expected
        contributed = made.ContributingEquipmentSequence[-1].ContributionDateTime
        assert f"{contributed:%Y%m%d %H%M%S}" == expected
        assert made.StudyDate == SLIDE.StudyDate
        assert to_bytes(made)  # DICOM takes it


@pytest.mark.parametrize(
    ("stated", "kept"),
    [("+0100", "+0100"), ("-1200", "-1200"), ("+1400", "+1400")]
    + [(value, None) for value in ("", "-0000", "+1500", "-1300", "+01", "CANARY", "+0160")],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # what is tried
def test_the_time_zone_is_the_sources(stated, kept):
    source = header_of(SLIDE)
    source.TimezoneOffsetFromUTC = stated
    seg = segmentation_object(source, CLASS_MAP, MODEL)
    for made in (seg, measurement_report(source, seg, FRACTIONS, MODEL)):
        assert made.get("TimezoneOffsetFromUTC") == kept


def test_where_the_scanner_stands_is_not_repeated():
    source = header_of(SLIDE)
    source.InstitutionName, source.InstitutionAddress = "CANARY HOSPITAL", "CANARY STREET"
    source.InstitutionalDepartmentName, source.StationName = "CANARY WARD", "CANARY-1"
    source.DeviceSerialNumber = "CANARY-2"
    seg = segmentation_object(source, CLASS_MAP, MODEL)
    scanner, _ = seg.ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.ManufacturerModelName, scanner.SoftwareVersions) == ("Scanners", "One", "1")
    seg.PatientName, seg.PatientID = "nobody", "none"
    for made in (seg, measurement_report(source, seg, FRACTIONS, MODEL)):
        made.PatientName, made.PatientID = "nobody", "none"
        assert b"CANARY" not in to_bytes(made)


@pytest.mark.parametrize("source", [SLIDE, FIELD])
def test_a_report_gives_each_segments_area_where_the_spacing_is_known(source):
    header, conditions = header_of(source), Conditions(0.5, 1.0, ())
    seg = segmentation_object(header, CLASS_MAP, MODEL, conditions)
    report = measurement_report(header, seg, FRACTIONS, MODEL, conditions, 150 * 110 * 0.0005**2)
    groups = hd.sr.srread(BytesIO(to_bytes(report))).content.get_volumetric_roi_measurement_groups()
    for index, group in enumerate(groups):
        share, area = group.get_measurements()
        assert share.unit.value == "%"
        assert (area.name.value, area.name.scheme_designator, area.unit.value) == ("42798000", "SCT", "mm2")
        assert area.value == pytest.approx((index == CLASS_MAP).sum() * 0.0005**2, rel=1e-5)


def test_reports_of_other_results_of_a_slide_are_series_of_their_own():
    header = header_of(SLIDE)
    seg = segmentation_object(header, CLASS_MAP, MODEL)
    levels = [segmentation_object(header, CLASS_MAP, MODEL, level=PyramidLevel(uid, uid, 1)) for uid in ("1.2", "1.3")]
    reports = [measurement_report(header, each, FRACTIONS, MODEL) for each in (seg, *levels)]
    assert len({each.SeriesInstanceUID for each in (seg, *levels, *reports)}) == 6
    assert reports[0].SeriesInstanceUID == measurement_report(header, seg, (0.0,) * 4, MODEL).SeriesInstanceUID


def test_the_area_is_of_what_was_counted_and_part_of_the_reports_name():
    """And not of the level that carries the result, which may be filled up to whole tiles."""
    header, conditions = header_of(SLIDE), Conditions(0.5, 1.0, ())
    seg = segmentation_object(header, CLASS_MAP, MODEL, conditions)
    reports = [
        measurement_report(header, seg, (0.5, 0.0, 0.0, 0.5), MODEL, conditions, mm2) for mm2 in (1.5, 2.0, None)
    ]
    found = [
        [
            measured.value
            for measured in hd.sr.srread(BytesIO(to_bytes(report)))
            .content.get_volumetric_roi_measurement_groups()[0]
            .get_measurements()
        ]
        for report in reports
    ]
    assert found == [[50.0, 0.75], [50.0, 1.0], [50.0]]
    assert len({report.SOPInstanceUID for report in reports}) == 3


def test_a_report_gives_each_segments_share_in_percent():
    report = reported(SLIDE)
    assert report.SOPClassUID == ComprehensiveSRStorage
    seg = segmented(SLIDE)
    groups = hd.sr.srread(BytesIO(to_bytes(report))).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 3
    for number, group in enumerate(groups, start=1):
        (measurement,) = group.get_measurements()
        assert measurement.value == pytest.approx(100 * FRACTIONS[number - 1], abs=1e-4)
        assert measurement.unit.value == "%"
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert segment.referenced_segment_numbers == [number]
        assert group.tracking_identifier == MODEL.classes[number - 1].name
        assert group.tracking_uid == seg.SegmentSequence[number - 1].TrackingUID


def codes_in(item: Dataset) -> set[tuple[str, str]]:
    """Return values and schemes of the codes that an item of a report and those below it have as their values."""
    own = {(code.CodeValue, code.CodingSchemeDesignator) for code in item.get("ConceptCodeSequence", [])}
    return own.union(*(codes_in(child) for child in item.get("ContentSequence", [])))


def test_a_reports_group_has_every_code_of_its_segments_description():
    groups = hd.sr.srread(BytesIO(to_bytes(reported(SLIDE)))).content.get_volumetric_roi_measurement_groups()
    modified = 0
    for segment, group in zip(segmented(SLIDE).SegmentSequence, groups, strict=True):
        (category,), (kind,) = segment.SegmentedPropertyCategoryCodeSequence, segment.SegmentedPropertyTypeCodeSequence
        modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence", [])
        described = {(code.CodeValue, code.CodingSchemeDesignator) for code in (category, kind, *modifiers)}
        assert described <= codes_in(group[0])
        modified += len(modifiers)
    assert modified == 1


def test_a_finding_is_no_type_without_its_modifier():
    """highdicom, as others, reads the finding's own code alone: normal lung is not to be taken for any lung."""
    report = dcmread(BytesIO(to_bytes(reported(SLIDE))))
    groups = hd.sr.srread(BytesIO(to_bytes(report))).content.get_volumetric_roi_measurement_groups()
    tumor, stroma, normal = (group.finding_type for group in groups)
    assert [(code.value, code.scheme_designator) for code in (tumor, stroma)] == [
        ("108369006", "SCT"),
        ("21793004", "SCT"),
    ]
    assert (normal.scheme_designator, normal.meaning) == ("99TESSERA", "Normal Lung")
    assert len(normal.value) == 16
    assert "99TESSERA" in {each.CodingSchemeDesignator for each in report.CodingSchemeIdentificationSequence}
    (finding,) = (item for item in groups[2][0].ContentSequence if item.name.value == "121071")
    assert [(item.RelationshipType, item.name.value, item.value.value) for item in finding.ContentSequence] == [
        ("HAS CONCEPT MOD", "TYPE", "39607008"),
        ("HAS CONCEPT MOD", "TYPE-MODIFIER", "17621005"),
    ]


def test_a_long_finding_fits_a_codes_meaning():
    *others, normal, glass = MODEL.classes
    kind = normal.coding.type.model_copy(update={"meaning": "m" * 64})
    long = normal.model_copy(update={"coding": normal.coding.model_copy(update={"type": kind})})
    report = reported(SLIDE, MODEL.model_copy(update={"classes": (*others, long, glass)}))
    group = hd.sr.srread(BytesIO(to_bytes(report))).content.get_volumetric_roi_measurement_groups()[2]
    assert group.finding_type.meaning == "Normal " + "m" * 57


def test_a_report_cites_source_and_segmentation_as_evidence():
    evidence = {uid for _, _, uid, _ in reported(SLIDE).get_evidence()}
    assert evidence == {SLIDE.SOPInstanceUID, segmented(SLIDE).SOPInstanceUID}


def test_metadata_that_lacks_what_may_be_empty_is_enough():
    source = as_metadata(SLIDE)
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyTime"):
        del source[keyword]
    assert not segmentation_object(source, CLASS_MAP, MODEL).PatientBirthDate
    assert "PatientSex" not in source


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        *[("PatientBirthDate", value) for value in ("1950", "00000000", "99999999")],
        ("PatientSex", "unknown"),
        ("StudyDate", "20210229"),
        *[("StudyTime", value) for value in ("noon", "24", "1260", "120061")],
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # what is tried
def test_malformed_and_impossible_values_are_left_empty(keyword, value):
    source = header_of(SLIDE)
    setattr(source, keyword, value)
    assert not segmentation_object(source, CLASS_MAP, MODEL)[keyword].value


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("value", ["", "abc", "1..2", "1.2."])
@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # what is tried
def test_a_source_without_identifiers_is_refused(keyword, value):
    source = header_of(SLIDE)
    setattr(source, keyword, value)
    with pytest.raises(UnsupportedImage, match="malformed"):
        segmentation_object(source, CLASS_MAP, MODEL)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "ImageOrientationSlide"])
def test_a_source_that_cannot_be_repeated_is_refused_without_its_values(keyword):
    source = header_of(SLIDE)
    del source[keyword]
    with pytest.raises(UnsupportedImage, match="repeats of its source") as refused:
        segmentation_object(source, CLASS_MAP, MODEL)
    assert "CANARY" not in "".join(traceback.format_exception(refused.value))


def test_making_objects_tells_nothing_of_the_patient(caplog, capfd, recwarn):
    caplog.set_level(logging.DEBUG)
    source = header_of(SLIDE)
    source.PatientName = CANARY.replace("^", "=") + "=" + "x" * 70  # highdicom warns of such a name, and quotes it
    seg = segmentation_object(source, CLASS_MAP, MODEL)
    to_bytes(measurement_report(source, seg, FRACTIONS, MODEL))
    told = "".join([caplog.text, *capfd.readouterr(), *(str(warning.message) for warning in recwarn)])
    assert "CANARY" not in told
    assert SLIDE.SOPInstanceUID not in told


def test_a_missing_extra_is_named(monkeypatch):
    seg = segmented(SLIDE)
    monkeypatch.setattr("app.libraries.find_spec", lambda _: None)
    for make in (
        lambda: segmentation_object(Dataset(), CLASS_MAP, MODEL),
        lambda: measurement_report(Dataset(), seg, FRACTIONS, MODEL),
        lambda: to_bytes(seg),
    ):
        with pytest.raises(ExtraMissing, match="DICOM needs the extra 'dicom'"):
            make()
