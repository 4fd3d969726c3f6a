"""What `/health/ready` answers, and what the log says when that changes."""

import logging
import math

import pytest

from app.api.running import Phase
from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter


def asked(client):
    """Return what a probe is told, twice the same; the answer is the same as the gauge's."""
    answer = client.get("/health/ready")
    assert client.get("/health/ready").json() == answer.json()
    running = client.app.state.running
    gauge = running.metrics.registry.get_sample_value("tessera_ready")
    assert (answer.status_code, gauge) == ((503, 0.0) if "reason" in answer.json() else (200, 1.0))
    return answer.json()


def told(caplog):
    return [
        (record.levelname, record.getMessage(), getattr(record, "reason", None))
        for record in caplog.records
        if record.name == "app.api.running"
    ]


def late(running, is_so):
    running.service.segmenter.late = is_so


def stuck(running, is_so):
    running.stalled = is_so


def stopped(running, is_so):
    running.service.segmenter.ready = not is_so


def held_up(running, is_so):
    workers = running.service.workers
    workers._begun = dict.fromkeys(range(workers._count), -math.inf if is_so else math.inf)


def leaving(running, is_so):
    running.phase = Phase.LEAVING if is_so else Phase.SERVING


@pytest.mark.parametrize(
    ("make", "reason", "level", "words"),
    [
        (late, "model-late", "WARNING", "takes much longer than it should"),
        (stuck, "model-stuck", "WARNING", "does not answer any more"),
        (stopped, "model-stopped", "WARNING", "the model has stopped"),
        (held_up, "workers-late", "WARNING", "each thread that decodes"),
        (leaving, "stopping", "INFO", "the service stops"),
    ],
)
def test_a_fall_of_readiness_has_a_reason_and_is_logged_once_as_is_its_return(
    client, caplog, make, reason, level, words
):
    caplog.set_level(logging.INFO)
    assert asked(client) == {"status": "ready"}
    assert told(caplog) == []

    make(client.app.state.running, True)
    assert asked(client) == {"status": "not ready", "reason": reason}
    ((said_level, said, said_reason),) = told(caplog)
    assert (said_level, said_reason) == (level, reason)
    assert said.startswith("not ready: ")
    assert words in said

    make(client.app.state.running, False)
    assert asked(client) == {"status": "ready"}
    assert told(caplog)[1:] == [("INFO", "ready again", None)]


def test_another_reason_is_another_line(client, caplog):
    running = client.app.state.running
    for make in (late, stuck, leaving):
        make(running, True)
        asked(client)
    assert [reason for _, _, reason in told(caplog)] == ["model-late", "model-stuck"]
    leaving(running, False)
    stuck(running, False)
    asked(client)
    assert [reason for _, _, reason in told(caplog)] == ["model-late", "model-stuck", "model-late"]


@pytest.mark.parametrize("path", ["/health/ready", "/metrics"])
def test_a_change_is_logged_whether_a_probe_or_prometheus_asks(client, caplog, path):
    running = client.app.state.running
    late(running, True)
    assert told(caplog) == []
    client.get(path)
    assert [reason for _, _, reason in told(caplog)] == ["model-late"]


def test_a_service_that_has_not_started_says_so_to_whoever_asks_and_not_the_log(caplog):
    caplog.set_level(logging.INFO)
    running = create_app(Settings(cores=1), ColourSegmenter()).state.running
    assert running.told_readiness() == "starting"
    assert running.metrics.registry.get_sample_value("tessera_ready") == 0
    assert told(caplog) == []


def test_one_that_retires_is_ready_whatever_its_own_model_does(client):
    running = client.app.state.running
    running.phase = Phase.RETIRING
    late(running, True)
    assert asked(client) == {"status": "ready"}
