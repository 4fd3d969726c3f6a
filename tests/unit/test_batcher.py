import asyncio
import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.errors import InferenceFailed, ModelNotReady, OutOfMemory
from app.inference import batcher as batcher_module
from app.inference import lanes
from app.inference.batch import BatchLimits
from app.inference.batcher import Batcher
from app.inference.cores import Cores
from app.inference.result import BatchResult
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


def window(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


class Lane:
    """Stands in for a session: answers each window with its own value, when it is let to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.short = False

    def run(self, images: np.ndarray) -> BatchResult:
        self.batches.append([int(value) for value in images[:, 0, 0, 0]])
        self.entered.release()
        assert self.open.wait(10)
        if self.failure:
            raise self.failure
        kept = images[:-1] if self.short else images
        first = kept[..., 0]
        return BatchResult(first, first, kept[:, 0, 0, :].astype(np.float32))


def new_batcher(lane: Lane, lanes: int = 1, max_batch_size: int = 4, pixels: int = 10**6) -> Batcher:
    return Batcher(lane.run, BatchLimits(lanes, max_batch_size, pixels), Metrics(CollectorRegistry()))


async def entered(lane: Lane, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(lane.entered.acquire, timeout=10)


async def test_an_idle_batcher_runs_a_lone_window_at_once():
    lane = Lane()
    lane.open.set()
    batcher = new_batcher(lane, max_batch_size=32)
    result = await batcher.submit(window(7))
    assert (result.class_map == 7).all()
    assert result.label_probabilities.tolist() == [7, 7, 7]
    await batcher.close()


async def test_what_arrives_while_a_batch_runs_becomes_the_next_batch():
    lane = Lane()
    batcher = new_batcher(lane)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    rest = [asyncio.create_task(batcher.submit(window(value))) for value in range(1, 7)]
    await asyncio.sleep(0)
    lane.open.set()
    results = await asyncio.gather(first, *rest)
    assert [int(result.class_map[0, 0]) for result in results] == list(range(7))
    assert lane.batches == [[0], [1, 2, 3, 4], [5, 6]]
    await batcher.close()


async def test_only_windows_of_one_shape_share_a_batch_and_the_oldest_goes_first():
    lane = Lane()
    batcher = new_batcher(lane)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    rest = [asyncio.create_task(batcher.submit(image)) for image in (window(1, 8), window(2), window(3, 8), window(4))]
    await asyncio.sleep(0)
    lane.open.set()
    await asyncio.gather(first, *rest)
    assert lane.batches == [[0], [1, 3], [2, 4]]
    await batcher.close()


async def test_who_has_waited_longest_is_next_whenever_it_came_here():
    lane = Lane()
    batcher = new_batcher(lane, max_batch_size=2)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    rest = [batcher.enqueue(window(value), queued_at=float(value)) for value in (3, 1, 4, 2)]
    lane.open.set()
    await asyncio.gather(first, *rest)
    assert lane.batches == [[0], [1, 2], [3, 4]]
    await batcher.close()


async def test_lanes_run_side_by_side():
    lane = Lane()
    batcher = new_batcher(lane, lanes=2)
    busy = [asyncio.create_task(batcher.submit(window(value))) for value in (0, 1)]
    await entered(lane, 2)
    assert sorted(lane.batches) == [[0], [1]]
    lane.open.set()
    await asyncio.gather(*busy)
    await batcher.close()


async def test_idle_lanes_share_what_waits():
    """A dispatch with two idle lanes and four windows gives each lane two of them."""

    lane = Lane()
    lane.open.set()
    batcher = new_batcher(lane, lanes=2)
    dispatch, batcher._dispatch = batcher._dispatch, lambda: None
    waiting = [asyncio.create_task(batcher.submit(window(value))) for value in range(4)]
    await asyncio.sleep(0)
    batcher._dispatch = dispatch
    dispatch()
    await asyncio.gather(*waiting)
    assert sorted(lane.batches) == [[0, 1], [2, 3]]
    await batcher.close()


async def test_one_window_that_fails_spares_its_batch():
    class Picky(Lane):
        def run(self, images: np.ndarray) -> BatchResult:
            result = super().run(images)
            if (images == 3).any():
                raise RuntimeError("cannot do 3")
            return result

    lane = Picky()
    batcher = new_batcher(lane, max_batch_size=8)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    rest = [asyncio.create_task(batcher.submit(window(value))) for value in range(1, 6)]
    await asyncio.sleep(0)
    lane.open.set()
    await first
    outcomes = await asyncio.gather(*rest, return_exceptions=True)
    assert [isinstance(outcome, InferenceFailed) for outcome in outcomes] == [False, False, True, False, False]
    assert [int(result.class_map[0, 0]) for result in outcomes if not isinstance(result, Exception)] == [1, 2, 4, 5]
    await batcher.close()


async def test_large_windows_make_smaller_batches():
    lane = Lane()
    batcher = new_batcher(lane, max_batch_size=8, pixels=2 * 4 * 4)
    first = asyncio.create_task(batcher.submit(window(0, 99)))  # more pixels than the limit, and alone all the same
    await entered(lane)
    rest = [asyncio.create_task(batcher.submit(window(value))) for value in (1, 2, 3)]
    await asyncio.sleep(0)
    lane.open.set()
    await asyncio.gather(first, *rest)
    assert lane.batches == [[0], [1, 2], [3]]
    await batcher.close()


async def test_batches_have_one_of_few_sizes():
    lane = Lane()
    batcher = new_batcher(lane, max_batch_size=6)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    rest = [asyncio.create_task(batcher.submit(window(value))) for value in range(1, 8)]
    await asyncio.sleep(0)
    lane.open.set()
    await asyncio.gather(first, *rest)
    assert lane.batches == [[0], [1, 2, 3, 4], [5, 6], [7]]
    await batcher.close()


async def test_a_window_whose_caller_left_costs_no_inference():
    lane = Lane()
    batcher = new_batcher(lane)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    gone = asyncio.create_task(batcher.submit(window(1)))
    stays = asyncio.create_task(batcher.submit(window(2)))
    await asyncio.sleep(0)
    gone.cancel()
    lane.open.set()
    await asyncio.gather(first, stays)
    assert lane.batches == [[0], [2]]
    await batcher.close()


async def test_a_caller_that_leaves_during_inference_does_not_stop_the_batcher():
    lane = Lane()
    batcher = new_batcher(lane)
    gone = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    gone.cancel()
    lane.open.set()
    assert (await batcher.submit(window(1))).class_map[0, 0] == 1
    await batcher.close()


async def test_a_failure_reaches_its_callers_and_the_batcher_goes_on():
    lane = Lane()
    lane.open.set()
    lane.failure = RuntimeError("out of memory")
    batcher = new_batcher(lane)
    with pytest.raises(InferenceFailed) as caught:
        await batcher.submit(window(0))
    assert isinstance(caught.value.__cause__, RuntimeError)
    lane.failure = None
    assert (await batcher.submit(window(1))).class_map[0, 0] == 1
    await batcher.close()


async def test_a_failure_is_logged_with_its_cause_once_for_each_request(monkeypatch):
    """Whoever asks: of a command's images no answer says why."""
    cause = RuntimeError("cannot do this image")
    noted: list[tuple[str | None, str, Exception]] = []
    note = lambda said, exc_info: noted.append((request_id.get(), said, exc_info))  # noqa: E731
    monkeypatch.setattr(batcher_module._log, "error", note)

    lane = Lane()
    lane.failure = cause
    batcher = new_batcher(lane, max_batch_size=4)

    async def ask(identity: str) -> list[object]:
        request_id.set(identity)
        return await asyncio.gather(*(batcher.submit(window(1)) for _ in range(2)), return_exceptions=True)

    first = asyncio.create_task(batcher.submit(window(0)))  # of no request
    await entered(lane)
    asking = [asyncio.create_task(ask(identity)) for identity in ("one", "other")]
    for _ in range(3):
        await asyncio.sleep(0)
    lane.open.set()
    with pytest.raises(InferenceFailed):
        await first
    await asyncio.gather(*asking)
    assert [len(batch) for batch in lane.batches[:2]] == [1, 4]
    await batcher.close()
    assert noted == [(known, "the model failed on a window", cause) for known in (None, "one", "other")]


async def test_an_answer_with_too_few_windows_is_a_failure_not_a_mix_up():
    lane = Lane()
    lane.open.set()
    lane.short = True
    batcher = new_batcher(lane)
    with pytest.raises(InferenceFailed):
        await batcher.submit(window(0))
    await batcher.close()


async def test_maps_of_another_size_are_a_failure_and_no_mask():
    class Sheared(Lane):
        def run(self, images: np.ndarray) -> BatchResult:
            result = super().run(images)
            return BatchResult(result.class_maps.swapaxes(1, 2), result.confidences, result.label_probabilities)

    lane = Sheared()
    lane.open.set()
    batcher = new_batcher(lane)
    with pytest.raises(InferenceFailed) as raised:
        await batcher.submit(np.zeros((4, 8, 3), np.uint8))
    assert "maps of (1, 8, 4) for windows of (1, 4, 8)" in str(raised.value.__cause__)
    await batcher.close()


@pytest.mark.parametrize(
    ("failure", "works", "ends"),
    [
        (RuntimeError("CUDA failure 700: an illegal memory access"), False, True),
        (RuntimeError("cannot do this image"), True, False),
        (OutOfMemory("there is no memory"), False, False),
    ],
    ids=["the model", "the image", "memory"],
)
async def test_a_model_that_runs_nothing_any_more_is_not_ready(failure, works, ends, caplog):
    async with asyncio.timeout(20):
        lane = Lane()
        lane.failure = failure
        told: list[bool] = []
        metrics = Metrics(CollectorRegistry())
        limits = BatchLimits(2, 2, 10**6)
        batcher = Batcher(lane.run, limits, metrics, stalled=lambda: told.append(batcher.open), works=lambda: works)
        asking = [asyncio.create_task(batcher.submit(window(value, 4 * value))) for value in (1, 2, 3)]
        await entered(lane, 2)
        lane.open.set()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        if ends:
            assert [type(outcome) for outcome in outcomes] == [ModelNotReady] * 3
            with pytest.raises(ModelNotReady, match="starts anew"):
                await batcher.submit(window(4))
        else:
            assert not any(isinstance(outcome, ModelNotReady) for outcome in outcomes)
        assert batcher.open is not ends
        assert told == [False] * ends
        await batcher.close()
    assert ("runs nothing any more" in caplog.text) is ends


async def test_a_broken_model_is_told_of_once_and_no_lane_is_waited_for():
    class Lost(Lane):
        def run(self, images: np.ndarray) -> BatchResult:
            if images[0, 0, 0, 0] == 1:
                raise RuntimeError("CUDA failure 700")
            return super().run(images)

    async with asyncio.timeout(20):
        lane = Lost()
        told: list[bool] = []
        limits = BatchLimits(2, 1, 10**6, stall_seconds=0.3)
        metrics = Metrics(CollectorRegistry())
        batcher = Batcher(lane.run, limits, metrics, stalled=lambda: told.append(True), works=lambda: False)
        stuck = asyncio.create_task(batcher.submit(window(2)))
        await entered(lane)
        outcomes = await asyncio.gather(batcher.submit(window(1)), stuck, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ModelNotReady] * 2
        await asyncio.wait_for(batcher.close(), 5)
        await asyncio.sleep(1)
        assert told == [True]
        lane.open.set()


async def test_closing_answers_what_runs_and_refuses_what_waits():
    lane = Lane()
    batcher = new_batcher(lane)
    running = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    waiting = asyncio.create_task(batcher.submit(window(1)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    lane.open.set()
    await closing
    assert (await running).class_map[0, 0] == 0
    with pytest.raises(ModelNotReady):
        await waiting
    with pytest.raises(ModelNotReady):
        await batcher.submit(window(2))


async def test_batches_waits_and_depth_are_measured():
    lane = Lane()
    metrics = Metrics(CollectorRegistry())
    batcher = Batcher(lane.run, BatchLimits(1, 4, 10**6), metrics)
    first = asyncio.create_task(batcher.submit(window(0)))
    await entered(lane)
    rest = [asyncio.create_task(batcher.submit(window(value))) for value in (1, 2)]
    await asyncio.sleep(0)
    assert metrics.registry.get_sample_value("tessera_queue_depth") == 2
    lane.open.set()
    await asyncio.gather(first, *rest)
    assert metrics.registry.get_sample_value("tessera_queue_depth") == 0
    assert metrics.registry.get_sample_value("tessera_batch_size_sum") == 3
    assert metrics.registry.get_sample_value("tessera_batch_size_count") == 2
    for stage, count in (("queue", 3), ("infer", 2)):
        found = metrics.registry.get_sample_value("tessera_stage_duration_seconds_count", {"stage": stage})
        assert found == count
    await batcher.close()


async def test_where_memory_is_short_half_as_many_run_at_once_from_then_on(caplog):
    class Small(Lane):
        def run(self, images: np.ndarray) -> BatchResult:
            result = super().run(images)
            if len(images) > 2:
                raise OutOfMemory("there is no memory")
            return result

    lane = Small()
    batcher = new_batcher(lane, max_batch_size=8)
    for values in (range(1, 7), range(11, 17)):
        lane.open.clear()
        asking = [asyncio.create_task(batcher.submit(window(0)))]
        await entered(lane)
        asking += [asyncio.create_task(batcher.submit(window(value))) for value in values]
        await asyncio.sleep(0)
        lane.open.set()
        answers = await asyncio.gather(*asking)
        assert [int(answer.class_map[0, 0]) for answer in answers] == [0, *values]
        while lane.entered.acquire(blocking=False):
            pass
    first_round, second_round = lane.batches[:5], lane.batches[5:]
    assert first_round == [[0], [1, 2, 3, 4], [1, 2], [3, 4], [5, 6]]
    assert second_round == [[0], [11, 12], [13, 14], [15, 16]]
    await batcher.close()
    assert "no memory for 4 windows at once; batches have at most 32 px from now on" in caplog.text


async def test_large_windows_that_lack_memory_leave_small_ones_their_batches():
    class Small(Lane):
        def run(self, images: np.ndarray) -> BatchResult:
            result = super().run(images)
            if images[..., 0].size > 64:
                raise OutOfMemory("there is no memory")
            return result

    lane = Small()
    batcher = new_batcher(lane, max_batch_size=4)
    for side in (8, 4):
        lane.open.clear()
        asking = [asyncio.create_task(batcher.submit(window(0)))]
        await entered(lane)
        asking += [asyncio.create_task(batcher.submit(window(value, side))) for value in (1, 2, 3, 4)]
        await asyncio.sleep(0)
        lane.open.set()
        await asyncio.gather(*asking)
        while lane.entered.acquire(blocking=False):
            pass
    assert lane.batches[-1] == [1, 2, 3, 4]
    await batcher.close()


async def test_one_window_for_which_there_is_no_memory_is_told_so():
    lane = Lane()
    lane.open.set()
    lane.failure = OutOfMemory("there is no memory")
    batcher = new_batcher(lane)
    with pytest.raises(OutOfMemory):
        await batcher.submit(window(1))
    await batcher.close()


async def test_when_a_lane_is_stuck_all_who_wait_are_told_and_nobody_is_taken_any_more(monkeypatch):
    monkeypatch.setattr(lanes, "_TICK_SECONDS", 0.01)
    stalls: list[str] = []

    async with asyncio.timeout(20):
        lane = Lane()
        limits = BatchLimits(1, 4, 10**6, stall_seconds=0.05)
        batcher = Batcher(lane.run, limits, Metrics(CollectorRegistry()), stalled=lambda: stalls.append("stalled"))
        asking = [asyncio.create_task(batcher.submit(window(value))) for value in range(3)]
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(outcome, ModelNotReady)
        assert not batcher.open
        with pytest.raises(ModelNotReady, match="starts anew"):
            await batcher.submit(window(4))
        lane.open.set()
        await batcher.close()
    assert stalls == ["stalled"]


async def test_the_first_batch_of_a_size_and_shape_may_take_longer(monkeypatch):
    monkeypatch.setattr(lanes, "_TICK_SECONDS", 0.01)

    async with asyncio.timeout(20):
        lane = Lane()
        limits = BatchLimits(1, 4, 10**6, stall_seconds=0.05, first_seconds=60)
        batcher = Batcher(lane.run, limits, Metrics(CollectorRegistry()))
        first = asyncio.create_task(batcher.submit(window(1)))
        while not batcher.late:
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.submit(window(value))) for value in (2, 3)]
        await asyncio.sleep(0.3)
        assert batcher.open
        lane.open.set()
        await first
        lane.open.clear()
        while len(lane.batches) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert batcher.open, "two at once are another form than one"
        lane.open.set()
        await asyncio.gather(*rest)
        lane.open.clear()
        with pytest.raises(ModelNotReady, match="starts anew"):
            await batcher.submit(window(2))
        lane.open.set()
        await batcher.close()


async def test_a_batch_that_was_run_before_anything_was_served_may_take_no_longer_than_others(monkeypatch):
    monkeypatch.setattr(lanes, "_TICK_SECONDS", 0.01)

    async with asyncio.timeout(20):
        lane = Lane()
        limits = BatchLimits(1, 4, 10**6, stall_seconds=0.05, first_seconds=60, warm=frozenset({(1, 4, 4, 3)}))
        batcher = Batcher(lane.run, limits, Metrics(CollectorRegistry()))
        with pytest.raises(ModelNotReady, match="starts anew"):
            await batcher.submit(window(1))
        lane.open.set()
        await batcher.close()


async def test_a_large_window_may_take_ten_times_what_it_should(monkeypatch):
    monkeypatch.setattr(lanes, "_TICK_SECONDS", 0.01)

    async with asyncio.timeout(20):
        lane = Lane()
        image = window(1)
        limits = BatchLimits(1, 4, 10**6, stall_seconds=0.05, seconds_per_pixel=6 / image[..., 0].size)
        batcher = Batcher(lane.run, limits, Metrics(CollectorRegistry()))
        asking = asyncio.create_task(batcher.submit(image))
        await asyncio.sleep(0.3)
        lane.open.set()
        await asking
        assert batcher.open
        await batcher.close()


def sharing(lanes: list[Lane]) -> list[Batcher]:
    """Return the batchers of as many processes as there are lanes, which share two cores."""
    cores = Cores(2, len(lanes))
    return [
        Batcher(lane.run, BatchLimits(2, 1, 10**6), Metrics(CollectorRegistry()), cores.seen_by(index))
        for index, lane in enumerate(lanes)
    ]


async def test_another_process_has_its_share_at_once_and_no_more():
    lanes = [Lane(), Lane()]
    one, other = sharing(lanes)
    first = [asyncio.create_task(one.submit(window(value))) for value in (1, 2)]
    await entered(lanes[0], times=2)  # the other's core too, which it leaves
    second = [asyncio.create_task(other.submit(window(value))) for value in (3, 4)]
    await entered(lanes[1])
    await asyncio.sleep(3 * batcher_module._AGAIN_SECONDS)
    assert lanes[1].batches == [[3]]
    for lane in lanes:
        lane.open.set()
    await asyncio.gather(*first, *second)
    await asyncio.gather(one.close(), other.close())


async def test_a_core_that_another_process_leaves_is_taken_though_nobody_tells_of_it():
    lanes = [Lane(), Lane()]
    one, other = sharing(lanes)
    second = asyncio.create_task(other.submit(window(3)))
    await entered(lanes[1])
    first = [asyncio.create_task(one.submit(window(value))) for value in (1, 2)]
    await entered(lanes[0])
    assert lanes[0].batches == [[1]]
    lanes[1].open.set()
    await second
    await entered(lanes[0])  # while the first still runs
    lanes[0].open.set()
    await asyncio.gather(*first)
    await asyncio.gather(one.close(), other.close())


async def test_what_is_free_may_change_while_a_batch_is_made():
    class Changing(Cores):
        asked = 0

        @property
        def free(self) -> int:
            self.asked += 1
            return self.asked % 2

    lane = Lane()
    lane.open.set()
    batcher = Batcher(lane.run, BatchLimits(1, 4, 10**6), Metrics(CollectorRegistry()), Changing(1))
    assert (await batcher.submit(window(7))).label_probabilities.tolist() == [7, 7, 7]
    await batcher.close()
