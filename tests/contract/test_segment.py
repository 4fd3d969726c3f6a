"""What `/segment` and `/classify` promise, with a model whose every pixel is known."""

import base64
import hashlib
import re
import tempfile
import threading
from types import SimpleNamespace

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.api import schemas
from app.main import create_app
from app.pathology.classes import WSSS4LUAD
from app.segmentation.patch import SegmentedPatch
from app.settings import Settings
from tests.fakes import POISON, ColourSegmenter, classes_of, manifest
from tests.pictures import BLUE, GREEN, WHITE, encoded, from_base64, noise, opened, plain, quarters

PNG = {"Content-Type": "image/png"}


def test_a_raw_image_comes_back_as_labels_fractions_and_mask(client):
    image = quarters(120, 80)
    data = encoded(image)
    response = client.post("/segment", content=data, headers=PNG)
    assert response.status_code == 200
    answer = response.json()
    assert answer["labels"] == ["tumor", "stroma", "normal"]
    assert answer["code"] == "T+S+N"
    assert [result["fraction"] for result in answer["classes"]] == [0.25] * 4
    assert [result["tissue_fraction"] for result in answer["classes"]] == [0.333333] * 3 + [None]
    assert [result["probability"] for result in answer["classes"]] == [1.0, 1.0, 1.0, None]
    assert [(c["name"], c["letter"], tuple(c["color"])) for c in answer["classes"]] == [
        (tissue.name, tissue.letter, tissue.color) for tissue in WSSS4LUAD
    ]
    assert answer["image"] == {"width": 120, "height": 80, "sha256": hashlib.sha256(data).hexdigest()}
    assert answer["model"] == {"name": "colours", "version": "1.0", "sha256": "0" * 64}
    assert answer["request_id"] == response.headers["x-request-id"]
    assert answer["overlay"] is None
    assert (answer["mask"]["media_type"], answer["mask"]["width"], answer["mask"]["height"]) == ("image/png", 120, 80)
    assert np.array_equal(np.asarray(from_base64(answer["mask"])), classes_of(image))


def test_accepting_png_gives_the_mask_itself(client):
    image = quarters(90, 70)
    response = client.post("/segment", content=encoded(image), headers=PNG | {"Accept": "image/png"})
    assert client.post("/segment", content=encoded(image), headers=PNG).headers["vary"] == "Accept"
    assert response.headers["content-type"] == "image/png"
    assert response.headers["tessera-labels"] == "tumor, stroma, normal"
    assert response.headers["tessera-code"] == "T+S+N"
    assert response.headers["tessera-model"] == "colours"
    assert response.headers["tessera-model-version"] == "1.0"
    assert response.headers["vary"] == "Accept"
    mask = opened(response.content)
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), classes_of(image))


def test_the_overlay_is_the_patch_with_colours_over_tissue(client):
    image = quarters(40, 40)
    response = client.post(
        "/segment",
        params={"view": "overlay", "opacity": 1},
        content=encoded(image),
        headers=PNG | {"Accept": "image/png"},
    )
    overlay = np.asarray(opened(response.content))
    assert overlay[0, 0].tolist() == [0, 64, 128]
    assert overlay[0, -1].tolist() == [64, 128, 0]
    assert overlay[-1, -1].tolist() == list(WHITE)


def test_the_confidence_is_a_grey_picture(client):
    asked = {"params": {"view": "confidence"}, "content": encoded(quarters(90, 70))}
    picture = opened(client.post("/segment", headers=PNG | {"Accept": "image/png"}, **asked).content)
    assert (picture.mode, picture.size) == ("L", (90, 70))
    assert np.unique(picture).tolist() == [200]
    answer = client.post("/segment", headers=PNG, **asked).json()
    assert np.array_equal(from_base64(answer["confidence"]), picture)
    assert answer["overlay"] is None
    assert from_base64(answer["mask"]).mode == "P"


def test_json_holds_the_overlay_when_asked(client):
    answer = client.post("/segment?view=overlay", content=encoded(quarters(40, 40)), headers=PNG).json()
    assert from_base64(answer["overlay"]).mode == "RGB"
    assert from_base64(answer["mask"]).mode == "P"


@pytest.mark.parametrize(
    ("media_type", "file_format"),
    [
        ("image/png", "PNG"),
        ("image/tiff", "TIFF"),
        ("image/bmp", "BMP"),
        ("image/jpeg", "JPEG"),
        ("image/jpg", "JPEG"),
        ("image/webp", "WEBP"),
    ],
)
def test_each_media_type_is_taken_raw(client, media_type, file_format):
    data = encoded(plain(BLUE, 50, 40), file_format)
    answer = client.post("/segment", content=data, headers={"Content-Type": media_type}).json()
    assert answer["code"] == "T"
    assert answer["image"]["width"] == 50


