"""The service as several processes: what it counts together, and what becomes of it when one of them ends."""

import concurrent.futures
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.access.callers import Caller, Scope
from app.access.keys import new_key
from tests.conftest import RunningService
from tests.keys_file import write_keys
from tests.pictures import encoded, quarters
from tests.waiting import until

PNG = {"Content-Type": "image/png"}
LAYOUTS = {
    "own": ("--fronts", "3", "--cores", "2"),
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


def connections(service: RunningService) -> list[int]:
    """Return how many connections to the service's address each process that has any has, by proc(5).

    One that is handed over is two processes' for a moment, in which it can have been answered already.
    """
    port = f":{httpx.URL(service.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] != "0A"}  # all but what listens
    files = [[link_of(file) for file in Path(f"/proc/{child}/fd").iterdir()] for child in children(service)]
    return [count for names in files if (count := sum(name in ours for name in names))]


def link_of(file: Path) -> str:
    """Return what a descriptor is of; nothing where it has been closed since it was listed."""
    try:
        return str(file.readlink())
    except FileNotFoundError:
        return ""


@contextmanager
def one_client_each(service: RunningService) -> Iterator[list[httpx.Client]]:
    """Give clients of which each front has one: connections that stay are shared out."""
    fronts = children(service)
    with ExitStack() as connected:
        clients = [connected.enter_context(httpx.Client(timeout=9)) for _ in fronts]
        for client in clients:
            assert client.get(f"{service.url}/health/live").status_code == 200
        until(lambda: connections(service) == [1] * len(fronts), 9, lambda: connections(service))
        yield clients


def several_at_once(
    service: RunningService, threads: concurrent.futures.ThreadPoolExecutor
) -> list[concurrent.futures.Future[httpx.Response]]:
    """Ask for four patches, which are under way then: they take seconds, and to ask for them takes less."""
    data = encoded(quarters(2000, 2000))
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
    assert [value for (name, _), value in after[0].items() if name.endswith("_info")] == [1, 1]  # device and model


def test_connections_that_stay_are_shared_out(service):
    """Of four times as many as there are fronts each has four, whatever the system made of their addresses."""
    flags = service.process.args
    fronts = int(flags[flags.index("--fronts") + 1])
    until(lambda: not connections(service), 9, lambda: connections(service))  # those of the test before
    time.sleep(1)  # in which each front tells the others so, as it does ten times a second where it has the time
    with ExitStack() as opened:
        clients = [opened.enter_context(httpx.Client()) for _ in range(4 * fronts)]

        def are_shared_out() -> bool:  # one that is idle for five seconds is closed
            assert {client.get(f"{service.url}/health/live").status_code for client in clients} == {200}
            return connections(service) == [4] * fronts

        until(are_shared_out, 9, lambda: connections(service))


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
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ours), 20, service.said)
    service.ended()
    assert not any("Traceback" in line for line in service.log)


@pytest.mark.parametrize(("layout", "index"), [("own", 2), ("shared", 0), ("shared", 1)])
def test_when_one_process_ends_by_itself_the_service_ends_and_says_so(layout, index):
    service = RunningService("--device", "cpu", *LAYOUTS[layout])
    ours = children(service)
    started = time.monotonic()
    os.kill(ours[index], signal.SIGKILL)
    assert service.ended() == 1
    assert time.monotonic() - started < 20
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)
    told = [line for line in service.log if "ended by itself (signal SIGKILL), and all with it" in line]
    assert [json.loads(line)["level"] for line in told] == ["error", "critical"]  # at once, and with the last line
    assert told[-1] == service.log[-1]


@pytest.mark.parametrize(("layout", "number"), [("own", signal.SIGINT), ("shared", signal.SIGTERM)])
def test_what_was_accepted_is_answered_when_the_service_is_stopped(layout, number):
    service = RunningService("--device", "cpu", *LAYOUTS[layout])
    ours = children(service)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asking = several_at_once(service, threads)
        assert service.stop(number) == 0
        assert {answer.result().status_code for answer in asking} == {200}
    assert not any(Path(f"/proc/{pid}").exists() for pid in ours)


