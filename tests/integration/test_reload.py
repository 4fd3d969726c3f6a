"""Another bundle without a pause, and leaving politely."""

import concurrent.futures
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.access.callers import Caller, Scope
from app.access.keys import new_key
from app.pathology.manifest import MANIFEST_FILE, MODEL_FILE
from benchmarks.serving.free_network import write_free_bundle
from tests.conftest import RunningService
from tests.fuzz.service import processes_of
from tests.keys_file import write_keys
from tests.pictures import encoded, quarters
from tests.waiting import until

ADMIN = new_key()
KEY = {"Authorization": f"Bearer {ADMIN}"}
PNG = {"Content-Type": "image/png", **KEY}
LAYOUTS = {
    "own": ("--fronts", "2", "--cores", "2"),
    "shared": ("--fronts", "2", "--engine", "shared", "--cores", "2"),
    "alone": ("--fronts", "1", "--cores", "1"),
}
PROCESSES = {"own": 3, "shared": 4, "alone": 2}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp(layout) / "bundle"
    write_free_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def service(layout, bundle):
    running = started(layout, bundle)
    yield running
    if running.process.poll() is None:
        assert running.stop(signal.SIGINT) == 0


def started(layout: str, bundle: Path) -> RunningService:
    keys = write_keys(bundle.parent / "keys", {ADMIN: Caller("admin", frozenset(Scope))})
    flags = ("--device", "cpu", "--bundle", str(bundle), "--keys-file", str(keys), *LAYOUTS[layout])
    return RunningService(*flags, env={"TESSERA_SHUTDOWN_GRACE": "60"})


def rename(bundle: Path, version: str) -> None:
    path = bundle / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": version}))


def version_of(service: RunningService) -> str:
    return httpx.get(f"{service.url}/model", headers=KEY).json()["version"]


def status_of(service: RunningService, path: str = "/health/ready") -> int:
    return httpx.get(f"{service.url}{path}", headers=KEY, timeout=20).status_code


def total(service: RunningService, name: str) -> float:
    text = httpx.get(f"{service.url}/metrics", headers=KEY, timeout=20).text
    assert not text.startswith("{"), text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def to_all(service: RunningService, number: int) -> None:
    """Send a signal to each process, as systemd and killall do: the supervisor's word alone counts."""
    supervisor = service.process.pid
    for pid in processes_of(supervisor):
        with nullcontext() if pid == supervisor else suppress(ProcessLookupError):  # who was to leave may just have
            os.kill(pid, number)


def reload(service: RunningService, line: str = '"reloaded"') -> None:
    before = sum(line in logged for logged in service.log)
    to_all(service, signal.SIGHUP)
    until(lambda: sum(line in logged for logged in service.log) > before, tell=service.said)


def test_a_new_bundle_is_served_without_a_failed_request_and_nothing_counted_is_lost(service, bundle, layout):
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
            for version in ("2", "3"):
                rename(bundle, version)
                before = total(service, "tessera_images_total")
                reload(service)
                assert total(service, "tessera_images_total") >= before
                assert total(service, "tessera_ready") == 1
                assert status_of(service) == 200
        finally:
            stop.set()
    answers = [answer for one in asking for answer in one.result()]
    assert {status for status, _ in answers} == {200}
    assert {"1", "3"} <= {version for _, version in answers}
    assert version_of(service) == "3"
    assert total(service, "tessera_images_total") == len(answers)
    assert total(service, "tessera_images_in_flight") == 0
    until(
        lambda: len(processes_of(service.process.pid)) == PROCESSES[layout], tell=service.said
    )  # the others have left


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        (MODEL_FILE, lambda path: path.write_bytes(b"no model"), "its SHA-256 is"),
        (MANIFEST_FILE, lambda path: path.write_text("{}"), "not a manifest"),
        (MANIFEST_FILE, Path.unlink, "cannot be read"),
    ],
)
def test_a_bundle_that_cannot_be_served_leaves_the_old_one_serving(service, bundle, file, damage, reason):
    whole = (bundle / file).read_bytes()
    served = version_of(service)
    rename(bundle, "damaged")
    damage(bundle / file)
    try:
        answer = httpx.post(f"{service.url}/admin/reload", headers=KEY, timeout=30)
    finally:
        (bundle / file).write_bytes(whole)
        rename(bundle, served)
    assert answer.status_code == 409
    assert reason in answer.json()["detail"]
    assert "what was served before still is" in answer.json()["detail"]
    assert version_of(service) == served
    assert httpx.post(f"{service.url}/segment", content=encoded(quarters(64, 64)), headers=PNG).status_code == 200
    assert total(service, "tessera_ready") == 1