def test_one_file_part_is_answered_like_a_raw_body(client):
    answer = client.post("/segment", files={"file": ("secret.png", encoded(plain(GREEN, 20, 20)))}).json()
    assert answer["code"] == "S"


def test_several_files_are_answered_in_order_and_a_bad_one_spares_the_others(client):
    parts = [encoded(plain(BLUE, 33, 20)), b"not an image", encoded(plain(GREEN, 35, 20)), encoded(noise(301, 1))]
    response = client.post("/segment", files=[("file", (f"{n}.png", part)) for n, part in enumerate(parts)])
    assert response.status_code == 200
    first, second, third, fourth = response.json()["results"]
    assert (first["code"], first["image"]["width"]) == ("T", 33)
    assert (second["status"], second["type"]) == (415, "urn:problem-type:tessera:unsupported-image")
    assert (third["code"], third["image"]["width"]) == ("S", 35)
    assert (fourth["status"], fourth["type"]) == (413, "urn:problem-type:tessera:image-too-large")
    assert {first["request_id"], second["request_id"]} == {response.headers["x-request-id"]}


def test_pictures_beyond_what_one_answer_holds_are_refused_together(client, monkeypatch):
    data = encoded(noise(40, 40))
    answer = client.post("/segment?view=overlay", content=data, headers=PNG).json()
    size = sum(len(base64.b64decode(answer[view]["base64"])) for view in ("mask", "overlay"))
    monkeypatch.setattr("app.api.segment._MOST_PICTURE_BYTES", 2 * size)
    parts = [("file", data)]
    two = client.post("/segment?view=overlay", files=parts * 2).json()["results"]
    assert [result["overlay"] for result in two] == [answer["overlay"]] * 2
    refused = client.post("/segment?view=overlay", files=parts * 3)
    assert (refused.status_code, refused.json()["type"]) == (413, "urn:problem-type:tessera:answer-too-large")
    assert len(client.post("/segment", files=parts * 3).json()["results"]) == 3
    assert client.app.state.running.metrics.registry.get_sample_value("tessera_images_in_flight") == 0


def test_a_large_answer_is_put_together_in_a_thread_and_a_small_one_where_it_is_asked_for(client, monkeypatch):
    threads = []
    picture = schemas._picture

    def note(patch: SegmentedPatch, png: bytes) -> schemas.Picture:
        threads.append(threading.current_thread().name)
        return picture(patch, png)

    monkeypatch.setattr(schemas, "_picture", note)
    data = encoded(noise(40, 40))
    small = client.post("/segment", content=data, headers=PNG).json()
    monkeypatch.setattr("app.api.segment._SMALL_ANSWER_BYTES", 0)
    large = client.post("/segment", content=data, headers=PNG).json()
    assert large["mask"] == small["mask"]
    assert [name.startswith("worker") for name in threads] == [False, True]


@pytest.mark.parametrize(
    ("step", "accept"),
    [
        ("app.segmentation.windows.Stitcher", "application/json"),
        ("app.segmentation.windows.pad_to_stride", "application/json"),
        ("app.segmentation.windows.pixel_counts", "application/json"),
        ("app.segmentation.reading.appearance", "application/json"),
        ("app.segmentation.patch.paint_mask", "application/json"),
        ("app.api.schemas._picture", "application/json"),
        ("app.api.renderings.polygonise", "application/geo+json"),
    ],
)
def test_where_memory_does_not_suffice_the_image_may_be_sent_again(client, monkeypatch, step, accept):
    def full(*_: object) -> None:
        raise MemoryError

    data = encoded(noise(90, 70))
    monkeypatch.setattr(step, full)
    refused = client.post("/segment", content=data, headers=PNG | {"Accept": accept})
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:problem-type:tessera:out-of-memory")
    assert refused.json()["detail"] == "there is no memory to segment this image now; try again later"
    monkeypatch.undo()
    assert client.post("/segment", content=data, headers=PNG | {"Accept": accept}).status_code == 200


@pytest.mark.parametrize("in_a_thread", [False, True])
def test_where_memory_does_not_suffice_for_the_whole_answer_it_may_be_asked_for_again(
    client, monkeypatch, caplog, in_a_thread
):
    def full(*_: object) -> bytes:
        raise MemoryError

    serializer = SimpleNamespace(to_json=full)
    monkeypatch.setattr(schemas.Segmentation, "__pydantic_serializer__", serializer)
    if in_a_thread:
        monkeypatch.setattr("app.api.segment._SMALL_ANSWER_BYTES", 0)
    refused = client.post("/segment", content=encoded(noise(40, 40)), headers=PNG)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:problem-type:tessera:out-of-memory")
    assert refused.json()["detail"] == "there is no memory to answer this request now; try again later"
    [record] = [record for record in caplog.records if record.name == "app.api.problems"]
    assert (record.levelname, record.getMessage(), record.exc_info[0]) == ("WARNING", "no memory", MemoryError)


