"""A real Prometheus with the configuration and the rules of `docker/`, and the service as its target."""

import re
import ssl
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx

from app.access.callers import Caller, Scope
from app.access.keys import new_key
from tests.certificates import signed_by_itself
from tests.conftest import RunningService
from tests.issuer import pem
from tests.keys_file import write_keys
from tests.orthanc import free_port
from tests.pictures import encoded, noise
from tests.prometheus import (
    ACCESS_FOLDER,
    CONFIGURATION,
    RULES,
    STATED_TARGET,
    STATED_WATCHER,
    Prometheus,
    running_prometheus,
    with_access,
)
from tests.waiting import until

SERVICE = "tessera"
"""Its job."""


def each_second(configuration: str, service: RunningService) -> str:
    """Return the configuration with this service as its target, which is looked at each second, and no watcher."""
    assert configuration.count("_interval: 15s") == 2
    configuration = configuration.replace("_interval: 15s", "_interval: 1s")
    for stated, there in ((STATED_TARGET, urlsplit(service.url).netloc), (STATED_WATCHER, f"127.0.0.1:{free_port()}")):
        assert stated in configuration
        configuration = configuration.replace(stated, there)
    return configuration


def wait_for_target(prometheus: Prometheus, health: str, error: str = "") -> None:
    """Wait until the service has this health as a target, and the last scrape this in its error."""

    def is_so() -> bool:
        target = prometheus.targets()[SERVICE]
        return target["health"] == health and error in target["lastError"]

    until(is_so, tell=prometheus.targets)


def wait_for_all_rules(prometheus: Prometheus) -> None:
    """Wait until each rule has been worked out without an error, since all targets were looked at."""
    assert prometheus.rules().keys() == set(re.findall(r"- alert: (\w+)", RULES))
    until(lambda: all(target["health"] != "unknown" for target in prometheus.targets().values()))
    since = datetime.now(UTC)

    def are_so() -> bool:
        rules = prometheus.rules().values()
        return all(rule["health"] == "ok" and datetime.fromisoformat(rule["lastEvaluation"]) > since for rule in rules)

    until(are_so, tell=prometheus.rules)


def unanswered(prometheus: Prometheus) -> list[str]:
    """Return what the rules on the service ask for, and no target has."""
    asked = set(re.findall(r'\w+\{job="tessera"[^}]*\}', RULES))
    assert asked
    return [selector for selector in asked if not prometheus.asked("/query", query=selector)["result"]]


def test_the_service_is_up_and_all_rules_can_be_worked_out(service: RunningService, tmp_path: Path) -> None:
    with running_prometheus(tmp_path, each_second(CONFIGURATION, service)) as prometheus:
        wait_for_target(prometheus, "up")
        wait_for_all_rules(prometheus)
        assert [name for name, rule in prometheus.rules().items() if rule["state"] == "firing"] == []


def test_a_wrong_key_is_told_of_and_with_the_right_one_the_rules_find_what_they_ask_for(tmp_path: Path) -> None:
    """With TLS and keys, as docs/access.md sets it up; the key is put right while Prometheus runs."""
    private, certificate = signed_by_itself()
    (tmp_path / "ca.pem").write_bytes(certificate)
    (tmp_path / "private.pem").write_bytes(pem(private))
    (tmp_path / "key").write_text("wrong")
    scraping, segmenting = new_key(), new_key()
    callers = {scraping: Caller("prometheus", frozenset({Scope.METRICS}))}
    write_keys(tmp_path / "keys", callers | {segmenting: Caller("west", frozenset({Scope.SEGMENT}))})
    tls = ("--tls-cert", str(tmp_path / "ca.pem"), "--tls-key", str(tmp_path / "private.pem"))
    configuration = with_access(CONFIGURATION).replace(ACCESS_FOLDER, str(tmp_path))
    configuration = configuration.replace("pathology.example", "127.0.0.1")
    with RunningService("--device", "cpu", *tls, "--keys-file", str(tmp_path / "keys")) as service:
        trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        headers = {"Content-Type": "image/png", "Authorization": f"Bearer {segmenting}"}
        asked = httpx.post(f"{service.url}/classify", content=encoded(noise(32, 32)), headers=headers, verify=trusting)
        assert asked.status_code == 200
        rules = RULES.replace("for: 1m", "for: 1s")
        with running_prometheus(tmp_path, each_second(configuration, service), rules) as prometheus:
            wait_for_target(prometheus, "down", "401")
            until(lambda: prometheus.rules()["TesseraNotScraped"]["state"] == "firing", tell=prometheus.rules)
            [alert] = prometheus.rules()["TesseraNotScraped"]["alerts"]
            assert urlsplit(service.url).netloc in alert["annotations"]["summary"]
            (tmp_path / "key").write_text(scraping)
            wait_for_target(prometheus, "up")
            wait_for_all_rules(prometheus)
            until(lambda: not unanswered(prometheus), tell=lambda: unanswered(prometheus))
