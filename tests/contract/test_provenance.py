"""What is saved of an answer says by itself which model made it, at which um/px, with which warnings and for what."""

import base64
import json
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from fastapi.testclient import TestClient
from highdicom.seg import segread
from highdicom.sr import srread
from pydicom import Dataset

from app.imaging.paint import paint_mask
from app.interop.provenance import picture_text
from app.main import create_app
from app.settings import Settings
from tests.dicom_sources import file_of, microscopic, whole_slide
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import WHITE, encoded, opened, plain, quarters

PNG = {"Content-Type": "image/png"}
DICOM = {"Content-Type": "application/dicom", "Accept": "application/dicom"}
GEOJSON, DSA, ASAP = (
    "application/geo+json",
    "application/vnd.dsa.annotation+json",
    "application/vnd.asap.annotation+xml",
)
MODEL = {"model": "colours", "model_version": "1.0", "model_sha256": "0" * 64, "intended_use": "research use only"}
OUTLINED = quarters(60, 48)
"""Its colours are not those of H&E, so it is answered with a warning."""


@pytest.fixture
def scaled() -> Iterator[TestClient]:
    """A service whose model was trained at 1 um/px."""
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
    with TestClient(create_app(Settings(max_side_px=300, cores=1), segmenter)) as client:
        yield client


def ask(client: TestClient, accept: str, image=OUTLINED, **parameters) -> bytes:
    response = client.post("/segment", params=parameters, content=encoded(image), headers=PNG | {"Accept": accept})
    assert response.status_code == 200, response.text
    return response.content


def stated_in(content: bytes, accept: str) -> dict[str, str]:
    """Return what an answer of polygons says of its origin."""
    if accept == ASAP:
        return dict(ET.fromstring(content).attrib)
    document = json.loads(content)
    if accept == DSA:
        return document["attributes"]
    (stated, *others) = [feature["properties"]["metadata"] for feature in document["features"]]
    assert all(other == stated for other in others)
    return stated


@pytest.mark.parametrize("accept", [GEOJSON, DSA, ASAP])
def test_polygons_state_model_scale_warnings_and_use(scaled, accept):
    stated = stated_in(ask(scaled, accept, mpp=0.5), accept)
    assert len(stated.pop("image_sha256")) == 64
    assert stated == MODEL | {"um_per_px": "0.5", "scale_factor": "0.5", "warnings": "too_small"}


@pytest.mark.parametrize("accept", [GEOJSON, DSA, ASAP])
def test_polygons_say_when_the_spacing_is_not_known(scaled, accept):
    stated = stated_in(ask(scaled, accept), accept)
    assert (stated["um_per_px"], stated["scale_factor"]) == ("unknown", "1.0")
    assert stated["warnings"] == "out_of_distribution"


@pytest.mark.parametrize("view", ["mask", "overlay", "confidence"])
def test_a_picture_states_them_in_its_text(scaled, view):
    content = ask(scaled, "image/png", view=view, mpp=0.5)
    text = opened(content).text
    assert text["Software"].startswith("tessera ")
    assert text["Description"] == (
        "Tissue segmentation by colours 1.0, model SHA-256 000000000000; um_per_px=0.5; scale_factor=0.5;"
        " warnings=too_small; research use only"
    )
    assert content == ask(scaled, "image/png", view=view, mpp=0.5)


def test_a_mask_in_json_states_its_model_in_bytes_that_never_change(scaled):
    texts = set()
    for image, parameters in ((OUTLINED, {"mpp": 0.5}), (plain(WHITE, 64, 64), {})):
        answer = scaled.post("/segment", params=parameters, content=encoded(image), headers=PNG).json()
        mask = base64.b64decode(answer["mask"]["base64"])
        assert answer["request_id"].encode() not in mask
        texts.add(mask[mask.index(b"iTXt") : mask.index(b"IDAT") - 4])
    [text] = texts
    assert b"Tissue segmentation by colours 1.0, model SHA-256 000000000000; research use only" in text


def test_a_pictures_text_takes_any_letters():
    known = manifest().model_copy(update={"intended_use": "nur für Forschung, 研究用"})
    mask = opened(paint_mask(np.zeros((3, 5), np.uint8), known.classes, picture_text(known)))
    assert mask.text["Description"].endswith("; nur für Forschung, 研究用")


def of_segments(content: bytes) -> list[dict[str, str]]:
    """Return the algorithm's parameters of each segment, as highdicom reads them."""
    seg = segread(BytesIO(content))
    return [described.SegmentationAlgorithmIdentificationSequence.parameters for described in seg.SegmentSequence]


def parameters_in(report: Dataset) -> list[str]:
    """Return the algorithm's parameters in a report (TID 4019), depth first."""
    found = [item for child in report.get("ContentSequence", []) for item in parameters_in(child)]
    name = report.get("ConceptNameCodeSequence")
    return [report.TextValue, *found] if name and name[0].CodeMeaning == "Algorithm Parameters" else found


@pytest.mark.parametrize("source", [whole_slide, microscopic])
def test_dicom_objects_state_them_as_parameters_of_the_algorithm(scaled, source):
    data = file_of(source(OUTLINED))
    expected = {"model_sha256": "0" * 64, "um_per_px": "0.25", "scale_factor": "0.25", "warnings": "too_small"}
    seg = scaled.post("/segment", params={"mpp": 0.25}, content=data, headers=DICOM).content
    assert of_segments(seg) == [expected] * 3
    report = scaled.post("/segment", params={"mpp": 0.25, "dicom": "sr"}, content=data, headers=DICOM).content
    assert parameters_in(srread(BytesIO(report))) == [f"{name}={value}" for name, value in expected.items()] * 3


def test_two_spacings_never_share_a_uid(client):
    """The model knows no spacing, so both give the same map."""
    data = file_of(microscopic(OUTLINED))
    answers = [client.post("/segment", params={"mpp": mpp}, content=data, headers=DICOM) for mpp in (0.25, 0.5)]
    first, second = (segread(BytesIO(answer.content)) for answer in answers)
    assert first.PixelData == second.PixelData
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
