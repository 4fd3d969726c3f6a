import asyncio
import contextlib
import gc
import hashlib
import struct
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.errors import DeadlineExceeded, ImageTooLarge, InferenceFailed, QueueFull, StartupError, UnreadableImage
from app.imaging.decode import OpenedFile
from app.imaging.structure import Glance, glance
from app.pathology.geometry import Size
from app.segmentation import patch as patch_module
from app.segmentation.admission import Admission, Places
from app.segmentation.budget import PixelBudget
from app.segmentation.concurrently import all_of
from app.segmentation.deadline import answered_within
from app.segmentation.patch import PatchLimits, PatchSegmentation, SegmentedPatch
from app.segmentation.reading import Reader, Upload
from app.segmentation.workers import Workers
from app.telemetry.metrics import Metrics
from tests.fakes import POISON, ColourSegmenter, classes_of, manifest
from tests.pictures import BLUE, WHITE, encoded, noise, plain, quarters, with_chunk

T = TypeVar("T")


def segment(data: bytes, segmenter: ColourSegmenter | None = None, metrics: Metrics | None = None) -> SegmentedPatch:
    async def scenario() -> SegmentedPatch:
        measured = metrics or Metrics(CollectorRegistry())
        workers = Workers(2, measured)
        model = segmenter or ColourSegmenter()
        await model.start(measured)
        try:
            patches = PatchSegmentation(model, workers, measured, PatchLimits(1000, 1000**2))
            async with patches.segmented(Upload(data)) as patch:
                return patch
        finally:
            await workers.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize(("width", "height"), [(1, 1), (40, 30), (64, 64), (65, 64), (300, 7), (333, 200)])
def test_any_size_gives_each_pixel_its_class(width, height):
    image = noise(width, height)
    patch = segment(encoded(image))
    assert np.array_equal(patch.class_map, classes_of(image))
    assert (patch.confidence == 200).all()
    assert patch.size.width_px == width


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


