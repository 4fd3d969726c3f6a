import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from app.errors import StartupError
from app.segmentation.workers import Workers
from app.telemetry.metrics import Metrics
from tests.fakes import Held

pytestmark = pytest.mark.anyio


def threads_of(count: int, calls: int, *, is_small: bool) -> tuple[set[str], int]:
    """Return the names of the threads in which work ran, and the turns of the loop meanwhile."""

    async def scenario() -> tuple[set[str], int]:
        workers, names, turns = Workers(count, Metrics(CollectorRegistry())), set(), 0

        def work() -> None:
            names.add(threading.current_thread().name.split("_")[0])

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        await asyncio.gather(*(workers.run("decode", work, is_small=is_small) for _ in range(calls)))
        counting.cancel()
        await workers.close()
        return names, turns

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("count", "is_small", "where"), [(1, True, "MainThread"), (1, False, "worker"), (2, True, "worker")]
)
def test_small_work_is_handed_over_only_where_another_core_could_do_it(count, is_small, where):
    assert threads_of(count, 8, is_small=is_small)[0] == {where}


def test_small_work_leaves_everything_else_a_turn_in_between():
    assert threads_of(1, 20, is_small=True)[1] >= 20


async def test_a_caller_that_is_cancelled_stays_until_its_work_ends_and_leaves_what_has_not_begun():
    workers, held, queued = Workers(1, Metrics(CollectorRegistry())), Held(), Held()
    working, waiting = (asyncio.create_task(workers.run(None, work)) for work in (held, queued))
    assert await asyncio.to_thread(held.begun.wait, 10)
    waiting.cancel()
    await asyncio.wait((waiting,))
    for _ in range(3):  # once more is no more
        working.cancel()
        await asyncio.sleep(0)
    assert not working.done()
    held.let_go.set()
    await asyncio.wait((working,))
    assert held.ended.is_set()
    assert working.cancelled()
    assert waiting.cancelled()
    await workers.close()
    assert not queued.begun.is_set()


async def test_a_caller_of_an_archive_that_is_cancelled_leaves_at_once():
    workers, held = Workers(1, Metrics(CollectorRegistry()), abandons_when_cancelled=True), Held()
    working = asyncio.create_task(workers.run(None, held))
    assert await asyncio.to_thread(held.begun.wait, 10)
    working.cancel()
    await asyncio.wait((working,))
    assert not held.ended.is_set()
    held.let_go.set()
    await workers.close()


@pytest.mark.parametrize("abandons", [False, True])
def test_work_that_fails_when_nobody_waits_for_it_is_not_logged(caplog, abandons):
    async def scenario() -> None:
        workers, held = Workers(1, Metrics(CollectorRegistry()), abandons_when_cancelled=abandons), Held()

        def fails() -> None:
            held()
            raise OSError("https://archive/studies/1.2.3")

        working = asyncio.create_task(workers.run(None, fails))
        assert await asyncio.to_thread(held.begun.wait, 10)
        working.cancel()
        await asyncio.sleep(0)
        held.let_go.set()
        await asyncio.wait((working,))
        assert working.cancelled()
        await workers.close()
        await asyncio.sleep(0)  # what has ended is told to the loop

    asyncio.run(scenario())
    gc.collect()
    assert caplog.records == []


def no_thread(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Have the system give `after` threads, and then no more."""
    start, left = threading.Thread.start, [after]

    def refuse(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("given", [0, 1])
def test_where_a_thread_cannot_be_had_there_are_no_workers_and_none_of_their_threads(monkeypatch, given):
    before = set(threading.enumerate())  # of which some of another test may be about to end
    no_thread(monkeypatch, after=given)
    with pytest.raises(StartupError, match="a thread for images does not start: can't start new thread; raise the"):
        Workers(2, Metrics(CollectorRegistry()))
    assert set(threading.enumerate()) <= before


class Kept:
    """Stands for an upload that a piece of work holds."""


async def test_workers_need_no_thread_that_is_not_there_from_the_start(monkeypatch):
    """Neither for work nor to be closed; and of what was done, or never begun, nothing stays."""

    workers, held, results = Workers(2, Metrics(CollectorRegistry())), [Held(), Held()], []
    no_thread(monkeypatch)
    working = [asyncio.create_task(workers.run(None, work)) for work in held]
    while not all(work.begun.is_set() for work in held):
        await asyncio.sleep(0.001)
    upload = Kept()
    kept = weakref.ref(upload)
    queued = asyncio.create_task(workers.run(None, partial(results.append, upload)))
    del upload
    await asyncio.sleep(0)
    closing = asyncio.create_task(workers.close())
    await asyncio.wait((queued,))
    assert not closing.done()
    for work in held:
        work.let_go.set()
    await asyncio.gather(*working, closing)
    assert all(work.ended.is_set() for work in held)
    assert queued.cancelled()
    del queued
    gc.collect()
    assert not results
    assert kept() is None


async def test_workers_are_busy_for_as_long_as_all_of_them_are():
    workers, one, other = Workers(2, Metrics(CollectorRegistry())), Held(), Held()
    seen = [workers.busy_seconds]
    working = []
    for held in (one, other):
        working.append(asyncio.create_task(workers.run(None, held)))
        assert await asyncio.to_thread(held.begun.wait, 10)
        await asyncio.sleep(0.001)
        seen.append(workers.busy_seconds)
    one.let_go.set()
    await working[0]
    seen.append(workers.busy_seconds)
    other.let_go.set()
    await working[1]
    await workers.close()
    assert [seconds > 0 for seconds in seen] == [False, False, True, False]
