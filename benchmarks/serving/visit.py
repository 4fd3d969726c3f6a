"""One visit to one server: started, asked, measured and stopped. Only one server runs at a time."""

import http.client
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from app.pathology.arrays import ClassMap
from benchmarks.serving.environments import environment_of
from benchmarks.serving.load import Target, closed_loop, open_loop
from benchmarks.serving.processes import ServerFailed, machine_seconds, memory, processor_seconds, running
from benchmarks.serving.servers import Launch, Server, class_map_of
from benchmarks.serving.uploads import Upload

START_SECONDS = 90
_POLL_SECONDS = 0.02
_IDLE_SECONDS = 1.0
_WARM_UP_SECONDS = 1.0
_DRAINING_REQUESTS, _DRAINING_SECONDS = 4, 0.3
"""Each of these requests is answered after most of what waited before it."""
_AGREEMENT = 0.999
"""The share of an answer's pixels that must have the classes that ONNX Runtime gave them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured on a visit.

    Attributes:
        connections: Requests in flight of the closed loop.
        seconds: For which each load runs.
        shares: Of the capacity just measured: the rates of the open loops.
    """

    connections: int
    seconds: float
    shares: tuple[float, ...]


@contextmanager
def started(
    server: Server, variant: str, launch: Launch, decoder: str, upload: Upload
) -> Iterator[tuple[Target, float]]:
    """Run a server; give what to ask it, and the seconds from its start to its first answer to a patch.

    Raises:
        ServerFailed: It ended, or had no good answer within a minute and a half; the message is its own last line.
    """
    url = f"http://127.0.0.1:{launch.port}{server.path}"
    target = Target(url, upload.file, upload.media_type, server.headers)
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        environment = environment_of(launch, variant, decoder)
        begun = time.monotonic()
        with running(server.command(launch), environment, server.folder, Path(log.name)) as process:
            while (answer := _try_post(target)) is None or answer[0] != 200:
                if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                    raise ServerFailed(f"{server.title} did not start: {_last_words(Path(log.name))}")
                time.sleep(_POLL_SECONDS)
            yield target, time.monotonic() - begun


def visit(
    server: Server, variant: str, launch: Launch, decoder: str, upload: Upload, expected: ClassMap, plan: Plan
) -> dict[str, Any]:
    """Measure a server once.

    Raises:
        ServerFailed: It does not start, or its answers are wrong.
    """
    with started(server, variant, launch, decoder, upload) as (target, ready_seconds):
        check_answer(server, target, expected)
        time.sleep(_IDLE_SECONDS)
        idle = memory()
        closed_loop(target, 1, _WARM_UP_SECONDS)
        alone = closed_loop(target, 1, plan.seconds / 2)
        closed_loop(target, plan.connections, _WARM_UP_SECONDS)
        drain(target)
        server_before, machine_before = processor_seconds(), machine_seconds()
        capacity = closed_loop(target, plan.connections, plan.seconds)
        used = processor_seconds() - server_before
        others = max(0.0, machine_seconds() - machine_before - used - capacity.client_seconds)
        opened = []
        for share in plan.shares:
            drain(target)
            loop = open_loop(target, share * capacity.per_second, plan.seconds)
            opened.append({"share": share, **asdict(loop)})
        check_answer(server, target, expected)
        return {
            "ready_seconds": ready_seconds,
            "idle": asdict(idle),
            "after": asdict(memory()),
            "alone": asdict(alone),
            "capacity": {
                **asdict(capacity),
                "per_second": capacity.per_second,
                "server_ms": 1000 * used / max(1, capacity.answered),
                "others_share": others / (capacity.seconds * (os.cpu_count() or 1)),
            },
            "open": opened,
        }


def check_answer(server: Server, target: Target, expected: ClassMap) -> None:
    """Compare a server's answer with what ONNX Runtime says of the same image.

    Raises:
        ServerFailed: They differ.
    """
    status, body = post(target)
    if status != 200:
        raise ServerFailed(f"{server.title} answered with status {status}: {body[:200]!r}")
    found = class_map_of(server, body)
    if found.shape != expected.shape or float(np.mean(found == expected)) < _AGREEMENT:
        raise ServerFailed(f"{server.title}'s mask is not what the model says of the image")


def drain(target: Target) -> None:
    """Wait until a server has worked off what a load that ended left in it: wrk leaves without its last answers."""
    for _ in range(_DRAINING_REQUESTS):
        post(target)
    time.sleep(_DRAINING_SECONDS)


def post(target: Target, timeout_seconds: float = 120) -> tuple[int, bytes]:
    """Send one request over a connection of its own; return the status and the body."""
    parts = urlsplit(target.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=timeout_seconds)
    try:
        connection.request("POST", parts.path, target.body.read_bytes(), target.all_headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _try_post(target: Target) -> tuple[int, bytes] | None:
    try:
        return post(target)
    except (OSError, http.client.HTTPException):  # nobody listens yet, or not in earnest
        return None


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
