"""The service as a user runs it: its own process, HTTP over loopback, the shipped bundle."""

import concurrent.futures
import hashlib
import itertools
import json
import random
import signal
import subprocess
import sys
import uuid

import httpx2 as httpx
import numpy as np
import pytest

from app.inference.bundle import find_precision, load_bundle
from app.inference.session import open_session
from app.pathology.geometry import Size
from app.pathology.manifest import MODEL_FILE
from app.pathology.tiling import pad_to_stride, plan_windows
from app.settings import DEFAULT_BUNDLE
from model_export.synthetic import draw_patch
from tests.conftest import ROOT, SERVED_BUNDLE, RunningService
from tests.pictures import encoded, from_base64, noise, opened
from tests.waiting import until

PATCHES = sorted((ROOT / "examples" / "patches").glob("*.png"))


def test_the_example_patches_come_back_as_labels_and_masks(service):
    for path in PATCHES:
        data = path.read_bytes()
        with path.open("rb") as file:
            answer = httpx.post(f"{service.url}/segment", files={"file": file}).json()
        size = opened(data).size
        assert from_base64(answer["mask"]).size == size
        assert abs(sum(result["fraction"] for result in answer["classes"]) - 1) < 1e-5
        assert set(answer["labels"]) <= {"tumor", "stroma", "normal"}


def test_drawn_tissue_is_told_apart(service):
    codes = {}
    for path in PATCHES:
        response = httpx.post(
            f"{service.url}/classify", content=path.read_bytes(), headers={"Content-Type": "image/png"}
        )
        codes[path.stem] = response.json()["code"]
    assert codes["drawn-stroma"] == "S"
    assert codes["drawn-normal"] == "N"
    assert codes["drawn-tumor-stroma"] == "T+S"
    assert codes["cmu1-skin-2"] == "T+S"


@pytest.mark.parametrize("side", [1, 64, 256, 1024, 1500])
@pytest.mark.parametrize("grey", [255, 243])
def test_glass_has_no_label(service, side, grey):
    data = encoded(np.full((side, side, 3), grey, np.uint8))
    headers = {"Content-Type": "image/png"}
    answer = httpx.post(f"{service.url}/segment", content=data, headers=headers, timeout=60).json()
    assert answer["code"] == ""
    assert answer["classes"][3]["fraction"] > 0.99


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_the_glass_around_tissue_does_not_change_its_labels(service, side):
    patch = np.asarray(opened((ROOT / "examples" / "patches" / "cmu1-skin-2.png").read_bytes()))
    slide = np.full((side, side, 3), 243, np.uint8)
    slide[:256, :256] = patch
    answer = httpx.post(
        f"{service.url}/classify", content=encoded(slide), headers={"Content-Type": "image/png"}, timeout=60
    ).json()
    assert answer["code"] == "T+S"


def test_the_answer_is_the_models_own(service):
    """HTTP, decoding, padding, batching, stitching and painting change nothing of what the graph says."""
    session = open_session(load_bundle(SERVED_BUNDLE).model, "cpu")
    image, _ = draw_patch(5, Size(250, 190))
    padded = np.pad(image, ((0, 2), (0, 6), (0, 0)), mode="reflect")
    expected = session.run(padded[None])
    answer = httpx.post(f"{service.url}/segment", content=encoded(image), headers={"Content-Type": "image/png"}).json()
    assert np.array_equal(np.asarray(from_base64(answer["mask"])), expected.class_maps[0, :190, :250])
    probabilities = [result["probability"] for result in answer["classes"][:3]]
    assert np.allclose(probabilities, expected.label_probabilities[0], atol=1e-6)


@pytest.mark.parametrize("accept", ["image/png", "application/geo+json"])
def test_an_answer_without_json_names_upload_and_model_in_its_headers(service, accept):
    data = PATCHES[0].read_bytes()
    headers = httpx.post(
        f"{service.url}/segment", content=data, headers={"Content-Type": "image/png", "Accept": accept}
    ).headers
    manifest = load_bundle(SERVED_BUNDLE).manifest
    assert headers["Tessera-Image-SHA256"] == hashlib.sha256(data).hexdigest()
    assert headers["Tessera-Model-SHA256"] == hashlib.sha256((SERVED_BUNDLE / MODEL_FILE).read_bytes()).hexdigest()
    assert (headers["Tessera-Model"], headers["Tessera-Model-Version"]) == (manifest.name, manifest.version)