class Held:
    """Work that goes on in its thread until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        try:
            assert self.let_go.wait(10)
        finally:
            self.ended.set()


def test_a_caller_that_is_cancelled_stays_until_its_work_ends_and_leaves_what_has_not_begun():
    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_a_caller_of_an_archive_that_is_cancelled_leaves_at_once():
    async def scenario() -> None:
        workers, held = Workers(1, Metrics(CollectorRegistry()), abandons_when_cancelled=True), Held()
        working = asyncio.create_task(workers.run(None, held))
        assert await asyncio.to_thread(held.begun.wait, 10)
        working.cancel()
        await asyncio.wait((working,))
        assert not held.ended.is_set()
        held.let_go.set()
        await workers.close()

    asyncio.run(scenario())


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
    before = threading.active_count()
    no_thread(monkeypatch, after=given)
    with pytest.raises(StartupError, match="a thread for images does not start: can't start new thread; raise the"):
        Workers(2, Metrics(CollectorRegistry()))
    assert threading.active_count() == before


class Kept:
    """Stands for an upload that a piece of work holds."""


def test_workers_need_no_thread_that_is_not_there_from_the_start(monkeypatch):
    """Neither for work nor to be closed; and of what was done, or never begun, nothing stays."""

    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_workers_are_busy_for_as_long_as_all_of_them_are():
    async def scenario() -> None:
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

    asyncio.run(scenario())


def test_a_deadline_that_passes_in_the_middle_of_a_decoding_is_told_at_its_end():
    async def scenario() -> None:
        workers, held = Workers(1, Metrics(CollectorRegistry())), Held()

        async def answer() -> None:
            async with answered_within(0.01, "wait longer"):
                await workers.run(None, held)

        answering = asyncio.create_task(answer())
        assert await asyncio.to_thread(held.begun.wait, 10)
        while not (answering.cancelling() or answering.done()):  # the former by the deadline
            await asyncio.sleep(0.001)
        assert not answering.done()
        held.let_go.set()
        with pytest.raises(DeadlineExceeded):
            await answering
        await workers.close()

    asyncio.run(scenario())


def test_the_pixels_of_a_patch_whose_client_left_are_held_until_its_decoding_ends(monkeypatch):
    held, pixels = Held(), OpenedFile.pixels

    def wait_and_decode(file: OpenedFile) -> np.ndarray:
        if not held.ended.is_set():
            held()
        return pixels(file)

    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers, segmenter = Workers(2, metrics), ColourSegmenter()
        await segmenter.start(metrics)
        door = Admission(9, 10**6, metrics)
        patches = PatchSegmentation(segmenter, workers, metrics, PatchLimits(100, 4 * 50 * 50), door)

        async def one() -> None:
            async with patches.segmented(Upload(encoded(noise(50, 50)))):
                pass

        gone = asyncio.create_task(one())
        assert await asyncio.to_thread(held.begun.wait, 10)
        gone.cancel()
        next_one = asyncio.create_task(one())
        for _ in range(20):
            await asyncio.sleep(0)
        assert door._places.pixels == 2 * 50 * 50
        assert not gone.done()
        assert not next_one.done()
        held.let_go.set()
        await asyncio.wait((gone, next_one))
        assert gone.cancelled()
        assert door._places.pixels == 0
        await workers.close()

    monkeypatch.setattr(OpenedFile, "pixels", wait_and_decode)
    asyncio.run(scenario())


@pytest.fixture
def told_small(monkeypatch) -> list[bool]:
    """What the workers are told of each file that they decode: whether it is small."""
    told: list[bool] = []
    run = Workers.run

    async def note(self: Workers, stage: str, work: object, *, is_small: bool = False) -> object:
        if stage == "decode":
            told.append(is_small)
        return await run(self, stage, work, is_small=is_small)

    monkeypatch.setattr(Workers, "run", note)
    return told


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(noise(9, 9)), True),
        (with_chunk(encoded(noise(9, 9)), b"prVt", bytes(2**20)), False),
        (with_chunk(encoded(noise(9, 9)), b"eXIf", b"II*\0\x08\0\0\0" + bytes(5000)), False),
        (encoded(noise(9, 9), "BMP"), False),
        (encoded(noise(9, 9), "JPEG") + b"\xff\xda" * 101, False),
    ],
    ids=["small", "few pixels in a large file", "few pixels and much EXIF", "of a format without a glance", "a film"],
)
def test_what_is_decoded_on_the_event_loop_is_small_in_every_way(told_small, data, expected):
    segment(data)
    assert told_small == [expected]


def test_a_first_look_that_was_wrong_is_corrected_before_a_pixel_is_decoded(monkeypatch, told_small):
    held: list[int] = []
    hold = PixelBudget.hold
    monkeypatch.setattr(PixelBudget, "hold", lambda self, pixels: held.append(pixels) or hold(self, pixels))
    monkeypatch.setattr("app.segmentation.reading.glance", lambda data: Glance(Size(2, 2), is_plain=True))
    assert segment(encoded(quarters(300, 200))).class_map.shape == (200, 300)
    assert held == [4, 300 * 200]
    assert told_small == [True, False]  # whoever was wrong about the size is not believed in the rest


def test_a_png_with_a_second_header_is_not_decoded_on_the_event_loop(told_small):
    header = struct.pack(">IIBBBBB", 900, 900, 8, 2, 0, 0, 0)
    with pytest.raises(UnreadableImage):  # of the second header's 900 rows there are nine
        segment(with_chunk(encoded(noise(9, 9)), b"IHDR", header))
    assert told_small == [True, False]


def test_of_glances_that_take_long_the_event_loop_has_one_a_turn(monkeypatch):
    """A list's images come in one turn, and each may be a file of a hundred thousand chunks."""
    turn, glanced_in = 0, []

    def slow(data: bytes) -> Glance | None:
        glanced_in.append(turn)
        time.sleep(2 * patch_module._QUICK_SECONDS)
        if len(glanced_in) % 2:
            raise UnreadableImage("the PNG has too many chunks")
        return glance(data)

    async def count_turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers, model = Workers(1, metrics), ColourSegmenter()
        await model.start(metrics)
        patches = PatchSegmentation(model, workers, metrics, PatchLimits(100, 100**2))

        async def one() -> None:
            async with patches.segmented(Upload(encoded(noise(9, 9)))):
                pass

        counting = asyncio.create_task(count_turns())
        found = await asyncio.gather(*(one() for _ in range(6)), return_exceptions=True)
        counting.cancel()
        assert [type(error) for error in found] == [UnreadableImage, type(None)] * 3
        await workers.close()

    monkeypatch.setattr("app.segmentation.reading.glance", slow)
    asyncio.run(scenario())
    assert len(set(glanced_in)) == 6


