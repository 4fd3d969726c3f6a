from dataclasses import replace
from pathlib import Path

import pytest

from app.processes import memory_limit
from app.processes.layout import Layout
from app.processes.memory_limit import warn_of_little_memory
from app.settings import Settings

ON_CPU = Layout(fronts=2, shared_engine=False, supervised=True)


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Files of the two kinds of container's limits, none of which is there yet, on a machine of 64 GiB."""
    limits = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(memory_limit, "_GROUP_LIMITS", limits)
    monkeypatch.setattr(memory_limit.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**24}.__getitem__)
    return limits


def test_a_container_with_less_than_its_cores_may_take_is_told_of(group, caplog):
    group[0].write_text(f"{4 * 2**30}\n")
    warn_of_little_memory(Settings(cores=32), ON_CPU)
    assert caplog.messages == [
        "large patches on 32 cores may take 8.3 GiB of memory, and the limit is 4.0 GiB: raise it, or lower --cores or"
        " --max-pixels-at-once"
    ]


def test_what_the_documentation_says_four_gib_carry(group, caplog):
    documented = "4 GiB carry 11 cores"
    assert documented in Path("docs/configuration.md").read_text()
    group[0].write_text(f"{4 * 2**30}\n")
    warn_of_little_memory(Settings(cores=11), ON_CPU)
    assert not caplog.messages
    warn_of_little_memory(Settings(cores=12), ON_CPU)
    assert caplog.messages


def test_the_older_kind_of_container_has_a_limit_too(group, caplog):
    group[1].write_text(f"{2 * 2**30}\n")
    warn_of_little_memory(Settings(cores=8), ON_CPU)
    assert "the limit is 2.0 GiB" in caplog.text


@pytest.mark.parametrize("unlimited", ["max\n", f"{2**63 - 4096}\n"])
def test_without_a_limit_the_machine_has_one(group, caplog, unlimited):
    group[0].write_text(unlimited)
    assert memory_limit.memory_limit() == 64 * 2**30
    warn_of_little_memory(Settings(cores=32), ON_CPU)
    assert not caplog.messages


def test_a_gpu_runs_no_windows_on_cores(group, caplog):
    group[0].write_text(f"{2 * 2**30}\n")
    warn_of_little_memory(Settings(cores=32), replace(ON_CPU, on_gpu=True))
    assert not caplog.messages
