"""Fixtures that several kinds of tests share."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

import pytest
from fastapi.testclient import TestClient

from app.inference.bundle import find_precision
from app.main import create_app
from app.settings import DEFAULT_BUNDLE, Settings
from tests.fakes import ColourSegmenter

ROOT = Path(__file__).parent.parent
START_SECONDS = 60
SERVED_BUNDLE = find_precision(DEFAULT_BUNDLE, "int8")
"""What a service on a CPU runs of the shipped bundle."""


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("TESSERA_")]:
        monkeypatch.delenv(name)


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
    """

    def __init__(
        self, *flags: str, env: dict[str, str] | None = None, folder: Path = ROOT, stdout: IO[bytes] | None = None
    ) -> None:
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--log-format", "json", *flags]
        self.process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "TESSERA_SHUTDOWN_GRACE": "0", **(env or {})},
        )
        self.log: list[str] = []
        self.url = ""
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._listening.wait(START_SECONDS) or not self.url:
            self.process.kill()
            raise AssertionError("the service did not start:\n" + "".join(self.log))

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
            self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(30)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """The service as a user runs it; shared by the tests that do not change it."""
    running = RunningService("--device", "cpu")
    yield running
    if running.process.poll() is None:
        running.stop()