@pytest.mark.parametrize("image_format", ["PNG", "BMP"])
def test_an_upload_that_found_no_place_is_not_measured_again(monkeypatch, image_format):
    looked: list[str] = []
    monkeypatch.setattr(Reader, "glance", noted(looked, Reader.glance))
    monkeypatch.setattr(Reader, "measure", noted(looked, Reader.measure))

    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers, model, door = Workers(2, metrics), ColourSegmenter(), Admission(9, 100, metrics)
        await model.start(metrics)
        patches = PatchSegmentation(model, workers, metrics, PatchLimits(100, 100**2), door)
        upload = Upload(encoded(noise(9, 9), image_format))
        for _ in range(2):
            with door.weigh(100), pytest.raises(QueueFull):
                async with patches.segmented(upload):
                    pass
        async with patches.segmented(upload) as patch:
            assert patch.size == Size(9, 9)
        await workers.close()

    asyncio.run(scenario())
    assert looked == ["glance", "measure"][: 1 + (image_format == "BMP")]


def noted(calls: list[str], function: Callable[..., T]) -> Callable[..., T]:
    """Return the same function, which takes note of each call."""

    def call(*given: object) -> T:
        calls.append(function.__name__)
        return function(*given)

    return call


def test_fractions_add_up_and_labels_follow():
    patch = segment(encoded(quarters(200, 100)))
    assert patch.fractions == (0.25, 0.25, 0.25, 0.25)
    assert [tissue.name for tissue in patch.labels] == ["tumor", "stroma", "normal"]


def test_a_label_in_one_window_is_the_patchs():
    image = plain(WHITE, 200, 200)
    image[150:, 150:] = BLUE
    patch = segment(encoded(image))
    assert [tissue.name for tissue in patch.labels] == ["tumor"]


def test_windows_are_the_models_size_and_whole_strides():
    segmenter = ColourSegmenter(manifest(window_px=96, margin_px=16, stride=32))
    segment(encoded(noise(200, 50)), segmenter)
    assert set(segmenter.windows) == {(64, 96, 3)}


def test_the_digest_is_of_the_upload():
    data = encoded(noise(5, 5))
    assert segment(data).sha256 == hashlib.sha256(data).hexdigest()


def test_a_window_that_fails_fails_its_patch_with_that_error():
    image = plain(WHITE, 200, 64)
    image[0, 160] = POISON  # where the last window begins
    with pytest.raises(InferenceFailed):
        segment(encoded(image))


def test_a_patch_beyond_the_limit_is_refused():
    with pytest.raises(ImageTooLarge):
        segment(encoded(plain(WHITE, 1001, 2)))


def test_images_and_pixels_are_counted():
    metrics = Metrics(CollectorRegistry())
    segment(encoded(quarters(200, 100)), metrics=metrics)
    assert metrics.registry.get_sample_value("tessera_images_total") == 1
    for name in ("tumor", "stroma", "normal", "background"):
        assert metrics.registry.get_sample_value("tessera_predicted_pixels_total", {"class": name}) == 5000


