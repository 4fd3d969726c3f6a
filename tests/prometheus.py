"""The project's configuration of Prometheus for other places, and a real Prometheus that has it, on loopback."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.conftest import ROOT
from tests.orthanc import free_port
from tests.programs import program
from tests.waiting import until

CONFIGURATION = (ROOT / "docker/prometheus.yml").read_text(encoding="utf-8")
RULES = (ROOT / "docker/alerts.yml").read_text(encoding="utf-8")
STATED_TARGET = "tessera:8000"
STATED_WATCHER = "watcher:9464"
ACCESS_FOLDER = "/etc/prometheus/access"
"""Where the authority, `ca.pem`, and the `key` lie."""


def with_access(configuration: str) -> str:
    """Return the configuration with the lines that it offers for a service with TLS and keys."""
    return re.sub(r"^( *)# (?=(scheme|tls_config|authorization): )", r"\1", configuration, flags=re.MULTILINE)


class Prometheus:
    """One that answers.

    Args:
        url: Where.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=10)

    def asked(self, path: str, **query: str) -> dict[str, Any]:
        """Return the data of an answer of its HTTP API."""
        return dict(self._client.get(path, params=query).raise_for_status().json()["data"])

    def targets(self) -> dict[str, dict[str, Any]]:
        """Return its targets by their jobs."""
        return {target["labels"]["job"]: target for target in self.asked("/targets")["activeTargets"]}

    def rules(self) -> dict[str, dict[str, Any]]:
        """Return its rules by their names."""
        return {rule["name"]: rule for group in self.asked("/rules")["groups"] for rule in group["rules"]}

    def close(self) -> None:
        self._client.close()


@contextmanager
def running_prometheus(folder: Path, configuration: str, rules: str = RULES) -> Iterator[Prometheus]:
    """Give a Prometheus that has these texts as its files; it is ended when the block ends, however it ends."""
    (folder / "prometheus.yml").write_text(configuration, encoding="utf-8")
    (folder / "alerts.yml").write_text(rules, encoding="utf-8")
    address = f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--storage.tsdb.path={folder / 'data'}"], stdout=log, stderr=log)
    given = Prometheus(f"http://{address}")

    def answers() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text(encoding="utf-8")
        try:
            return len(given.targets()) == configuration.count("job_name: ")
        except (httpx.TransportError, httpx.HTTPStatusError):  # 503 until it has read what it stored
            return False

    try:
        until(answers, tell=lambda: (folder / "prometheus.log").read_text(encoding="utf-8"))
        yield given
    finally:
        given.close()
        process.kill()
        process.wait()