def test_who_asks_for_a_reload_is_told_what_is_served_then(service, bundle):
    rename(bundle, "asked-for")
    answer = httpx.post(f"{service.url}/admin/reload", headers=KEY, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == "asked-for"
    assert version_of(service) == "asked-for"


@contextmanager
def loading_for_ever(
    service: RunningService, bundle: Path, layout: str
) -> Iterator[tuple[int, concurrent.futures.Future]]:
    """Ask for a reload of a model that never ends to load; yield the process that tries to, and the answer to come."""
    until(
        lambda: len(processes_of(service.process.pid)) == PROCESSES[layout], tell=service.said
    )  # those of before are gone
    model = bundle / MODEL_FILE
    whole = model.read_bytes()
    serving = set(processes_of(service.process.pid))
    model.unlink()
    os.mkfifo(model)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            asking = thread.submit(httpx.post, f"{service.url}/admin/reload", headers=KEY, timeout=60)
            until(lambda: set(processes_of(service.process.pid)) > serving, tell=service.said)
            [loading] = set(processes_of(service.process.pid)) - serving
            yield loading, asking
    finally:
        model.unlink()
        model.write_bytes(whole)


def test_a_model_that_takes_the_process_that_loads_it_with_it_leaves_the_old_one_serving(service, bundle, layout):
    served = version_of(service)
    with loading_for_ever(service, bundle, layout) as (loading, asking):
        assert status_of(service) == 200
        assert total(service, "tessera_ready") == 1  # the supervisor is not held up
        os.kill(loading, signal.SIGSEGV)  # as a runtime does that meets with a graph it has a fault for
    assert asking.result().status_code == 409
    assert "ended by itself (signal SIGSEGV); what was served before still is" in asking.result().json()["detail"]
    assert version_of(service) == served
    assert httpx.post(f"{service.url}/segment", content=encoded(quarters(64, 64)), headers=PNG).status_code == 200
    reload(service)


@pytest.mark.parametrize("layout", ["own"], indirect=True, scope="module")  # elsewhere it is one process that loads
def test_a_model_that_changes_after_it_was_tried_is_not_loaded_untried(service, bundle, layout):
    served = version_of(service)
    whole = (bundle / MODEL_FILE).read_bytes()
    with loading_for_ever(service, bundle, layout) as (_, asking):
        with (bundle / MODEL_FILE).open("wb") as trial:  # which has read the manifest by now, and waits for the graph
            rename(bundle, "untried")
            trial.write(whole)
        answer = asking.result()
    rename(bundle, served)
    assert answer.status_code == 409
    assert "was changed while it was tried" in answer.json()["detail"]
    assert version_of(service) == served
    reload(service)


def test_reloads_one_after_the_other_all_come_about(service, bundle):
    before = len(service.log)
    for number in range(4):  # more than there may be generations at a time
        rename(bundle, f"number-{number}")
        reload(service)
    assert version_of(service) == "number-3"
    assert sum('"reloaded"' in line for line in service.log[before:]) == 4
    assert not any("not reloaded" in line for line in service.log[before:])


@pytest.mark.parametrize("layout", ["own"], indirect=True, scope="module")
def test_a_system_without_room_for_more_goes_on_with_what_is_served(layout, bundle):
    with RunningService("--device", "cpu", "--bundle", str(bundle), *LAYOUTS[layout]) as service:
        served = version_of(service)
        limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        in_use = {int(entry.name) for entry in Path(f"/proc/{service.process.pid}/fd").iterdir()}
        spare = min(set(range(len(in_use) + 1)) - in_use)  # for the manifest alone, which is read and closed
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (spare + 1, limits[1]))
        try:
            reload(service, "not reloaded: the system has no room for another process")
        finally:
            resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        assert version_of(service) == served
        reload(service)
        assert service.stop(signal.SIGINT) == 0


def test_a_reload_under_way_does_not_hold_up_the_end(layout, bundle):
    with started(layout, bundle) as service, loading_for_ever(service, bundle, layout) as (_, asking):
        stopped = time.monotonic()
        assert service.stop(signal.SIGINT) == 0
        assert time.monotonic() - stopped < 20  # and not what requests may take
        assert asking.result().status_code == 409
        assert "the service is stopping" in asking.result().json()["detail"]
    assert not any("did not end well" in line for line in service.log)


@pytest.mark.parametrize("layout", ["own", "alone"], indirect=True, scope="module")
def test_on_sigterm_it_says_so_first_takes_requests_and_a_second_one_ends_the_grace(service):
    data = encoded(quarters(64, 64))
    with httpx.Client() as client:
        assert client.post(f"{service.url}/segment", content=data, headers=PNG).headers.get("connection") != "close"
        to_all(service, signal.SIGTERM)
        until(lambda: status_of(service) == 503, tell=service.said)

        def said_goodbye() -> bool:  # the front of this connection may be told a moment later than another
            answer = client.post(f"{service.url}/segment", content=data, headers=PNG)
            assert answer.status_code == 200
            return answer.headers.get("connection") == "close"

        until(said_goodbye, tell=service.said)
        assert status_of(service, "/health/live") == 200
    assert service.stop(signal.SIGTERM) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url)


def test_after_the_grace_it_ends():
    service = RunningService("--device", "cpu", "--fronts", "1", env={"TESSERA_SHUTDOWN_GRACE": "1.5"})
    sent = time.monotonic()
    assert service.stop(signal.SIGTERM) == 0
    assert time.monotonic() - sent > 1.5
