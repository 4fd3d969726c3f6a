import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.telemetry.merging import merged, snapshot
from app.telemetry.metrics import Metrics


def value(metrics, sample_name, **labels):
    found = [
        sample.value
        for family in metrics
        for sample in family.samples
        if sample.name == sample_name and sample.labels == labels
    ]
    assert len(found) == 1, f"{sample_name} is there {len(found)} times"
    return found[0]


def process(requests: int, seconds: float, depth: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    counter = Counter("requests", "Requests.", ["route"], registry=registry)
    counter.labels("/segment").inc(requests)
    Histogram("duration", "Seconds.", buckets=(1, 2), registry=registry).observe(seconds)
    Gauge("depth", "Waiting.", registry=registry).set(depth)
    return registry


def test_counters_histograms_and_gauges_add_up():
    both = merged([snapshot(process(3, 0.5, 2)), snapshot(process(4, 1.5, 5))])
    assert value(both, "requests_total", route="/segment") == 7
    assert value(both, "duration_bucket", le="1.0") == 1
    assert value(both, "duration_bucket", le="2.0") == 2
    assert value(both, "duration_sum") == 2
    assert value(both, "duration_count") == 2
    assert value(both, "depth") == 7


def test_a_series_that_one_process_has_is_there():
    other = process(1, 1, 1)
    Counter("rare", "Rare.", ["kind"], registry=other).labels("x").inc()
    both = merged([snapshot(process(3, 0.5, 2)), snapshot(other)])
    assert value(both, "rare_total", kind="x") == 1


@pytest.mark.parametrize(("states", "together"), [((1, 1), 1), ((1, 0), 0)])
def test_the_service_is_ready_when_all_are(states, together):
    taken = []
    for state in states:
        metrics = Metrics(CollectorRegistry())
        metrics.ready.set(state)
        taken.append(snapshot(metrics.registry))
    assert value(merged(taken), "tessera_ready") == together


def test_of_files_that_all_read_the_worst_counts():
    taken = []
    for lines, expiry in ((2, 500.0), (0, 900.0), (2, 900.0)):
        metrics = Metrics(CollectorRegistry())
        metrics.keys_faulty_lines.set(lines)
        metrics.show_certificate(expiry)
        taken.append(snapshot(metrics.registry))
    assert value(merged(taken), "tessera_keys_faulty_lines") == 2
    assert value(merged(taken), "tessera_tls_certificate_expiry_timestamp_seconds") == 500


def test_what_is_known_of_the_model_is_1_whoever_says_it():
    taken = []
    for _ in range(3):
        metrics = Metrics(CollectorRegistry())
        metrics.model.labels("a", "1", "0").set(1)
        taken.append(snapshot(metrics.registry))
    assert value(merged(taken), "tessera_model_info", name="a", version="1", sha256="0") == 1


def test_memory_is_that_of_all_processes_and_open_files_are_those_of_one():
    own = snapshot(Metrics(CollectorRegistry()).registry)
    both = merged([own, own])
    for name, factor in (
        ("process_resident_memory_bytes", 2),
        ("process_start_time_seconds", 1),
        ("process_open_fds", 1),
        ("process_max_fds", 1),
    ):
        assert value(both, name) == pytest.approx(factor * value(own, name))
