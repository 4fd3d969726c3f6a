"""Another bundle without a pause, and leaving politely."""

import concurrent.futures
import json
import shutil
import signal
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.pathology.manifest import MANIFEST_FILE, MODEL_FILE
from benchmarks.serving.free_network import write_free_bundle
from tests.conftest import RunningService
from tests.pictures import encoded, quarters

PNG = {"Content-Type": "image/png"}
LAYOUTS = {
    "own": ("--fronts", "2", "--engine", "own", "--cores", "2"),
    "shared": ("--fronts", "2", "--engine", "shared", "--cores", "2"),
    "alone": ("--fronts", "1", "--engine", "own", "--cores", "1"),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    write_free_bundle(folder)
    return folder


@pytest.fixture
def service(layout, bundle):
    running = RunningService("--device", "cpu", "--bundle", str(bundle), *LAYOUTS[layout])
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


def rename(bundle: Path, version: str) -> None:
    path = bundle / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))


def version_of(service: RunningService) -> str:
    return httpx.get(f"{service.url}/model").json()["version"]


def total(service: RunningService, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics", timeout=20).text
    assert not text.startswith("{"), text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def reload(service: RunningService, times: int, line: str = '"reloaded"') -> None:
    service.process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while sum(line in logged for logged in service.log) < times:
        assert time.monotonic() < deadline, "".join(service.log)
        time.sleep(0.02)


def test_a_new_bundle_is_served_without_a_failed_request_and_nothing_counted_is_lost(service, bundle):
    data = encoded(quarters(64, 64))
    stop = threading.Event()

    def ask() -> list[tuple[int, str]]:
        answers = []
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                answer = client.post(f"{service.url}/segment", content=data, headers=PNG)
                answers.append((answer.status_code, answer.json()["model"]["version"]))
        return answers

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(ask) for _ in range(3)]
        try:
            for number in (2, 3):
                rename(bundle, str(number))
                before = total(service, "tessera_images_total")
                reload(service, number - 1)
                assert total(service, "tessera_images_total") >= before
                assert httpx.get(f"{service.url}/health/ready").status_code == 200
        finally:
            stop.set()
    answers = [answer for one in asking for answer in one.result()]
    assert {status for status, _ in answers} == {200}
    assert {"1", "3"} <= {version for _, version in answers}
    assert version_of(service) == "3"
    assert total(service, "tessera_images_total") == len(answers)
    assert total(service, "tessera_images_in_flight") == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / MODEL_FILE).write_bytes(b"no model"), "its SHA-256 is"),
        (lambda folder: (folder / MANIFEST_FILE).write_text("{}"), "not a manifest"),
        (shutil.rmtree, "cannot be read"),
    ],
)
@pytest.mark.parametrize("layout", ["own", "shared"], indirect=True)
def test_a_bundle_that_cannot_be_served_leaves_the_old_one_serving(service, bundle, damage, reason):
    damage(bundle)
    reload(service, 1, "not reloaded: ")
    assert any(reason in line and "what was served before still is" in line for line in service.log)
    assert version_of(service) == "1"
    assert httpx.post(f"{service.url}/segment", content=encoded(quarters(64, 64)), headers=PNG).status_code == 200
    assert total(service, "tessera_ready") == 1


def test_on_sigterm_it_says_so_first_then_takes_nobody_then_ends(bundle):
    service = RunningService("--device", "cpu", "--bundle", str(bundle), env={"TESSERA_SHUTDOWN_GRACE": "3"})
    data = encoded(quarters(64, 64))
    with httpx.Client() as client:
        assert client.post(f"{service.url}/segment", content=data, headers=PNG).headers.get("connection") != "close"
        service.process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        while httpx.get(f"{service.url}/health/ready").status_code == 200:
            assert time.monotonic() - sent < 2
        answer = client.post(f"{service.url}/segment", content=data, headers=PNG)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert httpx.get(f"{service.url}/health/live").status_code == 200
    assert service.process.wait(30) == 0
    assert time.monotonic() - sent > 2.5
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url)
    service._reader.join()
    service.process.stderr.close()


def test_a_second_sigterm_does_not_wait_for_the_grace(bundle):
    service = RunningService("--device", "cpu", "--bundle", str(bundle), env={"TESSERA_SHUTDOWN_GRACE": "60"})
    service.process.send_signal(signal.SIGTERM)
    while httpx.get(f"{service.url}/health/ready").status_code == 200:
        time.sleep(0.02)
    assert service.stop() == 0