def test_classify_gives_labels_without_masks(client):
    answer = client.post("/classify", content=encoded(quarters(50, 50)), headers=PNG).json()
    assert answer["code"] == "T+S+N"
    assert "mask" not in answer
    assert "fraction" not in answer["classes"][0]
    several = client.post("/classify", files=[("file", encoded(plain(BLUE, 9, 9)))] * 2).json()
    assert [result["code"] for result in several["results"]] == ["T", "T"]


def test_a_failing_image_fails_alone(client):
    bad = plain(WHITE, 40, 40)
    bad[0, 0] = POISON
    parts = [("file", encoded(plain(BLUE, 40, 40))), ("file", encoded(bad))]
    good, failed = client.post("/segment", files=parts).json()["results"]
    assert good["code"] == "T"
    assert failed["status"] == 500
    assert failed["type"] == "urn:problem-type:tessera:inference-failed"


def test_the_same_upload_gives_the_same_bytes(client):
    data = encoded(noise(200, 130))
    headers = PNG | {"Accept": "image/png"}
    assert len({client.post("/segment", content=data, headers=headers).content for _ in range(3)}) == 1


def test_model_describes_what_is_served(client):
    card = client.get("/model").json()
    assert card["name"] == "colours"
    assert card["device"] == "cpu"
    assert card["provider"] == "ColourProvider"
    assert [tissue["color"] for tissue in card["classes"]] == [list(tissue.color) for tissue in WSSS4LUAD]
    assert card["temperature"] == 1


def test_model_tells_the_temperature_of_its_probabilities():
    segmenter = ColourSegmenter(manifest().model_copy(update={"temperature": 1.7}))
    with TestClient(create_app(Settings(cores=1), segmenter)) as client:
        assert client.get("/model").json()["temperature"] == 1.7


@pytest.mark.parametrize("stain", ["H&E", "PD-L1 IHC"])
def test_model_tells_the_stain_that_it_is_for(stain):
    with TestClient(
        create_app(Settings(cores=1), ColourSegmenter(manifest().model_copy(update={"stain": stain})))
    ) as client:
        assert client.get("/model").json()["stain"] == stain


def test_accept_may_come_in_several_lines(client):
    headers = [("Content-Type", "image/png"), ("Accept", "text/html"), ("Accept", "image/png")]
    response = client.post("/segment", content=encoded(noise(8, 8)), headers=headers)
    assert response.headers["content-type"] == "image/png"


def test_uploads_never_touch_the_disk(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("an upload was about to be written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    settings = Settings(max_upload_bytes=10_000_000, cores=1)
    large = encoded(noise(1000, 1000), "BMP")
    assert len(large) > 2_000_000  # twice what Starlette keeps in memory by itself
    with TestClient(create_app(settings, ColourSegmenter())) as client:
        assert client.post("/segment", files=[("file", large)]).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/model", "/docs", "/viewer", "/openapi.json", "/nothing"]
)
def test_head_says_what_get_would_without_the_content(service, path):
    answers = [httpx.request(method, service.url + path) for method in ("GET", "HEAD")]

    assert {answer.status_code for answer in answers} == {404 if path == "/nothing" else 200}
    assert len({answer.headers["content-length"] for answer in answers}) == 1
    assert answers[1].content == b""


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("HEAD", "/segment", "POST"), ("POST", "/model", "GET, HEAD"), ("DELETE", "/health/live", "GET, HEAD")],
)
def test_a_method_that_is_not_taken_is_refused_with_those_that_are(client, method, path, allowed):
    answer = client.request(method, path)

    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_a_refused_type_of_answer_says_what_the_choice_went_by(client):
    answer = client.post("/segment", content=encoded(noise(4, 4)), headers={**PNG, "Accept": "text/html"})

    assert (answer.status_code, answer.headers["vary"]) == (406, "Accept")


def test_health_and_documentation_answer_without_reaching_outside(client):
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
    for path in ("/docs", "/redoc"):
        page = client.get(path).text
        assert "https://" not in page
        addresses = re.findall(r'(?:src|href|spec-url)="([^"]+)"', page)
        assert len(addresses) == 3
        for address in addresses:
            assert not address.startswith("/"), "a proxy may add a prefix"
            loaded = client.get(address)
            assert loaded.status_code == 200
            assert b"https://cdn." not in loaded.content


def test_a_service_whose_model_is_late_is_not_ready_and_takes_what_comes_all_the_same(client):
    client.app.state.running.service.segmenter.late = True
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503
    assert client.post("/segment", content=encoded(noise(8, 8)), headers=PNG).status_code == 200
    client.app.state.running.service.segmenter.late = False
    assert client.get("/health/ready").status_code == 200


def test_a_service_that_has_stopped_is_not_ready(client):
    client.portal.call(client.app.state.running.service.segmenter.close)
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 503
    refused = client.post("/segment", content=encoded(noise(8, 8)), headers=PNG)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:problem-type:tessera:model-not-ready")
