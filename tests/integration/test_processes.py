"""The service as several processes: what it counts together, and what becomes of it when one of them ends."""

import concurrent.futures
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import RunningService
from tests.pictures import encoded, quarters

PNG = {"Content-Type": "image/png"}
LAYOUTS = {
    "own": ("--fronts", "3", "--engine", "own", "--cores", "2"),
    "shared": ("--fronts", "2", "--engine", "shared", "--cores", "2"),
}


def children(service: RunningService) -> list[int]:
    parent = service.process.pid
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def scraped(service: RunningService) -> dict[tuple[str, str], float]:
    text = httpx.get(f"{service.url}/metrics", timeout=10).text
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def connections_of(process: int, service: RunningService) -> int:
    """Return how many connections to the service's address a process has, by proc(5)."""
    port = f":{httpx.URL(service.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[1].endswith(port) and row[3] == "01"}  # established
    files = [str(file.readlink()) for file in Path(f"/proc/{process}/fd").iterdir()]
    return sum(file == f"socket:[{inode}]" for file in files for inode in inodes)


def several_at_once(
    service: RunningService, threads: concurrent.futures.ThreadPoolExecutor
) -> list[concurrent.futures.Future[httpx.Response]]:
    """Ask for four patches, which are under way then: they take seconds, and to ask for them takes less."""
    data = encoded(quarters(1400, 1400))
    asking = [
        threads.submit(httpx.post, f"{service.url}/segment", content=data, headers=PNG, timeout=60) for _ in range(4)
    ]
    while scraped(service)["tessera_images_in_flight", ""] < 4:
        assert not any(answer.done() for answer in asking)
        time.sleep(0.01)
    return asking


@pytest.fixture(scope="module", params=LAYOUTS)
def service(request):
    running = RunningService("--device", "cpu", *LAYOUTS[request.param])
    yield running
    if running.process.poll() is None:
        assert running.stop() == 0


def test_one_scrape_counts_all_processes(service):
    before = scraped(service)
    data = encoded(quarters(64, 64))

    def post(_index: int) -> int:  # each on a connection of its own, so that every front gets some
        return httpx.post(f"{service.url}/segment", content=data, headers=PNG, timeout=30).status_code

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(post, range(40))) == {200}
    after = [scraped(service) for _ in range(8)]
    for now in after:  # whichever front was asked
        assert now["tessera_images_total", ""] - before["tessera_images_total", ""] == 40
        requests = "tessera_requests_total", "/segment,200"
        assert now[requests] - before.get(requests, 0) == 40
        windows = "tessera_stage_duration_seconds_count", "queue"
        assert now[windows] - before.get(windows, 0) == 40
        assert now["tessera_ready", ""] == 1
        assert now["tessera_images_in_flight", ""] == 0
    assert "cpu,CPUExecutionProvider" in {labels for name, labels in after[0] if name == "tessera_device_info"}


def test_connections_that_stay_are_shared_out(service):
    """Of four times as many as there are fronts each has four, whatever the system made of their addresses."""
    flags = service.process.args
    fronts = int(flags[flags.index("--fronts") + 1])
    time.sleep(0.3)  # for which those of the test before still count
    with ExitStack() as clients:
        for _ in range(4 * fronts):
            assert clients.enter_context(httpx.Client()).get(f"{service.url}/health/live").status_code == 200
        assert [count for child in children(service) if (count := connections_of(child, service))] == [4] * fronts


def test_the_answer_is_the_same_from_every_front(service):
    data = encoded(quarters(96, 64))
    masks = {
        httpx.post(f"{service.url}/segment", content=data, headers={**PNG, "Accept": "image/png"}).content
        for _ in range(12)
    }
    assert len(masks) == 1


def test_the_processes_are_as_the_layout_says(service):
    assert len(children(service)) == 3


def test_a_supervisor_that_is_killed_leaves_nobody_unanswered_and_nothing_behind(service):
    ours = children(service)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asking = several_at_once(service, threads)
        service.process.kill()
        assert {answer.result().status_code for answer in asking} == {200}
    service.process.wait(10)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in ours):
        assert time.monotonic() < deadline, "a process outlived its supervisor"
        time.sleep(0.05)
    service._reader.join()
    service.process.stderr.close()
    assert not any("Traceback" in line for line in service.log)


@pytest.mark.parametrize(("layout", "index"), [("own", 2), ("shared", 0), ("shared", 1)])
def test_when_one_process_ends_by_itself_the_service_ends_and_says_so(layout, index):
    service = RunningService("--device", "cpu", *LAYOUTS[layout])
    ours = children(service)
    started = time.monotonic()
    os.kill(ours[index], signal.SIGKILL)
    status = service.process.wait(30)
    assert status == 1
    assert time.monotonic() - started < 20
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)
    service._reader.join()
    service.process.stderr.close()
    assert "ended by itself (signal SIGKILL), and all with it" in service.log[-1]


@pytest.mark.parametrize(("layout", "number"), [("own", signal.SIGINT), ("shared", signal.SIGTERM)])
def test_what_was_accepted_is_answered_when_the_service_is_stopped(layout, number):
    service = RunningService("--device", "cpu", *LAYOUTS[layout])
    ours = children(service)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asking = several_at_once(service, threads)
        assert service.stop(number) == 0
        assert {answer.result().status_code for answer in asking} == {200}
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)


def test_the_queue_is_one_for_all_fronts():
    service = RunningService(
        "--device", "cpu", "--queue-capacity", "3", "--max-files", "3", "--fronts", "2", "--cores", "2"
    )
    data = encoded(quarters(500, 500))
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        asking = [
            threads.submit(httpx.post, f"{service.url}/segment", content=data, headers=PNG, timeout=60)
            for _ in range(12)
        ]
        codes = sorted(answer.result().status_code for answer in asking)
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 3
    assert scraped(service)["tessera_images_in_flight", ""] == 0
    assert service.stop() == 0
