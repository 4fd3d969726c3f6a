"""What a signal asks for."""

import os
import signal
import sys

import pytest

from app.processes.signals import reload_signals


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("in_a_terminal", "asks"), [(False, (signal.SIGHUP,)), (True, ())])
def test_sighup_asks_for_a_reload_but_ends_a_service_in_a_terminal(monkeypatch, in_a_terminal, asks):
    monkeypatch.setattr(os, "isatty", lambda _: in_a_terminal)
    assert reload_signals() == asks
