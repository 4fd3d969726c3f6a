"""The whole application as a Sectra archive meets it, for tests of the two together."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx2 as httpx
import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sectra_client.schemas import ResultResponse

from app.inference.result import WindowResult
from app.main import create_app
from app.pathology.arrays import RgbImage
from app.settings import Settings
from tests.fakes import ColourSegmenter, classes_of
from tests.pictures import BLUE, GREEN, ORANGE, WHITE, plain
from tests.sectra_pacs import (
    SectraPacs,
    drawn_classes,
)

HOOK = "/sectra/hook"
COLORS = {"#004080": 0, "#408000": 1, "#f39800": 2}
WIDTH, HEIGHT = 300, 200


def landscape() -> RgbImage:
    """Tumor with an island of stroma and a hole of glass, and normal tissue beside it."""
    image = plain(WHITE, WIDTH, HEIGHT)
    image[20:160, 20:200] = BLUE
    image[60:100, 60:100] = GREEN
    image[60:100, 120:160] = WHITE
    image[40:120, 220:280] = ORANGE
    return image


def settings(pacs: SectraPacs, **changes: object) -> Settings:
    return Settings(**{"cores": 2, "sectra_hosts": f"127.0.0.1:{pacs.port}", **changes})


@contextlib.contextmanager
def serving(pacs: SectraPacs, segmenter: ColourSegmenter | None = None, **changes: object) -> Iterator[TestClient]:
    with TestClient(create_app(settings(pacs, **changes), segmenter or ColourSegmenter())) as client:
        yield client


def post(client: TestClient, order: object) -> httpx.Response:
    return client.post(HOOK, content=order.model_dump_json())


def refused(response: httpx.Response, status: int, kind: str, words: str) -> None:
    problem = response.json()
    assert (response.status_code, problem["type"].rsplit(":", 1)[-1]) == (status, kind), problem
    assert words in problem["error"]
    assert problem["error"] == problem["detail"]
    assert "\n" not in problem["error"]
    assert response.headers["x-sectra-apiversion"] == "1.6"


def in_flight(client: TestClient) -> float | None:
    return client.app.state.running.metrics.registry.get_sample_value("tessera_images_in_flight")


def label_of(result: dict) -> str:
    return next(item["labels"][0]["label"] for item in result["data"]["result"]["content"] if item["labels"])


@contextlib.contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve `app` over HTTP on loopback; give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def found(result: ResultResponse) -> np.ndarray:
    return drawn_classes(result, WIDTH, HEIGHT, COLORS)


def tissue(image: RgbImage) -> np.ndarray:
    """The class map with -1 for glass."""
    class_map = classes_of(image).astype(np.int16)
    class_map[class_map == 3] = -1
    return class_map


class HeldBack(ColourSegmenter):
    """Answers nothing before its gate is set, and tells when it was asked and when it was left."""

    def __init__(self) -> None:
        super().__init__(gate=asyncio.Event())
        self.asked, self.left = threading.Event(), threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Let windows be answered; may be called in any thread."""
        self._loop.call_soon_threadsafe(self.gate.set)

    async def segment(self, window: RgbImage) -> WindowResult:
        self._loop = asyncio.get_running_loop()
        self.asked.set()
        try:
            return await super().segment(window)
        finally:
            self.left.set()


@contextlib.contextmanager
def posted(client: TestClient, order: object, until: threading.Event) -> Iterator[list]:
    """Post an order that will be held back once `until` is set; give the list that its answer will come in."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(post(client, order)))
    thread.start()
    assert until.wait(20)
    yield answers
    thread.join()
