import logging
import resource

import pytest

from app.processes import descriptors
from app.processes.descriptors import allow_connections
from app.processes.layout import Layout
from app.settings import Settings

TWO_FRONTS = Layout(fronts=2, shared_engine=False, supervised=True)


@pytest.fixture
def limits(monkeypatch):
    """A process that may open 256 files, and raise that to 4096; what it sets is noted."""
    noted = [(256, 4096)]
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda _: noted[-1])
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda _, pair: noted.append(pair))
    return noted


def test_the_limit_is_raised_to_what_the_connections_of_one_process_need(limits, caplog):
    allow_connections(Settings(max_connections=1024), TWO_FRONTS)
    assert limits[1:] == [(512 + 16 + 128, 4096)]
    assert not caplog.records


def test_handshakes_need_as_many_again(limits, tmp_path):
    both = {name: tmp_path / name for name in ("tls_cert", "tls_key")}
    allow_connections(Settings(max_connections=1024, **both), TWO_FRONTS)
    assert limits[-1] == (2 * 512 + 16 + 128, 4096)


@pytest.mark.parametrize("soft", [4096, resource.RLIM_INFINITY])
def test_a_limit_that_is_high_enough_stays(limits, soft):
    limits.append((soft, resource.RLIM_INFINITY))
    allow_connections(Settings(), TWO_FRONTS)
    assert limits[-1] == (soft, resource.RLIM_INFINITY)


def test_a_system_that_refuses_is_told_of(limits, monkeypatch, caplog):
    def refuse(_, pair):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(descriptors.resource, "setrlimit", refuse)
    allow_connections(Settings(), TWO_FRONTS)
    assert "a process may open 256 files, and 512 connections need 656" in caplog.text


def test_a_system_that_allows_fewer_is_told_of(limits, caplog):
    caplog.set_level(logging.WARNING)
    allow_connections(Settings(max_connections=20_000), TWO_FRONTS)
    assert limits[-1] == (4096, 4096)
    assert caplog.messages == [
        "a process may open 4096 files, and 10000 connections need 10144; raise the limit (ulimit -n, LimitNOFILE=) or"
        " lower --max-connections"
    ]