def test_one_large_patch_does_not_flood_the_model():
    class Counting(ColourSegmenter):
        inside = most = 0

        async def segment(self, window):
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                return await super().segment(window)
            finally:
                self.inside -= 1

    segmenter = Counting()
    segment(encoded(noise(600, 600)), segmenter)
    assert len(segmenter.windows) > segmenter.window_concurrency
    assert segmenter.most == segmenter.window_concurrency


def test_the_door_counts_images_not_requests():
    door = Admission(5, 10**6, Metrics(CollectorRegistry()))
    with door.admit(4):
        with (
            pytest.raises(QueueFull, match="4 of 5 places for images are taken, and this needs 2 more;") as refused,
            door.admit(2),
        ):
            pass
        assert refused.value.retry_after_seconds >= 1
        with door.admit(1):
            pass
    with door.admit(5):
        pass


def test_who_is_inside_is_not_refused_for_another_who_only_looks():
    places = Places(2)
    door = Admission(1, 10**6, Metrics(CollectorRegistry()), places.seen_by(0, 0))
    other = places.seen_by(1, 0)

    with door.admit(1) as held:
        other.take(images=1)  # as another front does before it finds no place
        held.grow(0)
        other.take(images=-1)


def test_a_front_with_more_than_its_share_leaves_the_last_place_to_the_others():
    places = Places(2)
    one, other = (Admission(6, 10**6, Metrics(CollectorRegistry()), places.seen_by(index)) for index in (0, 1))
    with one.admit(3), other.admit(2), one.admit(1), pytest.raises(QueueFull), other.admit(1):
        pass  # one had its share, and took the last place
    with one.admit(4), other.admit(1):
        with pytest.raises(QueueFull, match=r"5 of 6 .*, one is kept for others, and this needs 1 more"), one.admit(1):
            pass
        with pytest.raises(QueueFull, match=r"5 of 6 .*, one is kept for others, and this needs 1 more"):
            one.expect_place()
        other.expect_place()
        with other.admit(1):
            pass
    with one.admit(4), one.admit(1):  # as long as another place is free
        pass
    with one.admit(4), one.admit(1) as held:  # a list is not cut short
        held.grow(1)
        with pytest.raises(QueueFull, match=r"6 of 6 places for images are taken, and this needs 1 more"):
            held.grow(1)
    assert places.images == 0


def test_a_place_is_free_again_after_a_failure():
    metrics = Metrics(CollectorRegistry())
    door = Admission(1, 10**6, metrics)
    with pytest.raises(ZeroDivisionError), door.admit(1):
        assert metrics.registry.get_sample_value("tessera_images_in_flight") == 1
        raise ZeroDivisionError
    assert metrics.registry.get_sample_value("tessera_images_in_flight") == 0
    with door.admit(1):
        pass


def test_the_door_counts_pixels_too_and_lets_one_in_that_has_more_than_all():
    door = Admission(9, 100, Metrics(CollectorRegistry()))
    with door.weigh(70):
        with pytest.raises(QueueFull, match="70 of 100 pixels are taken, and this needs 31 more;"), door.weigh(31):
            pass
        with door.weigh(30):
            pass
    with door.weigh(1000), pytest.raises(QueueFull, match="100 of 100 pixels"), door.weigh(1):
        pass
    with door.weigh(100):
        pass


def test_the_pixels_of_this_front_alone_are_shown():
    metrics, places = Metrics(CollectorRegistry()), Places(2)
    one = Admission(9, 100, metrics, places.seen_by(0))
    other = Admission(9, 100, Metrics(CollectorRegistry()), places.seen_by(1))
    with one.weigh(30), other.weigh(50):
        assert metrics.registry.get_sample_value("tessera_pixels_in_flight") == 30
    assert metrics.registry.get_sample_value("tessera_pixels_in_flight") == 0


