"""DICOM over HTTP: an instance uploaded, and a Segmentation or a report of it back."""

import logging
from io import BytesIO

import numpy as np
import pytest
from highdicom.seg import segread
from pydicom import Dataset, dcmread

from app.imaging import dicom_packages
from app.pathology.classes import WSSS4LUAD
from tests.dicom_sources import CANARY, file_of, microscopic, whole_slide
from tests.fakes import classes_of
from tests.pictures import BLUE, encoded, from_base64, opened, plain, quarters

DICOM = {"Content-Type": "application/dicom"}
OBJECT = DICOM | {"Accept": "application/dicom"}


def read_back(content: bytes) -> np.ndarray:
    """Return the (H, W) class map that a Segmentation holds."""
    segmentation = segread(BytesIO(content))
    tiled = segmentation.is_tiled
    pixels = segmentation.get_total_pixel_matrix(combine_segments=True) if tiled else segmentation.pixel_array
    if not tiled:
        combined = np.zeros(pixels.shape[-2:], np.uint8)
        frames = pixels.reshape(-1, *pixels.shape[-2:])
        for frame, item in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
            combined[frame > 0] = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        pixels = combined
    return np.where(pixels == 0, len(WSSS4LUAD), pixels).astype(np.uint8) - 1


def measured(item: Dataset, unit: str) -> list[float]:
    """Return the values in `unit` of a report's NUM items, depth first."""
    values = item.get("MeasuredValueSequence", [])
    own = [float(each.NumericValue) for each in values if each.MeasurementUnitsCodeSequence[0].CodeValue == unit]
    return own + [value for child in item.get("ContentSequence", []) for value in measured(child, unit)]


def test_a_dicom_slide_is_answered_like_any_image(client):
    image = quarters(150, 100)
    data = file_of(whole_slide(image))
    answer = client.post("/segment", content=data, headers=DICOM).json()
    assert answer["code"] == "T+S+N"
    assert (answer["image"]["width"], answer["image"]["height"]) == (150, 100)
    assert np.array_equal(np.asarray(from_base64(answer["mask"])), classes_of(image))
    in_a_form = client.post("/segment", files={"file": ("x.dcm", data)}, headers={"Accept": "image/png"})
    assert np.array_equal(np.asarray(opened(in_a_form.content)), classes_of(image))


@pytest.mark.parametrize("source", [whole_slide, microscopic])
def test_a_segmentation_holds_the_mask_pixel_by_pixel_and_refers_to_its_source(client, source):
    image = quarters(150, 100)
    uploaded = source(image)
    response = client.post("/segment", content=file_of(uploaded), headers=OBJECT)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/dicom"
    assert response.headers["tessera-code"] == "T+S+N"
    segmentation = dcmread(BytesIO(response.content))
    assert segmentation.Modality == "SEG"
    assert segmentation.PatientName == uploaded.PatientName
    assert segmentation.StudyInstanceUID == uploaded.StudyInstanceUID
    referenced = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert referenced.ReferencedSOPInstanceUID == uploaded.SOPInstanceUID
    assert np.array_equal(read_back(response.content), classes_of(image))


def test_a_report_gives_the_fractions_and_refers_to_the_segmentation(client):
    data = file_of(whole_slide(quarters(150, 100)))
    segmentation = dcmread(BytesIO(client.post("/segment", content=data, headers=OBJECT).content))
    report = dcmread(BytesIO(client.post("/segment?dicom=sr", content=data, headers=OBJECT).content))
    assert report.Modality == "SR"
    assert segmentation.SOPInstanceUID in str(report)
    assert measured(report, "%") == [25.0, 25.0, 25.0]


@pytest.mark.parametrize("mpp", [None, 0.5, 0.8, 1])
def test_a_reports_areas_are_those_of_the_segmentation_whatever_spacing_was_stated(client, mpp):
    data = file_of(whole_slide(quarters(150, 100)))
    stated = {} if mpp is None else {"mpp": mpp}
    answer = client.post("/segment", params=stated, content=data, headers=OBJECT)
    segmentation = dcmread(BytesIO(answer.content))
    report = dcmread(
        BytesIO(client.post("/segment", params={**stated, "dicom": "sr"}, content=data, headers=OBJECT).content)
    )
    assert segmentation.SOPInstanceUID in str(report)
    (shared,) = segmentation.SharedFunctionalGroupsSequence
    down, across = shared.PixelMeasuresSequence[0].PixelSpacing
    classes = read_back(answer.content)
    expected = [(classes == index).sum() * down * across for index in range(3)]
    assert measured(report, "mm2") == pytest.approx(expected, rel=1e-5)


def test_a_reports_areas_follow_the_stated_spacing_where_the_header_has_none(client):
    data = file_of(microscopic(quarters(150, 100)))
    answer = client.post("/segment", params={"mpp": 1, "dicom": "sr"}, content=data, headers=OBJECT)
    assert measured(dcmread(BytesIO(answer.content)), "mm2") == pytest.approx([75 * 50 * 1e-6] * 3, rel=1e-5)


def test_the_same_upload_gives_the_same_object(client):
    data = file_of(whole_slide(quarters(90, 60)))
    for parameters in ({}, {"dicom": "sr"}):
        first, second = (client.post("/segment", params=parameters, content=data, headers=OBJECT) for _ in range(2))
        assert first.content == second.content


def test_dicom_answers_dicom_alone(client):
    headers = {"Content-Type": "image/png", "Accept": "application/dicom"}
    response = client.post("/segment", content=encoded(plain(BLUE, 20, 20)), headers=headers)
    assert response.status_code == 406
    assert "a DICOM upload alone" in response.json()["detail"]


def test_a_larger_slide_is_told_where_to_go(client):
    response = client.post("/segment", content=file_of(whole_slide(quarters(302, 40))), headers=DICOM)
    assert response.status_code == 413
    assert "tessera dicomweb segment" in response.json()["detail"]


def test_a_truncated_instance_is_a_problem(client):
    response = client.post("/segment", content=file_of(whole_slide(quarters(90, 60)))[:-5000], headers=DICOM)
    assert response.status_code == 422
    assert response.json()["type"] == "urn:problem-type:tessera:unreadable-image"


def test_a_missing_extra_is_named(client, monkeypatch):
    monkeypatch.setattr(dicom_packages, "_PACKAGES", ("pydicom", "no_such_package"))
    response = client.post("/segment", content=file_of(whole_slide(quarters(90, 60))), headers=DICOM)
    assert response.status_code == 501
    assert "the extra 'dicom'" in response.json()["detail"]


def test_nothing_of_the_patient_reaches_a_log_a_metric_or_an_error(client, caplog):
    caplog.set_level(logging.DEBUG)
    good = whole_slide(quarters(90, 60))
    answers = [client.post("/segment", content=file_of(good), headers=DICOM)]
    answers += [client.post("/segment", content=file_of(good)[:cut], headers=OBJECT) for cut in (200, 1000, -3000)]
    everything = "".join(f"{answer.text} {answer.headers}" for answer in answers) + client.get("/metrics").text
    everything += "".join(record.getMessage() + str(vars(record)) for record in caplog.records)
    assert CANARY.split("^", maxsplit=1)[0] not in everything
    assert good.SOPInstanceUID not in everything
