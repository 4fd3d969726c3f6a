"""A service whose threads are all busy with images still answers whatever takes none."""

import threading
from concurrent.futures import ThreadPoolExecutor

from fastapi.testclient import TestClient

from app.imaging.decode import OpenedFile
from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter
from tests.pictures import encoded, noise

CORES, IMAGES, SECONDS = 2, 3, 10


def test_probes_are_answered_while_every_thread_decodes(monkeypatch):
    begun, let_go = threading.Semaphore(0), threading.Event()
    in_time = []
    pixels = OpenedFile.pixels

    def wait_and_decode(file: OpenedFile):
        begun.release()
        in_time.append(let_go.wait(SECONDS))
        return pixels(file)

    monkeypatch.setattr(OpenedFile, "pixels", wait_and_decode)
    png = {"Content-Type": "image/png"}
    with (
        TestClient(create_app(Settings(cores=CORES), ColourSegmenter())) as client,
        ThreadPoolExecutor(IMAGES) as threads,
    ):
        asking = [
            threads.submit(client.post, "/segment", content=encoded(noise(8, 8)), headers=png) for _ in range(IMAGES)
        ]
        for _ in range(CORES):
            assert begun.acquire(timeout=2 * SECONDS)
        probes = [client.get(path).status_code for path in ("/health/live", "/health/ready", "/metrics")]
        in_flight = client.app.state.running.metrics.registry.get_sample_value("tessera_images_in_flight")
        let_go.set()
        assert probes == [200] * 3
        assert in_flight >= CORES
        assert [answer.result().status_code for answer in asking] == [200] * IMAGES
    assert in_time == [True] * IMAGES