def test_what_a_killed_front_had_inside_is_forgotten_with_it():
    places = Places(fronts=2, groups=2)
    here, gone = places.seen_by(1, group=0), places.seen_by(0, group=1)
    here.take(images=2, pixels=20)
    gone.take(images=5, pixels=50)
    assert (places.images, places.pixels) == (7, 70)
    places.clear(1)
    assert places.free_group({0}) == 1
    assert (places.images, places.pixels, here.own_images) == (2, 20, 2)


def test_retry_after_follows_the_rate_of_late(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time.monotonic", lambda: now[0])
    door = Admission(2, 10**6, Metrics(CollectorRegistry()))
    for _ in range(11):  # an image every 3 s, and nothing to do in between
        now[0] += 1000
        with door.admit(1):
            now[0] += 3
    now[0] += 3600
    with door.admit(2), pytest.raises(QueueFull) as refused, door.admit(2):
        pass
    assert refused.value.retry_after_seconds == 6


def test_retry_after_does_not_count_what_was_done_before_the_time_that_it_counts(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time.monotonic", lambda: now[0])
    door = Admission(2, 16_000_000, Metrics(CollectorRegistry()))
    with door.admit(1):
        with door.weigh(16_000_000):
            now[0] += 5
        for _ in range(10):
            with door.weigh(50_000):
                now[0] += 1
        with door.weigh(16_000_000), pytest.raises(QueueFull) as refused, door.weigh(1_000_000):
            pass
    assert refused.value.retry_after_seconds == 20


def test_pixels_are_handed_out_in_order_and_come_back():
    async def scenario() -> None:
        budget = PixelBudget(10)
        order: list[int] = []

        async def use(number: int, pixels: int, until: asyncio.Event) -> None:
            async with budget.hold(pixels):
                order.append(number)
                await until.wait()

        done = asyncio.Event()
        tasks = [asyncio.create_task(use(n, pixels, done)) for n, pixels in enumerate((6, 6, 3))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == [0]  # 3 would fit beside 6, but 6 came first
        done.set()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2]
        async with budget.hold(99):  # more than there are: alone, then
            pass
        async with budget.hold(10):
            pass

    asyncio.run(scenario())


def test_who_gives_up_waiting_leaves_the_pixels_to_the_next():
    async def scenario() -> None:
        budget = PixelBudget(10)
        async with budget.hold(10):
            gone = asyncio.create_task(budget.hold(8).__aenter__())
            stays = budget.hold(4)
            waiting = asyncio.create_task(stays.__aenter__())
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting
        async with budget.hold(6):
            pass
        await stays.__aexit__(None, None, None)

    asyncio.run(scenario())


def test_no_more_pixels_are_decoded_at_once_than_allowed():
    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers = Workers(2, metrics)
        segmenter = ColourSegmenter(gate=asyncio.Event())
        await segmenter.start(metrics)
        patches = PatchSegmentation(segmenter, workers, metrics, PatchLimits(100, 4 * 2 * 50 * 50))
        data = encoded(noise(50, 50))

        async def one() -> None:
            async with patches.segmented(Upload(data)):
                pass

        tasks = [asyncio.create_task(one()) for _ in range(6)]
        while len(segmenter.windows) < 2:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(segmenter.windows) == 2
        waits = "tessera_stage_duration_seconds_count", {"stage": "wait"}
        assert metrics.registry.get_sample_value(*waits) == 2  # the others' have not ended
        assert segmenter.gate is not None
        segmenter.gate.set()
        await asyncio.gather(*tasks)
        assert len(segmenter.windows) == 6
        assert metrics.registry.get_sample_value(*waits) == 6
        await workers.close()

    asyncio.run(scenario())


def test_a_small_patch_does_not_queue_behind_a_crowd_of_large_ones():
    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers = Workers(2, metrics)
        gate = asyncio.Event()
        segmenter = ColourSegmenter(gate=gate)
        await segmenter.start(metrics)
        patches = PatchSegmentation(segmenter, workers, metrics, PatchLimits(200, 200**2))

        async def one(side: int) -> None:
            async with patches.segmented(Upload(encoded(noise(side, side)))):
                pass

        large = [asyncio.create_task(one(200)) for _ in range(5)]
        while not segmenter.windows:
            await asyncio.sleep(0)
        small = asyncio.create_task(one(32))
        while (32, 32, 3) not in segmenter.windows:
            await asyncio.sleep(0)
        assert len([shape for shape in segmenter.windows if shape == (64, 64, 3)]) == segmenter.window_concurrency
        gate.set()
        await asyncio.gather(small, *large)
        await workers.close()

    asyncio.run(scenario())


def test_a_patch_that_fails_leaves_no_image_behind():
    """Reference counting alone has to free it: the garbage collector does not notice numpy's memory."""
    image = plain(WHITE, 600, 600)
    image[0, 0] = POISON
    data = encoded(image)

    async def scenario() -> int:
        metrics = Metrics(CollectorRegistry())
        workers = Workers(2, metrics)
        segmenter = ColourSegmenter()
        await segmenter.start(metrics)
        patches = PatchSegmentation(segmenter, workers, metrics, PatchLimits(1000, 1000**2))

        async def fail(times: int) -> None:
            for _ in range(times):
                with contextlib.suppress(InferenceFailed):
                    async with patches.segmented(Upload(data)):
                        raise AssertionError("it should have failed")

        await fail(2)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await fail(4)
        after, _ = tracemalloc.get_traced_memory()
        await workers.close()
        return after - before

    tracemalloc.start()
    gc.disable()
    try:
        left = asyncio.run(scenario())
    finally:
        gc.enable()
        tracemalloc.stop()
    assert left < image.nbytes


def test_the_first_failure_ends_the_others():
    async def scenario() -> None:
        ended = []

        async def slow() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async def fail() -> None:
            await asyncio.sleep(0)
            raise ValueError("first")

        with pytest.raises(ValueError, match="first"):
            await all_of([slow(), fail(), slow()])
        assert ended == [True, True]

    asyncio.run(scenario())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that doors go by."""
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def seconds_until_another(door: Admission, images: int) -> int:
    """Return when one more image should come back to a door of so many places."""
    with pytest.raises(QueueFull) as refused, door.admit(images):
        door.expect_place()
    return refused.value.retry_after_seconds


def test_images_of_a_list_that_found_no_place_do_not_count_as_work_done(now):
    door = Admission(4, 10**6, Metrics(CollectorRegistry()))
    with door.admit(1):
        now[0] += 10
    with door.admit(1) as held:
        held.grow(3)
        held.undone += 3
        now[0] += 10
    assert seconds_until_another(door, 4) == 10  # one image took ten seconds
    with door.admit(1) as held:
        held.grow(3)
        held.undone += 4
        now[0] += 10
    assert seconds_until_another(door, 4) == 20
    with door.admit(2):
        pass
    assert seconds_until_another(door, 4) == 7  # of three in twenty seconds


def test_each_request_counts_what_it_left_undone_itself(now):
    door = Admission(5, 10**6, Metrics(CollectorRegistry()))
    with door.admit(1):
        now[0] += 10
    with ExitStack() as served:
        served.enter_context(door.admit(1))
        with door.admit(1) as held:
            held.grow(3)
            held.undone += 4
            now[0] += 10
            served.close()  # while the other is still inside
            assert seconds_until_another(door, 1) == 10
    assert seconds_until_another(door, 5) == 10


def test_a_list_that_found_no_place_does_not_count_as_work_done(now):
    door = Admission(1, 10**6, Metrics(CollectorRegistry()))
    for _ in range(2):
        with door.admit(1):
            now[0] += 10
    for _ in range(3):
        with pytest.raises(QueueFull), door.admit(1) as held:
            held.grow(1)
    assert seconds_until_another(door, 1) == 10
