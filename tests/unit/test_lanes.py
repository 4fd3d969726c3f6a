import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable

import pytest

from app.inference import lanes as lanes_module
from app.inference.cores import Cores
from app.inference.lanes import Lanes, Patience
from app.telemetry.logging import request_id


class Bench:
    """Lanes, and what became of what they were given."""

    def __init__(self, count: int) -> None:
        self.outcomes: asyncio.Queue[object] = asyncio.Queue()
        self.stalls = 0
        self.stalled = asyncio.Event()
        self.lanes: Lanes[str] = Lanes(Cores(count), self._stall)

    def _stall(self) -> None:
        self.stalls += 1
        self.stalled.set()

    def run(self, work: Callable[[], str], seconds: float = 60.0, late_seconds: float = 60.0) -> None:
        self.lanes.run(work, self.outcomes.put_nowait, Patience(late_seconds, seconds))


def bench(scenario: Callable[[Bench], Awaitable[None]], count: int = 1) -> None:
    async def whole() -> None:
        async with asyncio.timeout(20):
            await scenario(Bench(count))

    asyncio.run(whole())


@pytest.fixture
def gate():
    """What keeps a lane busy; opened in the end, so that no thread is left behind."""
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def quick_ticks(monkeypatch):
    monkeypatch.setattr(lanes_module, "_TICK_SECONDS", 0.01)


def held(gate: threading.Event, answer: str = "late") -> Callable[[], str]:
    def work() -> str:
        assert gate.wait(20)
        return answer

    return work


def test_each_lane_runs_one_thing_and_tells_what_came_of_it(gate):
    async def scenario(bench: Bench) -> None:
        bench.run(held(gate))
        assert bench.lanes.free == 1
        bench.run(lambda: threading.current_thread().name)
        assert bench.lanes.free == 0
        assert str(await bench.outcomes.get()).startswith("lane ")
        assert bench.lanes.free == 1
        gate.set()
        assert await bench.outcomes.get() == "late"
        await bench.lanes.close()
        assert bench.stalls == 0

    bench(scenario, count=2)


@pytest.mark.parametrize("error", [ValueError("bad"), MemoryError(), SystemExit(3), KeyboardInterrupt()])
def test_whatever_is_raised_is_handed_over_and_the_lane_goes_on(error):
    def fail() -> str:
        raise error

    async def scenario(bench: Bench) -> None:
        bench.run(fail)
        assert await bench.outcomes.get() is error
        bench.run(lambda: "fine")
        assert await bench.outcomes.get() == "fine"
        await bench.lanes.close()

    bench(scenario)


def test_a_lane_that_runs_too_long_is_reported_once_and_what_it_says_later_is_not_heard(gate, quick_ticks):
    async def scenario(bench: Bench) -> None:
        bench.run(held(gate), seconds=0.05)
        bench.run(held(gate), seconds=60)
        await bench.stalled.wait()
        gate.set()
        await bench.lanes.close()
        for thread in bench.lanes._threads:
            await asyncio.to_thread(thread.join)
        await asyncio.sleep(0.05)  # several ticks
        assert bench.outcomes.empty()
        assert bench.stalls == 1

    bench(scenario, count=2)


def test_what_runs_for_long_is_late_until_it_ends(gate, quick_ticks, caplog):
    async def scenario(bench: Bench) -> None:
        bench.run(held(gate), late_seconds=0.05)
        assert not bench.lanes.late
        while not bench.lanes.late:
            await asyncio.sleep(0.01)
        gate.set()
        assert await bench.outcomes.get() == "late"
        assert not bench.lanes.late
        await bench.lanes.close()
        assert bench.stalls == 0

    bench(scenario)
    assert [record.getMessage()[:20] for record in caplog.records] == ["a batch has run for "]


def test_what_is_late_is_not_told_as_of_the_request_that_began_the_watch(gate, quick_ticks):
    told = []

    async def scenario(bench: Bench) -> None:
        request_id.set("the one that came first, and was answered at once")
        bench.run(lambda: "quick")
        bench.run(held(gate), late_seconds=0.02)
        assert await bench.outcomes.get() == "quick"
        while not told:
            await asyncio.sleep(0.01)
        gate.set()
        await bench.outcomes.get()

    handler = logging.Handler()
    handler.emit = lambda record: told.append((record.getMessage(), request_id.get()))
    logger = logging.getLogger(lanes_module.__name__)
    logger.addHandler(handler)
    try:
        bench(scenario, count=2)
    finally:
        logger.removeHandler(handler)
    assert [current for _, current in told] == [None]


def test_a_loop_that_has_no_turns_does_not_take_its_lanes_for_stuck(quick_ticks):
    started = threading.Event()

    def work() -> str:
        started.set()
        return "done"

    async def scenario(bench: Bench) -> None:
        bench.run(work, seconds=0.05)
        assert started.wait(20)
        threading.Event().wait(0.3)  # as if the machine stood still: six times what it may take, in no turn at all
        assert await bench.outcomes.get() == "done"
        assert bench.stalls == 0
        await bench.lanes.close()

    bench(scenario)


def test_closing_waits_for_what_runs_and_ends_the_threads(gate):
    async def scenario(bench: Bench) -> None:
        bench.run(held(gate))
        closing = asyncio.create_task(bench.lanes.close())
        await asyncio.sleep(0)
        assert not closing.done()
        gate.set()
        await closing
        assert await bench.outcomes.get() == "late"
        for thread in bench.lanes._threads:
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

    bench(scenario, count=3)


def test_closing_does_not_wait_for_a_lane_that_gets_stuck_meanwhile(gate, quick_ticks):
    async def scenario(bench: Bench) -> None:
        bench.run(held(gate), seconds=0.05)
        await bench.lanes.close()
        assert bench.stalls == 1

    bench(scenario)


def test_a_lane_that_ends_after_its_loop_harms_nobody(gate, quick_ticks):
    threads: list[threading.Thread] = []

    async def scenario(bench: Bench) -> None:
        threads.extend(bench.lanes._threads)
        bench.run(held(gate), seconds=0.05)
        await bench.stalled.wait()
        await bench.lanes.close()

    bench(scenario)
    gate.set()  # the loop is closed
    threads[0].join(10)
    assert not threads[0].is_alive()
