"""Requests that state their um/px, and what the answers say of it, with a model whose every pixel is known."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings
from tests.dicom_sources import file_of, whole_slide
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import encoded, from_base64, noise, opened, quarters

PNG = {"Content-Type": "image/png"}
DICOM = {"Content-Type": "application/dicom"}


@contextmanager
def serving(um_per_px: float | None) -> Iterator[tuple[TestClient, ColourSegmenter]]:
    segmenter = ColourSegmenter(manifest().model_copy(update={"um_per_px": um_per_px}))
    with TestClient(create_app(Settings(max_side_px=300, max_files=4, cores=1), segmenter)) as client:
        yield client, segmenter


@pytest.fixture
def scaled() -> Iterator[TestClient]:
    """A service whose model was trained at 1 um/px."""
    with serving(1.0) as (client, _):
        yield client


@pytest.mark.parametrize("route", ["/segment", "/classify"])
def test_the_answer_says_what_was_rescaled(scaled, route):
    answer = scaled.post(f"{route}?mpp=0.5", content=encoded(quarters(120, 80)), headers=PNG).json()
    assert answer["scale"] == {
        "um_per_px": 0.5,
        "source": "request",
        "model_um_per_px": 1.0,
        "factor": 0.5,
        "unchanged": None,
    }
    assert (answer["image"]["width"], answer["image"]["height"]) == (120, 80)
    assert answer["labels"] == ["tumor", "stroma", "normal"]


@pytest.mark.parametrize(
    ("model", "query", "expected"),
    [
        (1.0, "", {"um_per_px": None, "source": None, "model_um_per_px": 1.0, "unchanged": "mpp_unknown"}),
        (
            None,
            "?mpp=0.5",
            {
                "um_per_px": 0.5,
                "source": "request",
                "model_um_per_px": None,
                "unchanged": "model_um_per_px_unknown",
            },
        ),
        (
            0.5,
            "?mpp=0.499",
            {"um_per_px": 0.499, "source": "request", "model_um_per_px": 0.5, "unchanged": "within_tolerance"},
        ),
    ],
)
def test_the_answer_says_why_nothing_was_rescaled(model, query, expected):
    with serving(model) as (client, segmenter):
        answer = client.post(f"/segment{query}", content=encoded(quarters(60, 40)), headers=PNG).json()
        assert answer["scale"] == {**expected, "factor": 1.0}
        assert segmenter.windows == [(64, 64, 3)]


def test_masks_fractions_and_other_pictures_are_of_the_upload(scaled):
    answer = scaled.post("/segment?mpp=0.3&view=confidence", content=encoded(noise(131, 77)), headers=PNG).json()
    mask = np.asarray(from_base64(answer["mask"]))
    assert mask.shape == (77, 131)
    assert from_base64(answer["confidence"]).size == (131, 77)
    counts = np.bincount(mask.ravel(), minlength=4) / mask.size
    assert [result["fraction"] for result in answer["classes"]] == pytest.approx(counts, abs=1e-6)


def test_a_mpp_is_of_each_file(scaled):
    parts = [("file", encoded(quarters(side, side))) for side in (40, 80)]
    results = scaled.post("/segment?mpp=2", files=parts).json()["results"]
    assert [result["scale"]["factor"] for result in results] == [2.0, 2.0]
    assert [result["mask"]["width"] for result in results] == [40, 80]


def test_other_forms_say_it_in_a_header_and_keep_the_uploads_pixels(scaled):
    image = encoded(quarters(120, 80))
    said = "um_per_px=0.5; source=request; model_um_per_px=1.0; factor=0.5"
    picture = scaled.post("/segment?mpp=0.5", content=image, headers=PNG | {"Accept": "image/png"})
    assert picture.headers["tessera-scale"] == said
    assert opened(picture.content).size == (120, 80)
    polygons = scaled.post("/segment?mpp=0.5", content=image, headers=PNG | {"Accept": "application/geo+json"})
    assert polygons.headers["tessera-scale"] == said
    points = [point for each in polygons.json()["features"] for point in each["geometry"]["coordinates"][0]]
    assert np.max(points, axis=0).tolist() == [120, 80]
    unstated = scaled.post("/segment", content=image, headers=PNG | {"Accept": "image/png"})
    assert unstated.headers["tessera-scale"] == "model_um_per_px=1.0; factor=1.0; unchanged=mpp_unknown"


def test_a_dicom_uploads_own_spacing_is_taken_unless_one_is_stated(scaled):
    data = file_of(whole_slide(quarters(150, 100)))  # at 0.5 um/px
    own = scaled.post("/segment", content=data, headers=DICOM).json()
    assert (own["scale"]["source"], own["scale"]["um_per_px"], own["scale"]["factor"]) == ("dicom", 0.5, 0.5)
    assert (own["mask"]["width"], own["mask"]["height"]) == (150, 100)
    stated = scaled.post("/segment?mpp=1", content=data, headers=DICOM).json()
    assert (stated["scale"]["source"], stated["scale"]["factor"]) == ("request", 1.0)
    response = scaled.post("/segment", content=data, headers=DICOM | {"Accept": "application/dicom"})
    assert response.headers["tessera-scale"].startswith("um_per_px=0.5; source=dicom")


def test_a_tiffs_own_spacing_is_taken_unless_one_is_stated(scaled):
    data = encoded(quarters(150, 100), "TIFF", resolution=20_000, resolution_unit="cm")
    tiff = {"Content-Type": "image/tiff"}
    own = scaled.post("/segment", content=data, headers=tiff).json()
    assert (own["scale"]["source"], own["scale"]["um_per_px"], own["scale"]["factor"]) == ("file", 0.5, 0.5)
    assert (own["mask"]["width"], own["mask"]["height"]) == (150, 100)
    assert scaled.post("/segment?mpp=1", content=data, headers=tiff).json()["scale"]["source"] == "request"
    response = scaled.post("/segment", content=data, headers=tiff | {"Accept": "image/png"})
    assert response.headers["tessera-scale"] == "um_per_px=0.5; source=file; model_um_per_px=1.0; factor=0.5"
    assert scaled.post("/classify", content=data, headers=tiff).json()["scale"]["source"] == "file"


def test_what_would_be_too_large_for_the_model_is_a_problem(scaled):
    response = scaled.post("/segment?mpp=8", content=encoded(noise(100, 40)), headers=PNG)
    assert (response.status_code, response.json()["type"]) == (413, "urn:problem-type:tessera:image-too-large")
    assert response.json()["detail"] == (
        "the image is 100x40 px at 8 um/px (mpp) and would be 800x320 px at the model's 1 um/px; each side may have at"
        " most 300 px: send at most 300 um a side"
    )


@pytest.mark.parametrize("query", ["mp=0.5", "view=mask"])
def test_classify_refuses_what_it_does_not_know(scaled, query):
    response = scaled.post(f"/classify?{query}", content=encoded(noise(8, 8)), headers=PNG)
    assert (response.status_code, response.json()["type"]) == (400, "urn:problem-type:tessera:invalid-request")
    assert response.json()["detail"] == "the query has a parameter that is not known; known here: mpp"


def test_spacings_are_rounded_alike_in_every_form():
    with serving(0.3000000000000001) as (client, _):
        image = encoded(quarters(120, 80))
        scale = client.post("/segment?mpp=0.1000000000000001", content=image, headers=PNG).json()["scale"]
        assert (scale["um_per_px"], scale["model_um_per_px"], scale["factor"]) == (0.1, 0.3, 0.333333)
        header = client.post("/segment?mpp=0.1000000000000001", content=image, headers=PNG | {"Accept": "image/png"})
        said = "um_per_px=0.1; source=request; model_um_per_px=0.3; factor=0.333333"
        assert header.headers["tessera-scale"] == said


def test_an_image_that_would_keep_its_size_says_that_nothing_was_done(scaled):
    scale = scaled.post("/segment?mpp=1.04", content=encoded(noise(10, 8)), headers=PNG).json()["scale"]
    assert (scale["factor"], scale["unchanged"]) == (1.0, "within_tolerance")


def test_so_few_pixels_that_the_model_sees_next_to_nothing_are_warned_about(scaled):
    image = encoded(noise(60, 40))
    (warning,) = scaled.post("/segment?mpp=0.05", content=image, headers=PNG).json()["warnings"]
    assert warning["code"] == "too_small"
    assert "saw only 3x2 px" in warning["message"]
    as_sent = scaled.post("/segment", content=image, headers=PNG).json()["warnings"]
    assert "too_small" not in [each["code"] for each in as_sent]
