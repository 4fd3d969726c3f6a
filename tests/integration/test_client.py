"""The example client against the service as a user runs it."""

import asyncio
import concurrent.futures
import json
import socket
import uuid

import httpx2 as httpx
import numpy as np
import pytest

from app.settings import Settings
from examples.python.tessera_client import AsyncClient, Client, NoAnswer, Problem, Rejected
from tests.conftest import ROOT, RunningService
from tests.pictures import encoded, from_base64, noise, opened

PATCH = ROOT / "examples" / "patches" / "cmu1-skin-2.png"


@pytest.fixture
def client(service):
    with Client(service.url) as running:
        yield running


def test_a_path_bytes_and_an_array_of_one_patch_have_one_answer(service, client):
    said = httpx.post(f"{service.url}/segment?view=confidence", files={"file": PATCH.read_bytes()}).json()
    for image in (PATCH, PATCH.read_bytes(), np.asarray(opened(PATCH.read_bytes()))):
        result = client.segment(image, confidence=True)
        assert np.array_equal(result.class_map, np.asarray(from_base64(said["mask"])))
        assert np.array_equal(result.confidence, np.asarray(from_base64(said["confidence"])))
        assert (list(result.labels), result.code) == (said["labels"], said["code"])
        assert result.fractions == {each["name"]: each["fraction"] for each in said["classes"]}
        of_tissue = {each["name"]: each["tissue_fraction"] for each in said["classes"]}
        assert result.tissue_fractions == {name: share for name, share in of_tissue.items() if share is not None}
    assert client.segment(PATCH).image_sha256 == said["image"]["sha256"]


def test_fractions_are_the_class_maps_own(client):
    result = client.segment(PATCH)
    counted = np.bincount(result.class_map.ravel(), minlength=len(result.classes)) / result.class_map.size
    assert np.allclose(counted, [result.fractions[tissue.name] for tissue in result.classes], atol=1e-6)


def test_several_are_answered_in_order_and_a_bad_one_spares_the_others(client):
    images = [noise(40, 30), b"no image", PATCH, noise(20, 10)]
    first, bad, patch, last = client.segment_many(images)
    assert (first.class_map.shape, last.class_map.shape) == ((30, 40), (10, 20))
    assert np.array_equal(patch.class_map, client.segment(PATCH).class_map)
    assert (type(bad), bad.status, bad.title) == (Rejected, 415, "Unsupported image")


def test_more_than_a_request_may_hold_are_refused_with_what_to_do(client):
    most = Settings.model_fields["max_files"].default
    with pytest.raises(Rejected, match=f"more than {most} files; send them in several requests") as refused:
        client.segment_many([PATCH] * (most + 1))
    assert refused.value.status == 413


def test_labels_alone_are_those_of_the_segmentation(client):
    segmented, classified = client.segment(PATCH), client.classify(PATCH)
    assert classified.code == segmented.code == "T+S"
    assert classified.probabilities == segmented.probabilities
    assert classified.model == segmented.model


def test_outlines_lie_where_the_patch_lies(client):
    collection = client.geojson(PATCH, x=1000, y=2000, downsample=4, simplify=0, min_area=16)
    assert collection["features"]
    for feature in collection["features"]:
        points = np.array(feature["geometry"]["coordinates"][0])
        assert (points >= (1000, 2000)).all()
        assert (points <= (1000 + 4 * 256, 2000 + 4 * 256)).all()


def test_the_model_and_readiness_are_told(service, client):
    card = client.model()
    assert client.ready() is True
    assert [tissue.name for tissue in card.classes] == ["tumor", "stroma", "normal", "background"]
    assert card.sha256 == client.classify(PATCH).model.sha256
    assert (card.device, card.stain) == ("cpu", "H&E")


def test_a_problem_says_what_the_service_says(client):
    with pytest.raises(Problem) as raised:
        client.segment(noise(4097, 1))
    assert (raised.value.status, raised.value.title) == (413, "Image too large")
    assert "4096" in raised.value.detail
    assert raised.value.type == "urn:problem-type:tessera:image-too-large"
    assert str(uuid.UUID(raised.value.request_id)) == raised.value.request_id


def test_a_service_that_is_not_there_is_told_in_words():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=0) as client, pytest.raises(NoAnswer, match=str(port)):
        client.ready()


def test_many_at_once_have_the_answers_of_one_by_one(service, client):
    images = [noise(64 + seed, 48, seed) for seed in range(6)]

    async def together():
        async with AsyncClient(service.url) as running:
            return await asyncio.gather(*[running.segment(image) for image in images])

    for image, result in zip(images, asyncio.run(together()), strict=True):
        assert np.array_equal(result.class_map, client.segment(image).class_map)


def test_clients_of_a_full_service_come_back_until_each_has_its_answer():
    service = RunningService("--device", "cpu", "--queue-capacity", "1", "--max-files", "1")
    try:
        image = encoded(noise(1024, 1024))
        with Client(service.url, retries=100) as client, concurrent.futures.ThreadPoolExecutor(4) as threads:
            results = list(threads.map(client.segment, [image] * 4))
        assert {result.class_map.shape for result in results} == {(1024, 1024)}
    finally:
        service.stop()
    statuses = [json.loads(line).get("status") for line in service.log]
    assert statuses.count(200) == 4
    assert 429 in statuses
