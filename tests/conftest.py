"""Fixtures that several kinds of tests share."""

import functools
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Self

import httpcore2
import hypothesis
import pytest
from fastapi.testclient import TestClient

from app.inference.bundle import find_precision
from app.main import create_app
from app.settings import DEFAULT_BUNDLE, Settings
from app.telemetry.logging import JsonFormatter, TextFormatter
from tests.fakes import ColourSegmenter

# Speed is for benchmarks/ to judge; new examples are for whoever looks for faults: `make explore`.
hypothesis.settings.register_profile("tessera", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tessera")

# Before torch loads: its threads wait for each other without sleeping, and where several test processes have some each,
# they take the cores from those that compute. Processes that tests start have one too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each client reads all certificates of the system anew otherwise, which takes 40 ms: tests race what they ask.
httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)

ROOT = Path(__file__).parent.parent
START_SECONDS = 60
SERVED_BUNDLE = find_precision(DEFAULT_BUNDLE, "int8")
"""What a service on a CPU runs of the shipped bundle."""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TESSERA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def anyio_backend() -> str:
    """What runs the tests that are marked with `anyio`: a loop of asyncio of its own for each of them."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_log_left_behind() -> Iterator[None]:
    """A command that ran in this process made the log write to what was its standard error."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in list(root.handlers):
        if isinstance(handler.formatter, JsonFormatter | TextFormatter):
            root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """The whole application around the colour segmenter, small limits."""
    settings = Settings(max_side_px=300, max_files=4, queue_capacity=8, max_upload_bytes=200_000, cores=2)
    with TestClient(create_app(settings, ColourSegmenter())) as running:
        yield running


class RunningService:
    """A `tessera serve` of its own process, on a free port, with the real bundle.

    Args:
        flags: More of its flags.
        env: More of its environment.
        folder: Where it is started.
        stdout: File of what it prints beside its log; None: where the tests' own goes.
        before: Called in the new process, before its program begins.
    """

    def __init__(
        self,
        *flags: str,
        env: dict[str, str] | None = None,
        folder: Path = ROOT,
        stdout: IO[bytes] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--log-format", "json", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            preexec_fn=before,  # noqa: PLW1509  # the tests fork nothing but this
            env={**os.environ, "TESSERA_SHUTDOWN_GRACE": "0", "TESSERA_STALL_TIMEOUT": "20", **(env or {})},
        )
        self.log: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(START_SECONDS) or not self.url:
            self.process.kill()
            self.ended()
            raise AssertionError(f"the service did not start:\n{self.said()}")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"running on (https?://[0-9.:]+)", line):
                self.url = found.group(1)
                self._listening.set()
        self._listening.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it however a test ended: a test that fails leaves no process behind."""
        if self.process.poll() is None:
            self.process.kill()  # its other processes end with it
        self.ended()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and return its exit status."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end, let go of its log, and return its exit status."""
        status = self.process.wait(90)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def said(self, most_lines: int = 0) -> str:
        """Return its log, or the last lines of it."""
        return "".join(self.log[-most_lines:])


@pytest.fixture(scope="session")
def _kept() -> Iterator[list[RunningService]]:
    """The service that tests share, in a list: where it ended, another takes its place."""
    kept: list[RunningService] = []
    yield kept
    for running in kept:
        running.stop()


@pytest.fixture
def service(_kept: list[RunningService]) -> Iterator[RunningService]:
    """The service as a user runs it; shared by the tests that do not change it, and that it has to outlive."""
    if not _kept:
        _kept.append(RunningService("--device", "cpu", "--request-timeout", "110"))
    [running] = _kept
    yield running
    if running.process.poll() is not None:
        _kept.clear()
        status = running.ended()
        pytest.fail(f"the service ended during this test, with status {status}:\n{running.said(most_lines=20)}")
