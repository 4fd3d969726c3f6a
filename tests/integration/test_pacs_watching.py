"""The profile `pacs` as Prometheus and an operator see its watcher."""

import re
from typing import Any, get_args

import yaml
from prometheus_client import CollectorRegistry

from app.archive_settings import ArchiveSettings
from app.cli.dicomweb import dicomweb
from app.segmentation.watch import Outcome
from app.telemetry.watching import WatchMetrics
from tests.conftest import ROOT

JOB = "tessera-watcher"


def document(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))


def watcher() -> dict[str, Any]:
    return dict(document("docker-compose.yml")["services"]["watcher"])


def alerts() -> list[dict[str, Any]]:
    [group] = document("docker/alerts.yml")["groups"]
    return [rule for rule in group["rules"] if JOB in rule["expr"]]


def test_prometheus_reaches_the_watcher_at_the_port_that_it_is_given() -> None:
    _, command, *flags = watcher()["command"]
    port = dicomweb.commands[command].make_context(command, list(flags)).params["metrics_port"]
    [job] = [job for job in document("docker/prometheus.yml")["scrape_configs"] if job["job_name"] == JOB]
    assert job["static_configs"] == [{"targets": [f"watcher:{port}"]}]
    assert set(watcher()["networks"]) == {"default", "pacs"}
    assert "ports" not in watcher()


def test_the_alerts_speak_of_metrics_and_outcomes_that_there_are() -> None:
    registry = CollectorRegistry()
    WatchMetrics(registry).series.labels("answered")
    known = {sample.name for family in registry.collect() for sample in family.samples}
    expressions = " ".join(rule["expr"] for rule in alerts())
    assert len(alerts()) == 2
    assert set(re.findall(r"tessera_\w+", expressions)) <= known
    named = {one for found in re.findall(r'outcome=~"([^"]+)"', expressions) for one in found.split("|")}
    assert named
    assert named <= set(get_args(Outcome))


def test_the_watcher_has_time_to_finish_what_it_has_begun_at_the_archive() -> None:
    grace_seconds = float(watcher()["stop_grace_period"].removesuffix("s"))
    assert grace_seconds > 2 * float(ArchiveSettings.model_fields["timeout"].default), "half of it to send the result"


def test_a_watcher_that_is_stuck_is_told_by_its_progress_not_by_its_polls() -> None:
    """A watcher that reads the log again and again, and gets no further, polls."""
    [stuck] = [rule for rule in alerts() if rule["alert"] == "TesseraWatcherStuck"]
    assert "tessera_watch_last_progress_timestamp_seconds" in stuck["expr"]