def test_a_front_that_is_alone_may_have_an_engine_too_and_ends_with_it():
    """As on a GPU with one core, or with Sectra."""
    with RunningService("--device", "cpu", "--engine", "shared", "--cores", "1") as service:
        engine, _front = children(service)
        answer = httpx.post(f"{service.url}/segment", content=encoded(quarters(64, 64)), headers=PNG, timeout=30)
        assert answer.status_code == 200
        now = scraped(service)
        assert now["tessera_images_total", ""] == now["tessera_stage_duration_seconds_count", "infer"] == 1
        assert [value for (name, _), value in now.items() if name.endswith("_info")] == [1, 1]  # device and model
        os.kill(engine, signal.SIGKILL)
        assert service.ended() == 1
    assert "the process engine ended by itself (signal SIGKILL), and all with it" in service.log[-1]


def test_the_queue_is_one_for_all_fronts():
    service = RunningService(
        "--device", "cpu", "--queue-capacity", "3", "--max-files", "3", "--fronts", "2", "--cores", "2"
    )
    data = encoded(quarters(1000, 1000))
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


def test_a_front_that_stands_still_is_named_missing_from_the_metrics_and_ends_the_service():
    """As one does whose event loop hangs: nothing of it has ended, and it answers nobody, not even the supervisor."""

    def metrics(client: httpx.Client) -> httpx.Response | None:
        try:
            return client.get(f"{service.url}/metrics")
        except httpx.TransportError:  # of the front that stands
            return None

    with (
        RunningService("--device", "cpu", "--fronts", "2", "--cores", "2") as service,
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        with one_client_each(service) as clients:
            os.kill(children(service)[0], signal.SIGSTOP)
            [answer] = [answer for answer in threads.map(metrics, clients) if answer is not None]
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:problem-type:tessera:metrics-incomplete"
        assert service.ended() == 1
    log = service.said()
    assert "no metrics from: front 0" in log
    assert "the process front 0 has not answered for 10 s, and is killed" in log
    assert "front 1" not in log  # which answered its pings all the time
    assert "the process front 0 ended by itself (signal SIGKILL), and all with it" in service.log[-1]


def test_keys_change_under_load_without_a_refusal_of_the_new_one_and_the_old_one_ends_on_each_front(tmp_path):
    old, new = new_key(), new_key()
    before, after = Caller("viewer", frozenset({Scope.SEGMENT})), Caller("viewer-2", frozenset({Scope.SEGMENT}))
    keys = write_keys(tmp_path / "keys", {old: before, new: after})
    stop = threading.Event()

    def ask() -> Counter[int]:
        answers: Counter[int] = Counter()
        while not stop.is_set():  # a connection each, so that both fronts are asked
            answers[httpx.get(f"{service.url}/model", headers={"X-API-Key": new}, timeout=20).status_code] += 1
        return answers

    def statuses_of(key: str) -> list[int]:
        return [client.get(f"{service.url}/model", headers={"X-API-Key": key}).status_code for client in clients]

    with (
        RunningService("--device", "cpu", "--fronts", "2", "--cores", "2", "--keys-file", str(keys)) as service,
        concurrent.futures.ThreadPoolExecutor(3) as threads,
    ):
        with one_client_each(service) as clients:
            assert statuses_of(old) == [200, 200]
            asking = [threads.submit(ask) for _ in range(3)]
            try:
                for round_ in range(60):  # longer than a front goes without looking at the file
                    write_keys(keys, {new: after, old: before} if round_ % 2 else {old: before, new: after})
                    time.sleep(0.03)
                write_keys(keys, {new: after})
                until(lambda: statuses_of(old) == [401, 401], tell=service.said)
            finally:
                stop.set()
            assert statuses_of(new) == [200, 200]
        answers = sum((one.result() for one in asking), Counter())
        assert service.stop() == 0
    assert set(answers) == {200}
    assert answers[200]
    assert sum("API keys read again" in line for line in service.log) >= 2
