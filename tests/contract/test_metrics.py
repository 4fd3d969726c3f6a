"""The names that dashboards and alerts are built on, and that they count what they say."""

import re
import urllib.request
from itertools import product
from typing import get_args
from unittest.mock import Mock

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from app.api import segment
from app.telemetry.metrics import SegmentationMetrics, Stage
from tests.conftest import ROOT
from tests.pictures import encoded, noise, quarters
from tests.tables import rows_of

PNG = {"Content-Type": "image/png"}

NAMES = {
    name.strip("`").removesuffix("_total"): (kind, set(filter(None, labels.split(", "))))
    for name, kind, labels, _ in rows_of(ROOT / "docs/metrics.md", "metric | kind | labels | meaning")
    if not name.startswith("`tessera_watch_")
}
"""Kind and labels of each of the service's metrics, as its page has them."""


OF_TLS = "tessera_tls_certificate_expiry_timestamp_seconds"
"""Which is there with a certificate alone."""


def families(client):
    found = text_string_to_metric_families(client.get("/metrics").text)
    return {family.name: family for family in found if family.name.startswith("tessera_")}


def test_names_kinds_and_labels_are_as_promised(client, service):
    client.post("/segment", content=b"broken", headers=PNG)
    client.post("/segment", content=encoded(noise(9, 9)), headers=PNG)
    with urllib.request.urlopen(f"{service.url}/metrics") as response:  # device and model come with a real bundle
        real = {family.name: family for family in text_string_to_metric_families(response.read().decode())}
    found = families(client)
    there = {name: row for name, row in NAMES.items() if name != OF_TLS}
    assert {name for name in found if not name.endswith("_created")} == set(there)
    for name, (kind, labels) in there.items():
        family = real[name] if name.endswith("_info") else found[name]
        assert family.type == kind
        assert family.documentation
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels


def test_they_count_requests_images_pixels_and_rejections(client):
    client.post("/segment", content=encoded(quarters(20, 20)), headers=PNG)
    client.post("/segment", files=[("file", encoded(quarters(20, 20))), ("file", b"broken")])
    client.post("/classify", content=b"", headers=PNG)
    client.get("/some/path/nobody/has")
    registry = client.app.state.running.metrics.registry
    value = registry.get_sample_value
    assert value("tessera_requests_total", {"route": "/segment", "status": "200"}) == 2
    assert value("tessera_requests_total", {"route": "/classify", "status": "422"}) == 1
    assert value("tessera_requests_total", {"route": "unmatched", "status": "404"}) == 1
    assert value("tessera_images_total") == 2
    assert value("tessera_predicted_pixels_total", {"class": "normal"}) == 200
    assert value("tessera_rejections_total", {"reason": "unsupported-image"}) == 1
    assert value("tessera_rejections_total", {"reason": "unreadable-image"}) == 1
    assert value("tessera_stage_duration_seconds_count", {"stage": "wait"}) == 2
    assert value("tessera_stage_duration_seconds_count", {"stage": "decode"}) == 2
    assert value("tessera_stage_duration_seconds_count", {"stage": "encode"}) == 2
    assert value("tessera_images_in_flight") == 0
    assert value("tessera_pixels_in_flight") == 0
    assert value("tessera_ready") == 1


OF_REQUESTS = {
    *("tessera_requests", "tessera_request_duration_seconds", "tessera_rejections"),
    *("tessera_images_in_flight", "tessera_pixels_in_flight", "tessera_ready"),
    *("tessera_keys_faulty_lines", OF_TLS),
}


def test_what_segments_without_a_service_has_none_of_a_services_metrics():
    registry = CollectorRegistry()
    SegmentationMetrics(registry)
    names = {family.name for family in registry.collect() if family.name.startswith("tessera_")}
    assert names == NAMES.keys() - OF_REQUESTS


def test_the_page_names_every_stage():
    [meaning] = [
        row[-1]
        for row in rows_of(ROOT / "docs/metrics.md", "metric | kind | labels | meaning")
        if row[0] == "`tessera_stage_duration_seconds`"
    ]
    assert set(get_args(Stage)) <= set(re.findall(r"`(\w+)`", meaning))


def test_prometheus_may_ask_for_openmetrics(client):
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_no_trace_is_made_of_a_request_whatever_collector_is_set_up(client, monkeypatch):
    collector = Mock()
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: collector)
    monkeypatch.setattr("opentelemetry.metrics.get_meter_provider", lambda: collector)
    monkeypatch.setattr("opentelemetry._logs.get_logger_provider", lambda: collector)
    assert client.get("/model?patient=JANE").status_code == 200
    assert not collector.mock_calls


def test_every_kind_of_problem_is_counted_from_zero(client):
    rejections = families(client)["tessera_rejections"]

    totals = {s.labels["reason"]: s.value for s in rejections.samples if s.name == "tessera_rejections_total"}
    assert {"inference-failed", "queue-full", "too-many-connections", "out-of-memory"} <= totals.keys()
    assert set(totals.values()) == {0.0}


def test_what_the_alert_on_failures_counts_begins_at_zero(client):
    """A rate does not see the first value of a series: the first failure after a start would be none."""
    text = (ROOT / "docker/alerts.yml").read_text(encoding="utf-8")
    found = set(re.findall(r'tessera_requests_total\{job="tessera", route=~"(.*?)", status=~?"(.*?)"\}', text))
    assert {statuses for _, statuses in found} == {"500|503|504", "499"}
    value = client.app.state.running.metrics.registry.get_sample_value
    for routes, statuses in found:
        assert set(routes.split("|")) == {route.path for route in segment.router.routes}
        for route, status in product(routes.split("|"), statuses.split("|")):
            assert value("tessera_requests_total", {"route": route, "status": status}) == 0


def test_an_alert_on_a_quantile_compares_with_a_bound_of_its_buckets(client):
    """Between two bounds Prometheus guesses: of requests of 11 s it would say 30, of some of 29 s 13."""
    client.post("/segment", content=encoded(noise(9, 9)), headers=PNG)
    thresholds = re.findall(
        r"histogram_quantile\(.*?(tessera_\w+)_bucket.*?\) > ([0-9.]+)",
        (ROOT / "docker/alerts.yml").read_text(),
        re.DOTALL,
    )
    assert thresholds
    found = families(client)
    for name, threshold in thresholds:
        bounds = {float(sample.labels["le"]) for sample in found[name].samples if sample.name.endswith("_bucket")}
        assert float(threshold) in bounds
