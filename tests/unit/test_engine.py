"""A front and the engine with their exchange between them, here on one event loop."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.errors import MODEL_GONE, STOPPING, InferenceFailed, InvalidBundle, ModelNotReady, OutOfMemory
from app.inference import lanes
from app.inference.batch import BatchLimits
from app.inference.engine import Engine
from app.inference.exchange import Asked, Exchange, Outcome, Verb
from app.inference.model import BatchedSegmenter
from app.inference.remote import EngineFacts, RemoteSegmenter
from app.inference.result import BatchResult, WindowResult
from app.processes.sources import SharedEngine
from app.telemetry.metrics import Metrics
from tests.fakes import manifest

pytestmark = pytest.mark.anyio

KNOWN = manifest(window_px=64)


def window(value: int, height: int = 4, width: int = 6) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


class Model:
    """Stands in for the batched segmenter: keeps what it is asked until it is told what to answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[np.ndarray, asyncio.Future[WindowResult]]] = []
        self.closed = False
        self.late = False
        self.ready = True

    def enqueue(self, image: np.ndarray, queued_at: float) -> asyncio.Future[WindowResult]:
        if self.closed:
            raise ModelNotReady("the model is not started")
        reply: asyncio.Future[WindowResult] = asyncio.get_running_loop().create_future()
        self.asked.append((image, reply))
        return reply

    def answer(self, index: int) -> None:
        image, reply = self.asked[index]
        first = image[..., 0]
        reply.set_result(WindowResult(first, first // 2, image[0, 0].astype(np.float32)))


class Pair:
    def __init__(self, slots: int) -> None:
        self.model = Model()
        self.exchange = Exchange(KNOWN, slots)
        self.metrics = Metrics(CollectorRegistry())
        facts = EngineFacts(KNOWN, "cpu", "ColourProvider", 4)
        self.front = RemoteSegmenter(facts, self.exchange)
        self.engine = Engine(self.model, [self.exchange])

    async def asked(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.model.asked) < count:
                await asyncio.sleep(0.001)


def run(scenario: Callable[[Pair], Awaitable[None]], slots: int = 4) -> None:
    async def whole() -> None:
        pair = Pair(slots)
        await pair.front.start(pair.metrics)
        pair.engine.start()
        try:
            await scenario(pair)
        finally:
            await pair.front.close()
            if pair.exchange.engine_end.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(pair.exchange.engine_end.fileno())
            for end in pair.exchange.ends:
                end.close()

    asyncio.run(asyncio.wait_for(whole(), 10))


def test_a_window_comes_back_as_the_model_answered_it():
    async def scenario(pair: Pair) -> None:
        asking = asyncio.create_task(pair.front.segment(window(8)))
        await pair.asked(1)
        assert pair.model.asked[0][0].shape == (4, 6, 3)
        pair.model.answer(0)
        result = await asking
        assert result.class_map.tolist() == [[8] * 6] * 4
        assert result.confidence.tolist() == [[4] * 6] * 4
        assert result.label_probabilities.tolist() == [8, 8, 8]

    run(scenario)


def test_the_largest_window_fits():
    async def scenario(pair: Pair) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        asking = asyncio.create_task(pair.front.segment(pixels))
        await pair.asked(1)
        assert (pair.model.asked[0][0] == pixels).all()
        pair.model.answer(0)
        assert ((await asking).class_map == pixels[..., 0]).all()

    run(scenario)


def test_windows_in_flight_do_not_touch_each_other_and_may_be_answered_in_any_order():
    async def scenario(pair: Pair) -> None:
        asking = [asyncio.create_task(pair.front.segment(window(value, height=64, width=64))) for value in range(4)]
        await pair.asked(4)
        for index in (2, 0, 3, 1):
            pair.model.answer(index)
        for value, result in enumerate(await asyncio.gather(*asking)):
            assert (result.class_map == value).all()

    run(scenario)


def test_more_windows_than_slots_wait_their_turn_and_are_counted_as_waiting():
    async def scenario(pair: Pair) -> None:
        asking = [asyncio.create_task(pair.front.segment(window(value))) for value in range(5)]
        await pair.asked(2)
        await asyncio.sleep(0.01)
        assert len(pair.model.asked) == 2
        assert pair.metrics.registry.get_sample_value("tessera_queue_depth") == 3
        for index in range(5):
            await pair.asked(index + 1)
            pair.model.answer(index)
        results = await asyncio.gather(*asking)
        assert [int(result.class_map[0, 0]) for result in results] == list(range(5))

    run(scenario, slots=2)


def test_a_failure_is_the_callers_alone(caplog):
    async def scenario(pair: Pair) -> None:
        bad, good = (asyncio.create_task(pair.front.segment(window(value))) for value in (1, 2))
        await pair.asked(2)
        pair.model.asked[0][1].set_exception(InferenceFailed("the model failed on this image"))
        pair.model.answer(1)
        with pytest.raises(InferenceFailed) as failed:
            await bad
        assert (await good).class_map[0, 0] == 2
        [line] = caplog.records  # the front's; the model, which is a fake here, says why
        assert (line.name, line.getMessage()) == ("app.inference.remote", "the model failed on a window")
        assert failed.value.__notes__ == ["the engine's log has the cause"]

    run(scenario)


FAULTS = {"memory": (MemoryError(), OutOfMemory), "other": (ValueError("other maps than asked for"), InferenceFailed)}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_cannot_be_copied_is_told_its_caller_and_costs_no_slot_and_no_other_answer(monkeypatch, fault):
    cause, told = FAULTS[fault]

    async def scenario(pair: Pair) -> None:
        asking = [asyncio.create_task(pair.front.segment(window(value))) for value in range(3)]
        await pair.asked(3)
        take, calls = pair.exchange.take, iter([cause, None, cause])

        def take_or_fail(slot: int, shape: tuple[int, int]) -> WindowResult:
            if (error := next(calls, None)) is not None:
                raise error
            return take(slot, shape)

        monkeypatch.setattr(pair.exchange, "take", take_or_fail)
        for index in range(3):  # whose answers the front reads together
            pair.model.answer(index)
        bad, good, too = await asyncio.gather(*asking, return_exceptions=True)
        assert type(bad) is type(too) is told
        assert bad.__cause__ is cause
        assert good.class_map[0, 0] == 1
        again = [asyncio.create_task(pair.front.segment(window(value))) for value in range(3)]
        await pair.asked(6)  # all slots are free
        for index in range(3, 6):
            pair.model.answer(index)
        assert [result.class_map[0, 0] for result in await asyncio.gather(*again)] == [0, 1, 2]

    run(scenario, slots=3)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_the_engine_cannot_hand_over_is_told_its_caller(monkeypatch, caplog, fault):
    cause, told = FAULTS[fault]

    async def scenario(pair: Pair) -> None:
        def fail(slot: int, result: WindowResult) -> None:
            raise cause

        asking = asyncio.create_task(pair.front.segment(window(1)))
        await pair.asked(1)
        with monkeypatch.context() as patched:
            patched.setattr(pair.exchange, "put", fail)
            pair.model.answer(0)
            with pytest.raises(told):
                await asyncio.wait_for(asking, 10)
        again = asyncio.create_task(pair.front.segment(window(2)))
        await pair.asked(2)
        pair.model.answer(1)
        assert (await again).class_map[0, 0] == 2

    run(scenario, slots=1)
    assert ("could not be handed over" in caplog.text) == (told is InferenceFailed)


def test_who_asks_is_told_the_same_of_a_stuck_model_as_by_one_in_its_own_process():
    """An engine takes no windows only where its model is stuck: it ends after its fronts."""

    async def scenario(pair: Pair) -> None:
        pair.model.closed = True
        with pytest.raises(ModelNotReady) as told:
            await pair.front.segment(window(1))
        assert str(told.value) == MODEL_GONE

    run(scenario)


def test_a_front_that_stops_says_so():
    async def scenario(pair: Pair) -> None:
        asking = asyncio.create_task(pair.front.segment(window(1)))
        await pair.asked(1)
        await pair.front.close()
        with pytest.raises(ModelNotReady, match=STOPPING):
            await asking
        with pytest.raises(ModelNotReady, match=STOPPING):
            await pair.front.segment(window(1))

    run(scenario)


def test_a_caller_that_gives_up_takes_its_window_off_the_queue_and_frees_its_slot():
    async def scenario(pair: Pair) -> None:
        gone = asyncio.create_task(pair.front.segment(window(1)))
        await pair.asked(1)
        gone.cancel()
        next_one = asyncio.create_task(pair.front.segment(window(2)))
        await pair.asked(2)  # the one slot is free again
        assert pair.model.asked[0][1].cancelled()
        pair.model.answer(1)
        assert (await next_one).class_map[0, 0] == 2

    run(scenario, slots=1)


def test_a_withdrawal_that_crosses_its_answer_does_no_harm():
    async def scenario(pair: Pair) -> None:
        gone = asyncio.create_task(pair.front.segment(window(1)))
        await pair.asked(1)
        pair.model.answer(0)
        gone.cancel()
        next_one = asyncio.create_task(pair.front.segment(window(2)))
        await pair.asked(2)
        pair.model.answer(1)
        assert (await next_one).class_map[0, 0] == 2

    run(scenario, slots=1)


def test_who_gives_up_as_its_answer_comes_leaves_the_slot_to_whom_it_has_gone_to():
    """The answer frees the slot before its caller is woken, and another may have it by then."""

    async def whole() -> None:
        exchange = Exchange(KNOWN, 1)
        front = RemoteSegmenter(EngineFacts(KNOWN, "cpu", "ColourProvider", 4), exchange)
        await front.start(Metrics(CollectorRegistry()))
        one = asyncio.create_task(front.segment(window(1)))
        await asyncio.sleep(0)
        assert [asked.verb for asked in exchange.asked()] == [Verb.SEGMENT]
        exchange.put(0, WindowResult(window(1)[..., 0], window(1)[..., 0], np.zeros(3, np.float32)))
        exchange.answer(0, Outcome.SEGMENTED)
        front._read()
        other = front.segment(window(2))
        other.send(None)  # it takes the slot, and waits for its answer
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert [asked.verb for asked in exchange.asked()] == [Verb.SEGMENT]
        other.close()
        await front.close()
        for end in exchange.ends:
            end.close()

    asyncio.run(whole())


def test_the_memory_of_an_exchange_ends_with_its_processes():
    exchange = Exchange(KNOWN, 2)
    exchange.image(0, (4, 6))[...] = 1
    exchange.close()
    exchange.close()
    with pytest.raises(ValueError, match="closed"):
        exchange.image(0, (4, 6))


def test_the_longest_wait_is_told_the_engine():
    exchange = Exchange(KNOWN, 2)
    exchange.ask(Asked(Verb.SEGMENT, 1, (32, 64), 12.5))
    assert exchange.asked() == [Asked(Verb.SEGMENT, 1, (32, 64), 12.5)]
    assert exchange.asked() == []
    for end in exchange.ends:
        end.close()


@pytest.mark.parametrize("slots", [64, 128])  # the system's default may have room for the messages of the first alone
def test_all_that_a_front_can_say_before_the_engine_reads_has_room(slots):
    exchange = Exchange(KNOWN, slots)
    for slot in range(slots):
        exchange.ask(Asked(Verb.SEGMENT, slot, (4, 4), 0.0))
    assert len(exchange.asked() or ()) == slots
    for slot in range(slots):
        exchange.answer(slot, Outcome.SEGMENTED)
    for slot in range(slots):
        exchange.ask(Asked(Verb.WITHDRAW, slot, (4, 4), 0.0))  # it crosses the answer
    assert len(exchange.answered() or ()) == slots
    for slot in range(slots):
        exchange.ask(Asked(Verb.SEGMENT, slot, (4, 4), 0.0))
        exchange.ask(Asked(Verb.WITHDRAW, slot, (4, 4), 0.0))
    assert len(exchange.asked() or ()) == 3 * slots
    for end in exchange.ends:
        end.close()


def test_a_window_for_which_there_is_no_room_is_refused_and_costs_no_slot(monkeypatch):
    def no_room(asked: Asked) -> None:
        raise BlockingIOError

    async def scenario(pair: Pair) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(pair.exchange, "ask", no_room)
            with pytest.raises(ModelNotReady, match="takes no more images now"):
                await pair.front.segment(window(1))
        assert pair.front.ready
        with pytest.raises(ValueError, match="broadcast"):
            await pair.front.segment(np.zeros((4, 4, 2), np.uint8))
        asking = asyncio.create_task(pair.front.segment(window(2)))
        await pair.asked(1)
        pair.model.answer(0)
        assert (await asking).class_map[0, 0] == 2

    run(scenario, slots=1)


def test_a_withdrawal_for_which_there_is_no_room_is_left_out(monkeypatch):
    def no_room(asked: Asked) -> None:
        raise BlockingIOError

    async def scenario(pair: Pair) -> None:
        gone = asyncio.create_task(pair.front.segment(window(1)))
        await pair.asked(1)
        with monkeypatch.context() as patched:
            patched.setattr(pair.exchange, "ask", no_room)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        pair.model.answer(0)  # which frees the slot
        asking = asyncio.create_task(pair.front.segment(window(2)))
        await pair.asked(2)
        pair.model.answer(1)
        assert (await asking).class_map[0, 0] == 2

    run(scenario, slots=1)


def test_without_its_engine_a_front_is_not_ready_and_tells_everyone_who_waits():
    async def scenario(pair: Pair) -> None:
        asking = [asyncio.create_task(pair.front.segment(window(value))) for value in range(3)]
        await pair.asked(2)
        loop = asyncio.get_running_loop()
        loop.remove_reader(pair.exchange.engine_end.fileno())
        pair.exchange.engine_end.close()
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(outcome, ModelNotReady)
            assert str(outcome) == MODEL_GONE
        assert not pair.front.ready
        with pytest.raises(ModelNotReady, match="try again in a few seconds"):
            await pair.front.segment(window(1))

    run(scenario, slots=2)


def test_an_engine_that_ends_just_now_is_not_ready_and_no_error_of_the_service():
    async def scenario(pair: Pair) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(pair.exchange.engine_end.fileno())
        loop.remove_reader(pair.exchange.front_end.fileno())  # the front does not know yet
        pair.exchange.engine_end.close()
        with pytest.raises(ModelNotReady, match="the model does not answer"):
            await pair.front.segment(window(1))
        assert not pair.front.ready

    run(scenario)


def test_who_gives_up_just_when_the_engine_ends_is_cancelled_and_nothing_else():
    async def scenario(pair: Pair) -> None:
        gone = asyncio.create_task(pair.front.segment(window(1)))
        await pair.asked(1)
        loop = asyncio.get_running_loop()
        loop.remove_reader(pair.exchange.engine_end.fileno())
        loop.remove_reader(pair.exchange.front_end.fileno())
        pair.exchange.engine_end.close()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone

    run(scenario)


async def test_an_engine_knows_when_the_last_of_its_fronts_has_ended_and_answers_nobody():
    exchanges = [Exchange(KNOWN, 2) for _ in range(2)]
    alone = asyncio.Event()
    model = Model()
    Engine(model, exchanges).start(alone.set)
    exchanges[0].image(0, (4, 6))[...] = 1
    exchanges[0].ask(Asked(Verb.SEGMENT, 0, (4, 6), 0.0))
    exchanges[0].front_end.close()
    async with asyncio.timeout(10):
        while not model.asked:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert not alone.is_set()
        model.closed = True
        exchanges[1].ask(Asked(Verb.SEGMENT, 0, (4, 6), 0.0))
        exchanges[1].front_end.close()  # with a window on its way
        await alone.wait()
    model.answer(0)
    await asyncio.sleep(0.01)
    for exchange in exchanges:
        exchange.close()


class Held:
    """A session whose batches end when they may."""

    device, provider = "cpu", "HeldProvider"

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def run(self, images: np.ndarray) -> BatchResult:
        self.began.set()
        self.may_end.wait(20)
        shape = images.shape[:3]
        return BatchResult(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.zeros((shape[0], 3), np.float32))


@pytest.mark.parametrize("gives_up", [False, True])
async def test_every_front_is_told_that_a_batch_is_late_and_when_it_is_over(monkeypatch, gives_up):
    """Also those whose windows are not in it, and where nobody waits for it any more."""
    monkeypatch.setattr(lanes, "_TICK_SECONDS", 0.01)

    async with asyncio.timeout(20):
        session = Held()
        model = BatchedSegmenter(KNOWN, session, BatchLimits(1, 4, 10**6, stall_seconds=0.3, first_seconds=3600))
        exchanges = [Exchange(KNOWN, 2) for _ in range(2)]
        fronts = [RemoteSegmenter(EngineFacts.of(model), exchange) for exchange in exchanges]
        await model.start(Metrics(CollectorRegistry()))
        for front in fronts:
            await front.start(Metrics(CollectorRegistry()))
        alone = asyncio.Event()
        Engine(model, exchanges).start(alone.set)
        assert not any(front.late for front in fronts)

        asking = asyncio.create_task(fronts[0].segment(window(1, 32, 32)))
        while not session.began.is_set():
            await asyncio.sleep(0.001)
        if gives_up:
            asking.cancel()
        while not all(front.late for front in fronts):
            await asyncio.sleep(0.01)
        assert all(front.ready for front in fronts)

        session.may_end.set()
        while any(front.late for front in fronts):
            await asyncio.sleep(0.01)
        assert len(await asyncio.gather(asking, return_exceptions=True)) == 1
        assert asking.cancelled() == gives_up
        for front, exchange in zip(fronts, exchanges, strict=True):
            await front.close()
            exchange.front_end.close()
        await alone.wait()
        await model.close()
        for exchange in exchanges:
            exchange.close()


def test_a_stuck_model_does_not_look_ready_to_the_fronts_until_the_service_has_ended():
    async def scenario(pair: Pair) -> None:
        assert not pair.front.late
        pair.model.ready = False
        async with asyncio.timeout(10):
            while not pair.front.late:
                await asyncio.sleep(0.01)

    run(scenario)


@pytest.mark.parametrize("loaded", [manifest(window_px=128), KNOWN.model_copy(update={"classes": KNOWN.classes[1:]})])
def test_an_engine_that_loaded_a_model_of_other_windows_gets_no_fronts(loaded):
    """A bundle was swapped after the places for windows were made, and before the engine read it."""
    shared = SharedEngine(SimpleNamespace(bundle="bundle"), [], lambda name, be: None)
    shared._exchanges = [Exchange(KNOWN, 1)]
    shared.child = SimpleNamespace(ready=SimpleNamespace(facts=EngineFacts(loaded, "cpu", "ColourProvider", 4)))
    with pytest.raises(InvalidBundle, match="bundle: was changed while it was loaded; try again"):
        shared.segmenters()
    shared.close()