def test_the_same_upload_gives_the_same_bytes_at_any_load(service):
    """Masks, polygons and JSON with its probabilities, under an id of the caller's own: the one thing that differs."""
    sizes = (Size(230, 220), Size(64, 64), Size(260, 96), Size(700, 300))
    patches = [encoded(draw_patch(seed, size)[0]) for seed, size in enumerate(sizes)]
    identity = str(uuid.uuid4())
    manifest = load_bundle(SERVED_BUNDLE).manifest

    def post(data: bytes, accept: str) -> bytes:
        headers = {"Content-Type": "image/png", "Accept": accept, "X-Request-ID": identity}
        response = httpx.post(f"{service.url}/segment?mpp=0.5", content=data, headers=headers, timeout=60)
        assert response.status_code == 200
        return response.content

    asked = list(itertools.product(patches, ("image/png", "application/json", "application/geo+json")))
    alone = [post(*one) for one in asked]
    for (data, accept), content in zip(asked, alone, strict=True):
        if accept == "application/json":
            answer = json.loads(content)
            assert answer["image"]["sha256"] == hashlib.sha256(data).hexdigest()
            assert answer["model"] == manifest.model_dump(include={"name", "version", "sha256"})
    order = random.Random(1).sample(range(len(asked)), len(asked)) * 4
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda index: post(*asked[index]), order))
    assert together == [alone[index] for index in order]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def precise_service(request):
    """A service, and the bundle that it runs."""
    running = RunningService("--device", "cpu", "--precision", request.param)
    yield running, find_precision(DEFAULT_BUNDLE, request.param)
    assert running.stop() == 0


def test_a_large_patch_is_stitched_without_seams(precise_service):
    """Windows have enough context: tiled and whole answers agree, also where windows meet."""
    service, bundle = precise_service
    size = Size(1530, 1111)  # no multiples of the stride
    image = draw_patch(11, size)[0]
    loaded = load_bundle(bundle)
    padded = pad_to_stride(image, loaded.manifest.stride)
    whole = open_session(loaded.model, "cpu").run(padded[None]).class_maps[0, : size.height_px, : size.width_px]
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    response = httpx.post(f"{service.url}/segment", content=encoded(image), headers=headers, timeout=60)
    wrong = np.asarray(opened(response.content)) != whole
    windows = plan_windows(size, loaded.manifest.window_px, loaded.manifest.margin_px, loaded.manifest.stride)
    assert len(windows) == 4
    near = np.zeros_like(wrong)
    for keep in (window.keep for window in windows):
        near[:, keep.x_px - 4 : keep.x_px + 4] |= keep.x_px > 0
        near[keep.y_px - 4 : keep.y_px + 4, :] |= keep.y_px > 0
    assert wrong.mean() < 0.001
    assert wrong[near].mean() < 0.01


def test_the_largest_patch_is_answered(service):
    image = np.tile(draw_patch(2, Size(512, 512))[0], (8, 8, 1))
    response = httpx.post(
        f"{service.url}/segment",
        content=encoded(image, "JPEG"),
        headers={"Content-Type": "image/jpeg", "Accept": "image/png"},
        timeout=120,
    )
    assert response.status_code == 200
    assert opened(response.content).size == (4096, 4096)
    refused = httpx.post(
        f"{service.url}/segment", content=encoded(noise(4097, 1)), headers={"Content-Type": "image/png"}
    )
    assert refused.status_code == 413


def test_the_smallest_patch_is_answered(service):
    answer = httpx.post(
        f"{service.url}/segment", content=encoded(noise(1, 1)), headers={"Content-Type": "image/png"}
    ).json()
    assert (answer["mask"]["width"], answer["mask"]["height"]) == (1, 1)


def test_device_and_model_are_told_alike_everywhere(service):
    card = httpx.get(f"{service.url}/model").json()
    manifest = load_bundle(SERVED_BUNDLE).manifest
    assert (card["device"], card["provider"]) == ("cpu", "CPUExecutionProvider")
    assert card["sha256"] == manifest.sha256
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'tessera_device_info{device="cpu",provider="CPUExecutionProvider"} 1.0' in metrics
    assert manifest.sha256 in metrics
    loaded = next(json.loads(line) for line in service.log if "model loaded" in line)
    assert (loaded["device"], loaded["sha256"]) == ("cpu", manifest.sha256)


def test_the_log_is_json_with_request_ids_and_without_probes(service):
    httpx.get(f"{service.url}/health/live")
    identity = httpx.get(f"{service.url}/model").headers["x-request-id"]
    until(lambda: identity in service.said(), 10, service.said)  # each of its processes writes when it comes to it
    lines = [json.loads(line) for line in service.log]
    [mine] = [line for line in lines if line.get("request_id") == identity]
    assert (mine["route"], mine["status"], mine["method"]) == ("/model", 200, "GET")
    assert "/health/live" not in {line.get("route") for line in lines}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_with_status_0_and_answers_what_it_accepted(number):
    running = RunningService("--device", "cpu", "--cores", "1")
    image = encoded(np.tile(draw_patch(2, Size(512, 512))[0], (3, 3, 1)), "JPEG")
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        pending = threads.submit(
            httpx.post, f"{running.url}/segment", content=image, headers={"Content-Type": "image/jpeg"}, timeout=60
        )
        while "tessera_images_in_flight 1.0" not in httpx.get(f"{running.url}/metrics").text:
            assert not pending.done()
        status = running.stop(number)
        assert pending.result().status_code == 200
    assert status == 0


def test_the_demo_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for path in PATCHES:
        assert path.stem in done.stdout
        for picture in ("mask", "overlay"):
            assert (
                opened((tmp_path / "demo-out" / f"{path.stem}_{picture}.png").read_bytes()).size
                == opened(path.read_bytes()).size
            )
