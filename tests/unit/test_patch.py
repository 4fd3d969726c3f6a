import asyncio
import contextlib
import gc
import hashlib
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from app.errors import ImageTooLarge, InferenceFailed, QueueFull, UnreadableImage
from app.imaging.decode import OpenedFile
from app.imaging.structure import Glance, glance
from app.pathology.geometry import Size
from app.segmentation import patch as patch_module
from app.segmentation.admission import Admission
from app.segmentation.budget import PixelBudget
from app.segmentation.patch import PatchLimits, PatchSegmentation, SegmentedPatch
from app.segmentation.reading import Reader, Upload
from app.segmentation.workers import Workers
from app.telemetry.metrics import Metrics
from tests.fakes import POISON, ColourSegmenter, Held, classes_of, manifest
from tests.pictures import BLUE, WHITE, encoded, noise, plain, quarters, with_chunk

pytestmark = pytest.mark.anyio

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


async def test_the_pixels_of_a_patch_whose_client_left_are_held_until_its_decoding_ends(monkeypatch):
    held, pixels = Held(), OpenedFile.pixels

    def wait_and_decode(file: OpenedFile) -> np.ndarray:
        if not held.ended.is_set():
            held()
        return pixels(file)

    monkeypatch.setattr(OpenedFile, "pixels", wait_and_decode)
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


async def test_of_glances_that_take_long_the_event_loop_has_one_a_turn(monkeypatch):
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

    monkeypatch.setattr("app.segmentation.reading.glance", slow)
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
    assert len(set(glanced_in)) == 6


@pytest.mark.parametrize("image_format", ["PNG", "BMP"])
async def test_an_upload_that_found_no_place_is_not_measured_again(monkeypatch, image_format):
    looked: list[str] = []
    monkeypatch.setattr(Reader, "glance", noted(looked, Reader.glance))
    monkeypatch.setattr(Reader, "measure", noted(looked, Reader.measure))

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


async def test_no_more_pixels_are_decoded_at_once_than_allowed():
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


async def test_a_small_patch_does_not_queue_behind_a_crowd_of_large_ones():
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
