"""A model that fails, runs out of memory or gets stuck, and what becomes of the images beside it."""

import concurrent.futures
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from tests.conftest import RunningService
from tests.faulty_bundle import FAILS, MUCH_MEMORY, NO_MEMORY, NO_MEMORY_FOR_TWO, STUCK, image_that, write_faulty_bundle
from tests.fuzz.service import own_bytes, processes_of
from tests.pictures import encoded
from tests.waiting import until

LAYOUTS = {
    "own": ("--fronts", "2", "--cores", "2"),
    "shared": ("--fronts", "2", "--engine", "shared", "--cores", "2"),
}

STALL_SECONDS = 8
"""Within which a busy machine reloads."""
REQUEST_SECONDS = 300
"""For longer than which no test waits for the end of a service."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    write_faulty_bundle(folder)
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def service(request, bundle):
    patience = ("--stall-timeout", str(STALL_SECONDS), "--request-timeout", str(REQUEST_SECONDS))
    running = RunningService("--device", "cpu", "--bundle", str(bundle), *patience, *LAYOUTS[request.param])
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


def post(service: RunningService, *faults: int) -> httpx.Response:
    files = [("file", ("patch.png", encoded(image_that(fault)), "image/png")) for fault in faults]
    return httpx.post(f"{service.url}/segment", files=files, timeout=60)


@pytest.mark.parametrize(
    ("fault", "status", "kind"), [(FAILS, 500, "inference-failed"), (NO_MEMORY, 503, "out-of-memory")]
)
def test_an_image_that_the_model_fails_on_fails_alone(service, fault, status, kind):
    answer = post(service, fault)
    assert answer.status_code == status
    assert answer.json()["type"].endswith(kind)
    results = post(service, 0, fault, 0, 0).json()["results"]
    assert [result.get("status", 200) for result in results] == [200, status, 200, 200]
    assert post(service, 0).status_code == 200
    assert httpx.get(f"{service.url}/health/ready").status_code == 200


def test_at_rest_the_process_of_the_model_gives_back_what_the_model_took(service):
    """A small image, after which nothing is given back before: a large one would show by its size what it took."""

    def held_mib() -> float:
        return own_bytes(processes_of(service.process.pid)) / 2**20

    def most_mib() -> list[float]:
        """Return the most that each process ever held, by proc(5)."""
        files = [Path(f"/proc/{pid}/status").read_text() for pid in processes_of(service.process.pid)]
        return [int(text.split("VmHWM:")[1].split()[0]) / 2**10 for text in files]

    assert post(service, 0).status_code == 200
    before, most = held_mib(), most_mib()
    assert post(service, MUCH_MEMORY).status_code == 200
    assert max(now - then for now, then in zip(most_mib(), most, strict=True)) > 96
    until(lambda: held_mib() <= before + 32, tell=lambda: f"it had {before:.0f} MiB, and keeps {held_mib():.0f}")
    assert post(service, 0).status_code == 200


def test_what_has_memory_for_one_at_a_time_is_run_one_at_a_time(service):
    strip = np.full((64, 4096, 3), 120, np.uint8)  # several windows, which come at once
    strip[..., 0] = NO_MEMORY_FOR_TWO
    headers = {"Content-Type": "image/png"}

    def two_of_them_ran_at_once() -> bool:
        answer = httpx.post(f"{service.url}/segment", content=encoded(strip), headers=headers, timeout=60)
        assert answer.status_code == 200
        return "no memory for 2 windows at once; batches have at most" in service.said()

    until(two_of_them_ran_at_once, tell=service.said)


def test_a_model_that_gets_stuck_while_it_retires_takes_nothing_from_the_next_one(service):
    before = len(processes_of(service.process.pid))
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        stuck = [threads.submit(post, service, STUCK) for _ in range(2)]  # one for each core
        while "tessera_images_in_flight 2.0" not in httpx.get(f"{service.url}/metrics", timeout=20).text:
            assert not any(one.done() for one in stuck)
        service.process.send_signal(signal.SIGHUP)
        until(lambda: '"reloaded"' in service.said(), tell=service.said)
        assert post(service, 0, 0).status_code == 200
        assert {one.result().status_code for one in stuck} == {503}
    until(lambda: len(processes_of(service.process.pid)) <= before, tell=service.said)
    assert post(service, *[0] * 4).status_code == 200
    assert httpx.get(f"{service.url}/health/ready").status_code == 200


def test_a_stuck_lane_is_noticed_told_and_ends_the_service(service):
    """Also beside clients that are in the middle of an upload, of which each front has one."""
    with ExitStack() as slow, concurrent.futures.ThreadPoolExecutor(1) as thread:
        url = httpx.URL(service.url)
        for _ in range(2):
            upload = slow.enter_context(socket.create_connection((url.host, url.port)))
            upload.sendall(
                b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nhalf"
            )
        started = time.monotonic()
        stuck = thread.submit(post, service, STUCK)
        answer = stuck.result()
        told_after = time.monotonic() - started
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("model-not-ready")
        assert answer.json()["detail"].endswith("the service starts anew; try again in a few seconds")
        assert STALL_SECONDS - 0.5 < told_after < STALL_SECONDS + 15  # what a busy machine adds
        assert service.ended() == 1
    assert "does not answer any more, and all with it" in service.log[-1]
    assert "is killed" not in service.said()
