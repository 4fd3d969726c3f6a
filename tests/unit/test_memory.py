"""What a process that has nothing to do gives back to the system."""

import asyncio
import ctypes
import errno
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from app.processes import memory
from app.processes.memory import give_back_at_rest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps it, and gives it back when told")

_PIECE_BYTES, _PIECES = 100_000, 1000
_LOOK_SECONDS = 0.05


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(memory, "_LOOK_SECONDS", _LOOK_SECONDS)
    monkeypatch.setattr(memory, "_RESTING_SHARE", 0.2)  # of so short a time the loop itself takes a hundredth or two
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what other tests left there would be taken again, and not be seen to grow


async def _let_go_of_much(of_model: Callable[[], None], meanwhile: Callable[[], None] = lambda: None) -> float:
    """Take 100 MB in pieces while it is watched, let go of all but the last; return what is given back, in MiB."""
    watch = asyncio.create_task(give_back_at_rest(of_model))
    await asyncio.sleep(0)  # it has seen how much there was
    pieces = [b"x" * (_PIECE_BYTES + index) for index in range(_PIECES)]
    del pieces[:-1]  # the last holds up those before it: the allocator gives back the end of its heap alone
    held = memory._resident_bytes()
    for _ in range(80):
        meanwhile()
        await asyncio.sleep(_LOOK_SECONDS / 4)
    watch.cancel()
    with suppress(asyncio.CancelledError):
        await watch
    return (held - memory._resident_bytes()) / 2**20


def test_at_rest_a_process_gives_back_what_it_does_not_use():
    threads = []
    given_back = asyncio.run(_let_go_of_much(lambda: threads.append(threading.current_thread())))
    assert given_back > 64
    assert len(threads) == 1, "once: nothing was taken again"
    assert threads[0].daemon, "a runtime that does not come back keeps no process from ending"


def test_a_process_that_works_is_not_held_up():
    def work() -> None:
        end = time.process_time() + _LOOK_SECONDS / 4
        while time.process_time() < end:
            pass

    asked: list[None] = []
    assert asyncio.run(_let_go_of_much(lambda: asked.append(None), work)) < 16
    assert not asked


def test_little_is_kept_for_the_next_patch(monkeypatch):
    monkeypatch.setattr(memory, "_MUCH_BYTES", 2**30)
    monkeypatch.setattr(memory, "_MUCH_SECONDS", 600)
    asked: list[None] = []
    assert asyncio.run(_let_go_of_much(lambda: asked.append(None))) < 16
    assert not asked


def test_a_runtime_that_fails_is_named_in_the_log_and_the_rest_is_given_back(caplog):
    def fail() -> None:
        raise RuntimeError("no memory to give memory back")

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(_let_go_of_much(fail)) > 64
    assert caplog.messages == ["the model's runtime gave no memory back"]


def test_what_cannot_be_begun_or_measured_now_is_done_later_and_named_once(monkeypatch, caplog):
    start, measure, calls = threading.Thread.start, memory._resident_bytes, 0

    def start_later(thread: threading.Thread) -> None:
        nonlocal calls
        calls += thread.name == "at rest"
        if thread.name == "at rest" and calls <= 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    def measure_later() -> int:
        nonlocal measured
        measured += 1
        if measured == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return measure()

    measured = 0
    monkeypatch.setattr(threading.Thread, "start", start_later)
    monkeypatch.setattr(memory, "_resident_bytes", measure_later)
    asked = asyncio.Event()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        watch = asyncio.create_task(give_back_at_rest(lambda: loop.call_soon_threadsafe(asked.set)))
        await asyncio.wait_for(asked.wait(), 20)
        watch.cancel()

    asyncio.run(scenario())
    assert calls == 3
    assert caplog.messages == ["memory that is not used is not given back for now"]


@pytest.mark.parametrize(
    ("held", "works_before", "asked"),
    [
        ([100, 140, 101, 101, 140, 101, 101], [], 2),  # given back, and taken again
        ([100, 140, 139, 139, 139, 139, 139], [], 1),  # it is needed: not asked again and again
        ([100, 140, 139, 139, 180, 180, 180], [], 2),  # more is needed than before
        ([140, 140, 100, 100, 140, 101, 101], [], 1),  # less is
        ([100, 140, 900, 110, 150, 110, 110], [], 2),  # what work takes meanwhile is not needed
        ([100, 140, 140, 140, 101, 101, 101], [1, 2], 1),  # not before it rests
        ([100, 110, 110, 101, 101, 101, 101], [1], 1),  # little, after much work
        ([100, 110, 110, 110, 110, 110, 110], [], 0),  # little, after little work
    ],
)
def test_it_is_asked_once_for_what_is_not_needed(monkeypatch, held, works_before, asked):
    """What a process holds, in MiB, at the start, at each look, and as soon as it has given back.

    Before those of them that `works_before` names it does much work.
    """
    measured, clock, calls = 0, 0.0, []

    def resident_bytes() -> int:
        nonlocal measured
        if measured == len(held):
            raise EOFError
        measured += 1
        return held[measured - 1] * 2**20

    def process_time() -> float:  # asked twice before each look
        nonlocal clock
        clock += 0.3 if measured in works_before else 0
        return clock

    monkeypatch.setattr(memory, "_resident_bytes", resident_bytes)
    monkeypatch.setattr(memory.time, "process_time", process_time)
    with suppress(EOFError):
        asyncio.run(give_back_at_rest(lambda: calls.append(None)))
    assert len(calls) == asked
