"""What an answer says of an image that does not look like H&E tissue."""

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from app.imaging.plausibility import WARNING_CODES
from app.main import create_app
from app.settings import Settings
from tests.conftest import ROOT
from tests.dicom_sources import file_of, microscopic
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import WHITE, encoded, opened, plain
from tests.slides import brown

PNG = {"Content-Type": "image/png"}
BLANK = encoded(plain(WHITE, 64, 48))
TISSUE = (ROOT / "examples" / "patches" / "cmu1-skin-2.png").read_bytes()


def posted(client, path, data, **headers):
    response = client.post(path, content=data, headers=PNG | headers)
    assert response.status_code == 200
    return response


@pytest.mark.parametrize("path", ["/segment", "/classify"])
def test_tissue_has_no_warnings_and_a_blank_has_one_in_words(client, path):
    assert posted(client, path, TISSUE).json()["warnings"] == []
    (warning,) = posted(client, path, BLANK).json()["warnings"]
    assert warning["code"] == "low_tissue"
    assert "0.0% of the patch is stained" in warning["message"]


def test_a_warning_changes_nothing_else_of_the_answer(client):
    answer = posted(client, "/segment", BLANK).json()
    assert answer["labels"] == []
    assert [each["fraction"] for each in answer["classes"]] == [0, 0, 0, 1]
    assert [each["tissue_fraction"] for each in answer["classes"]] == [None] * 4


@pytest.mark.parametrize(("data", "codes"), [(TISSUE, ""), (BLANK, "low_tissue")], ids=["tissue", "blank"])
def test_other_forms_have_the_codes_in_a_header(client, data, codes):
    assert posted(client, "/segment", data, Accept="image/png").headers["tessera-warnings"] == codes


def pixels() -> np.ndarray:
    return np.array(opened(TISSUE).convert("RGB"))


def inked() -> np.ndarray:
    image = pixels()
    image[:, :12] = image[:, :12] * (np.array([20, 120, 70]) / 255)
    return image


def enlarged_from_64_px(image: np.ndarray) -> bytes:
    small = Image.fromarray(image).resize((64, 64))
    return encoded(np.array(small.resize((256, 256), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("path", ["/segment", "/classify"])
@pytest.mark.parametrize(
    ("data", "of_he", "of_ihc"),
    [
        (encoded(brown(pixels())), ["out_of_distribution"], []),
        (encoded(inked()), ["pen_marks"], []),
        (enlarged_from_64_px(inked()), ["pen_marks", "out_of_focus"], ["out_of_focus"]),
        (enlarged_from_64_px(brown(pixels())), ["out_of_distribution"], ["out_of_focus"]),
        (BLANK, ["low_tissue"], ["low_tissue"]),
        (encoded(plain(WHITE, 31, 48)), ["too_small"], ["too_small"]),
        (TISSUE, [], []),
    ],
    ids=["brown", "ink", "ink and blur", "brown and blur", "blank", "small", "tissue"],
)
def test_colours_are_judged_for_a_model_of_he_alone(client, path, data, of_he, of_ihc):
    def codes(service: TestClient) -> list[str]:
        return [warning["code"] for warning in posted(service, path, data).json()["warnings"]]

    assert codes(client) == of_he
    model = ColourSegmenter(manifest().model_copy(update={"stain": "PD-L1 IHC"}))
    with TestClient(create_app(Settings(cores=1), model)) as of_another_stain:
        assert codes(of_another_stain) == of_ihc


def test_several_warnings_are_all_told(client):
    enlarged = enlarged_from_64_px(inked())
    found = [warning["code"] for warning in posted(client, "/segment", enlarged).json()["warnings"]]
    assert found == ["pen_marks", "out_of_focus"]
    header = posted(client, "/segment", enlarged, Accept="image/png").headers["tessera-warnings"]
    assert header == "pen_marks, out_of_focus"


def test_each_file_of_a_request_has_its_own(client):
    files = [("file", ("a", TISSUE, "image/png")), ("file", ("b", BLANK, "image/png"))]
    results = client.post("/classify", files=files).json()["results"]
    assert [[warning["code"] for warning in result["warnings"]] for result in results] == [[], ["low_tissue"]]


def test_a_dicom_upload_is_judged_like_any_other(client):
    data = file_of(microscopic(plain(WHITE, 64, 48)))
    answer = client.post("/classify", content=data, headers={"Content-Type": "application/dicom"}).json()
    assert [warning["code"] for warning in answer["warnings"]] == ["low_tissue"]


def test_warnings_are_counted_by_code(client):
    posted(client, "/segment", TISSUE)
    posted(client, "/segment", BLANK)
    posted(client, "/classify", BLANK)
    lines = client.get("/metrics").text.splitlines()
    counted = {line for line in lines if line.startswith("tessera_warnings_total")}
    assert counted == {
        f'tessera_warnings_total{{code="{code}"}} {2.0 if code == "low_tissue" else 0.0}' for code in WARNING_CODES
    }
