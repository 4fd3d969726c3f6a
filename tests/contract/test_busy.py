"""A service whose threads are all busy with images still answers whatever takes none."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image

from app.imaging.contours import merge_small, polygonise
from app.imaging.decode import OpenedFile
from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter
from tests.pictures import encoded, noise

CORES, IMAGES, SECONDS = 2, 3, 10
PROBES = ("/health/live", "/health/ready", "/metrics")
MOST_MAPS = 20
"""Of one thread, before the probes are answered; one or two are usual."""


@contextmanager
def busy(begun: threading.Semaphore, images: int) -> Iterator[tuple[TestClient, list[Future[Any]]]]:
    """Give a service whose every thread has begun an image, told by `begun`, and the answers to so many images."""
    png = {"Content-Type": "image/png"}
    with (
        TestClient(create_app(Settings(cores=CORES), ColourSegmenter())) as client,
        ThreadPoolExecutor(images) as threads,
    ):
        asking = [
            threads.submit(client.post, "/segment", content=encoded(noise(8, 8)), headers=png) for _ in range(images)
        ]
        for _ in range(CORES):
            assert begun.acquire(timeout=2 * SECONDS)
        yield client, asking


def test_probes_are_answered_while_every_thread_decodes(monkeypatch):
    begun, let_go = threading.Semaphore(0), threading.Event()
    in_time = []
    pixels = OpenedFile.pixels

    def wait_and_decode(file: OpenedFile):
        begun.release()
        in_time.append(let_go.wait(SECONDS))
        return pixels(file)

    monkeypatch.setattr(OpenedFile, "pixels", wait_and_decode)
    with busy(begun, IMAGES) as (client, asking):
        probes = [client.get(path).status_code for path in PROBES]
        in_flight = client.app.state.running.metrics.registry.get_sample_value("tessera_images_in_flight")
        let_go.set()
        assert probes == [200] * 3
        assert in_flight >= CORES
        assert [answer.result().status_code for answer in asking] == [200] * IMAGES
    assert in_time == [True] * IMAGES


def section() -> np.ndarray:
    """Return (4096, 4096) uint8, a class map of smooth patches of tissue, whose borders are as long as a section's."""
    coarse = np.random.default_rng(5).standard_normal((4, 64, 64)).astype(np.float32)
    smooth = [Image.fromarray(each).resize((4096, 4096), Image.Resampling.BICUBIC) for each in coarse]
    return np.argmax(smooth, axis=0).astype(np.uint8)


def test_probes_are_answered_while_every_thread_traces_a_large_map(monkeypatch):
    """GDAL keeps Python's lock, so that a probe waits for some of its calls; it must not wait for all of a map's.

    The work itself is the measure: were all of it done under the lock, each step of an answer would wait for a map.
    """
    class_map, confidence = section(), np.full((4096, 4096), 200, np.uint8)
    begun, answered = threading.Semaphore(0), threading.Event()
    maps: list[int] = []
    pixels = OpenedFile.pixels

    def trace_and_decode(file: OpenedFile):
        begun.release()
        done = 0
        while done < MOST_MAPS and not answered.is_set():
            polygonise(merge_small(class_map, 64), confidence, range(4), 1.5, 0)
            done += 1
        maps.append(done)
        return pixels(file)

    monkeypatch.setattr(OpenedFile, "pixels", trace_and_decode)
    with busy(begun, CORES) as (client, asking):
        probes = [client.get(path).status_code for path in PROBES]
        answered.set()
        assert probes == [200] * len(PROBES)
        assert [answer.result().status_code for answer in asking] == [200] * CORES
    assert 0 < max(maps) < MOST_MAPS
