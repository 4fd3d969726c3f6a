"""What the supervisor makes of its children, here without processes: a fake of each, and a real pipe to it."""

import asyncio
import gc
import multiprocessing
import os
import signal
import weakref
from contextlib import nullcontext

import pytest
from prometheus_client import CollectorRegistry, Metric

from app.errors import InvalidBundle, MetricsIncomplete, ReloadRefused
from app.inference.bundle import read_manifest
from app.inference.cores import Cores
from app.inference.remote import EngineFacts
from app.pathology.manifest import ModelManifest
from app.processes import channel as channel_module
from app.processes import children as children_module
from app.processes import gathering as gathering_module
from app.processes import sources, supervisor
from app.processes.channel import (
    AllMetrics,
    AllMetricsRequest,
    Channel,
    ChildMetrics,
    Farewell,
    Lifecycle,
    MetricsRequest,
    Ping,
    Pong,
    Ready,
    Reloaded,
    ReloadRequest,
    Retire,
    Stop,
    Stuck,
)
from app.processes.children import Begin, Child
from app.processes.gathering import Gathering
from app.processes.generation import Generation, Shared
from app.processes.layout import Layout
from app.processes.sources import OwnModel
from app.segmentation.admission import Places
from app.settings import DEFAULT_BUNDLE, Settings
from app.telemetry.metrics import Metrics
from tests.fakes import ColourSegmenter, manifest

pytestmark = pytest.mark.anyio

READY = Ready(EngineFacts.of(ColourSegmenter()))


class Process:
    """Stands in for a process that ends when it is told to by a signal."""

    def __init__(self) -> None:
        self.exitcode: int | None = None
        self.kills = 0
        self.closed = False

    def kill(self) -> None:
        self.kills += 1
        self.exitcode = -signal.SIGKILL

    def join(self) -> None:
        assert self.exitcode is not None

    def close(self) -> None:
        self.closed = True


class Played(Child):
    """A child whose part the test plays: `end_of_it` is the child's own end of the pipe."""

    def __init__(self, name: str, ready: Ready | None = READY) -> None:
        ours, self.end_of_it = multiprocessing.Pipe()
        self.fake = Process()
        super().__init__(name, self.fake, ours, ready)

    def told(self) -> list[object]:
        """Return what it was told since the last time."""
        messages = []
        while self.end_of_it.poll():
            messages.append(self.end_of_it.recv())
        return messages

    def exit(self, code: int = 0) -> None:
        """End, as the supervisor sees it."""
        self.end_of_it.close()
        self.fake.exitcode = code
        self.end()


@pytest.fixture
def play():
    played = []

    def one(name: str = "front 0", ready: Ready | None = READY) -> Played:
        played.append(Played(name, ready))
        return played[-1]

    yield one
    for child in played:
        child.pipe.close()
        child.end_of_it.close()


def counted(images: float, ready: float = 1) -> list[Metric]:
    metrics = Metrics(CollectorRegistry())
    metrics.images.inc(images)
    metrics.ready.set(ready)
    return list(metrics.registry.collect())


def value(metrics: list[Metric], name: str) -> float:
    return sum(sample.value for family in metrics for sample in family.samples if sample.name == name)


def answer_to(front: Played) -> list[Metric] | None:
    (answer,) = [message for message in front.told() if isinstance(message, AllMetrics)]
    return answer.metrics


def test_ten_pings_without_an_answer_and_it_is_killed_once(play, caplog):
    child = play()
    for _ in range(10):
        child.ping()
    assert (len(child.told()), child.fake.kills) == (10, 0)
    for _ in range(5):
        child.ping()
    assert (len(child.told()), child.fake.kills) == (0, 1)
    assert caplog.text.count("the process front 0 has not answered for 10 s, and is killed") == 1


def test_one_that_is_not_there_yet_or_has_said_farewell_is_not_pinged(play):
    coming, leaving = play(ready=None), play()
    leaving.left = True
    for _ in range(20):
        coming.ping()
        leaving.ping()
    assert coming.told() == leaving.told() == []
    assert coming.fake.kills == leaving.fake.kills == 0


def test_what_is_said_to_one_that_ended_is_said_in_vain_also_once_it_is_buried(play):
    child = play()
    child.end_of_it.close()
    child.send(Ping())  # it has ended, and nobody has noticed yet
    child.fake.exitcode = 0
    child.end()
    child.bury()
    child.send(Ping())
    assert child.fake.closed


@pytest.mark.parametrize("word", [b"", b"\x00\x00", b"\x00\x00\x01\x00half"])
def test_one_that_is_killed_in_the_middle_of_a_word_is_silent(play, word):
    child = play()
    os.write(child.end_of_it.fileno(), word)
    child.end_of_it.close()
    assert child.receive() is None
    assert child.silent


@pytest.mark.parametrize(("code", "killed", "is_told"), [(0, False, False), (1, False, True), (-9, True, False)])
def test_who_did_not_end_well_is_named(play, caplog, code, killed, is_told):
    child = play()
    child.killed = killed
    child.exit(code)
    child.bury()
    assert ("did not end well" in caplog.text) == is_told


def test_all_that_serve_are_asked_and_added_up(play):
    gathering = Gathering()
    front, other, coming = play(), play(), play(ready=None)
    gathering.begin(front, [front, other, coming])
    gathering.begin(other, [front, other, coming])  # the same answer
    assert front.told() == other.told() == [MetricsRequest(1)]
    assert coming.told() == []
    gathering.add(front, 1, counted(2))
    gathering.end_if_due()
    assert front.told() == []
    gathering.add(other, 1, counted(3))
    gathering.end_if_due()
    for asking in (front, other):
        assert value(answer_to(asking), "tessera_images_total") == 5
    assert gathering.seconds_left() is None


def test_a_farewell_counts_once_now_and_for_ever(play):
    gathering = Gathering()
    front, leaving = play(), play()
    gathering.begin(front, [front, leaving])
    gathering.add(leaving, 1, counted(3))
    gathering.keep(leaving, counted(4))  # it answered, and left before the others had
    gathering.add(front, 1, counted(1))
    gathering.end_if_due()
    assert value(answer_to(front), "tessera_images_total") == 1 + 3
    for _ in range(2):
        gathering.begin(front, [front, leaving])
        gathering.add(front, gathering._number, counted(1))
        gathering.end_if_due()
        now = answer_to(front)
        assert value(now, "tessera_images_total") == 1 + 4
        assert value(now, "tessera_ready") == 1
    assert not any(isinstance(message, MetricsRequest) for message in leaving.told()[1:])


def test_a_farewell_is_an_answer(play):
    gathering = Gathering()
    front, leaving = play(), play()
    gathering.begin(front, [front, leaving])
    gathering.add(front, 1, counted(1))
    gathering.keep(leaving, counted(4))
    gathering.end_if_due()
    assert value(answer_to(front), "tessera_images_total") == 5


def test_what_one_that_was_killed_had_told_stays_counted(play):
    gathering = Gathering()
    front, killed = play(), play()
    gathering.begin(front, [front, killed])
    gathering.add(front, 1, counted(1))
    gathering.add(killed, 1, counted(4))
    gathering.end_if_due()
    assert value(answer_to(front), "tessera_images_total") == 5
    killed.exit(-signal.SIGKILL)
    gathering.keep(killed, killed.last)
    gathering.begin(front, [front])
    gathering.add(front, 2, counted(1))
    gathering.end_if_due()
    assert value(answer_to(front), "tessera_images_total") == 5


def test_who_does_not_tell_its_metrics_in_time_is_named_and_its_answer_comes_too_late(play, monkeypatch, caplog):
    monkeypatch.setattr(gathering_module, "_GATHERING_SECONDS", 0.0)
    gathering = Gathering()
    front, hung = play(), play("front 1")
    gathering.begin(front, [front, hung])
    gathering.add(front, 1, counted(1))
    gathering.end_if_due()
    assert answer_to(front) is None
    assert "no metrics from: front 1" in caplog.text
    gathering.begin(front, [front, hung])
    gathering.add(hung, 1, counted(4))  # the answer to the first
    gathering.end_if_due()
    assert answer_to(front) is None


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_child_that_left_is_not_held_on_to(play, monkeypatch, is_asked):
    monkeypatch.setattr(gathering_module, "_GATHERING_SECONDS", 0.0)
    gathering = Gathering()
    front, leaving, late = play(), play(), play("front 1")
    before = len(gc.get_referrers(leaving)), len(gc.get_referrers(late))
    if is_asked:
        gathering.begin(front, [front, leaving, late])
        gathering.end_if_due()
    gathering.keep(leaving, counted(1))
    gathering.add(late, gathering._number, counted(1))
    assert (len(gc.get_referrers(leaving)), len(gc.get_referrers(late))) == before


def test_nobody_is_there_any_more_to_hear_the_metrics(play):
    gathering = Gathering()
    front, other = play(), play()
    gathering.begin(front, [front, other])
    gathering.keep(front, counted(1))
    front.exit()
    front.bury()
    gathering.add(other, 1, counted(1))
    gathering.end_if_due()
    assert gathering.seconds_left() is None


def begin_none(name: str, be: object) -> Child:
    raise AssertionError(name)


def generation(shared_engine: bool = False, begin: Begin = begin_none) -> Generation:
    settings = Settings(cores=2, request_timeout=30, shutdown_grace=3)
    places = Places(fronts=2, groups=3)

    shared = Shared(settings, Layout(2, shared_engine, True), [], places, None, begin)
    return Generation(shared, 0, set())


def test_a_generation_that_is_stopped_tells_its_fronts_and_ends_whoever_is_not_there_yet(play):
    ending = generation(shared_engine=True)
    engine = ending._source.child = play("engine")
    ending.fronts = [play(), play(ready=None)]
    there, coming = ending.fronts
    ending.stop(signal.SIGTERM)
    assert there.told() == [Stop(signal.SIGTERM)]
    assert engine.told() == []  # which ends when its fronts have
    assert (there.fake.kills, coming.fake.kills, engine.fake.kills) == (0, 1, 0)
    assert 43 - 1 < ending.seconds_left() <= 43


def test_a_generation_that_ends_for_a_fault_waits_for_nothing_slow_whatever_is_asked_then(play):
    ending = generation()
    ending.fronts = [play(), play("front 1")]
    ending.stop_soon()
    for front in ending.fronts:
        assert front.told() == [Stop(signal.SIGINT, 5)]
    assert 10 - 1 < ending.seconds_left() <= 10
    ending.stop(signal.SIGTERM)
    assert ending.seconds_left() <= 10


def test_one_that_is_killed_and_does_not_end_is_a_fault_of_the_service(play, monkeypatch):
    held = play()
    monkeypatch.setattr(held.fake, "kill", lambda: None)  # as of a process that waits in a driver
    monkeypatch.setattr(children_module, "_LAST_SECONDS", 1000.0)
    assert not held.lasts
    held.kill("has not answered")
    assert not held.lasts
    assert held.fault is None
    held.gone_by -= 1000.0
    assert held.lasts
    assert held.fault == "the process front 0 does not answer, nor end though it was killed"
    held.exit(-signal.SIGKILL)
    assert not held.lasts


def tried(play, manifest: ModelManifest) -> Played:
    trial = play("model trial", ready=None)
    trial.tried = manifest
    trial.exit()
    return trial


def test_each_front_counts_its_batches_in_a_place_of_its_own(play, monkeypatch):
    class Loaded:
        def sharing(self, cores: Cores) -> Cores:
            return cores

    model = OwnModel(Settings(cores=2), [None, None], begin_none)
    model.child = tried(play, read_manifest(DEFAULT_BUNDLE))
    monkeypatch.setattr(model, "_load", lambda precision: Loaded())
    segmenter_of = model.segmenters()
    one, other = segmenter_of(0), segmenter_of(1)
    for _ in range(2):
        one.begin()
    assert (one.count, one.free, other.free) == (2, 0, 1)


@pytest.mark.parametrize(("changes", "is_loaded"), [({}, True), ({"sha256": "0" * 64}, False)])
def test_what_was_tried_is_loaded_and_no_other_variant(play, monkeypatch, changes, is_loaded):
    """On a CPU the bundle's int8 is tried, and its own manifest stays as it is whatever becomes of that."""
    loaded = []
    model = OwnModel(Settings(), [None], begin_none)
    model.child = tried(play, read_manifest(DEFAULT_BUNDLE / "int8").model_copy(update=changes))
    monkeypatch.setattr(model, "_load", loaded.append)
    refusal = nullcontext() if is_loaded else pytest.raises(InvalidBundle, match="was changed while it was tried")
    with refusal:
        assert model.segmenters() is not None
    assert loaded == ["int8"] * is_loaded
    assert model.child is None


def test_a_trial_that_ends_well_and_says_nothing_is_a_fault(play):
    """As of a runtime that ends its process by itself; nothing would come of it any more."""
    coming = generation()
    trial = coming._source.child = play("model trial", ready=None)
    assert coming.fault is None
    trial.exit()
    coming.go_on()
    assert coming.fault == "the process model trial ended by itself (exit status 0)"


def test_the_supervisor_gives_up_a_trial_before_the_system_ends_it():
    """Or it would not say that the trial took too long, but that it ended by itself."""
    assert sources._TRIAL_SECONDS > supervisor._READY_SECONDS + supervisor._PING_SECONDS


@pytest.mark.parametrize("shared_engine", [False, True])
def test_one_whose_process_said_that_it_is_ready_and_ended_takes_nobodys_place(play, shared_engine):
    coming = generation(shared_engine)
    coming.fronts = [play(), play("front 1", ready=None)]
    last = coming.fronts[1]
    if shared_engine:
        coming._source.child = last = play("engine")
    assert not coming.is_ready
    coming.fronts[1].ready = READY
    assert coming.is_ready
    last.exit(-signal.SIGSEGV)
    assert not coming.is_ready
    assert coming.fault == f"the process {last.name} ended by itself (signal SIGSEGV)"


def test_an_engine_that_still_loads_does_not_keep_the_service_from_ending(play):
    ending = generation(shared_engine=True)
    engine = ending._source.child = play("engine", ready=None)
    ending.stop(signal.SIGTERM)
    assert engine.fake.kills == 1
    engine.exit(-signal.SIGKILL)
    assert ending.is_gone()


@pytest.mark.parametrize("shared_engine", [True, False])
def test_a_generation_that_is_gone_leaves_no_memory_behind_though_the_collector_does_not_look_at_it(
    play, shared_engine
):
    leaving = generation(shared_engine, begin=lambda name, be: play(name, ready=None))
    leaving.start()
    leaving.retire()
    (child,) = leaving.children
    child.exit(-signal.SIGKILL)
    assert leaving.is_gone()
    there = weakref.ref(leaving)
    gc.disable()  # as `gc.freeze` has it for whatever is there when the fronts are forked
    try:
        del leaving
        assert there() is None
    finally:
        gc.enable()


def test_who_does_not_leave_in_time_is_killed_and_takes_no_places_along(play, caplog):
    leaving = generation()
    leaving.fronts = [play(), play("front 1")]
    stuck, waiting = leaving.fronts
    places = leaving._shared.places
    places.seen_by(0, leaving.group).take(images=5, pixels=50)
    leaving.retire()
    assert stuck.told() == waiting.told() == [Retire()]
    assert not leaving.is_gone()
    leaving._leave_by = 0.0
    assert not leaving.is_gone()
    assert (stuck.fake.kills, waiting.fake.kills) == (1, 1)
    assert leaving.seconds_left() is None  # whatever keeps them, asking again and again would only cost a core
    stuck.exit(-signal.SIGKILL)
    assert not leaving.is_gone()
    waiting.exit()
    assert leaving.is_gone()
    assert (places.images, places.pixels) == (0, 0)
    assert caplog.text.count("does not end, and is killed") == 2


class Told:
    """What a front's server was told."""

    def __init__(self) -> None:
        self.words: list[object] = []
        append = self.words.append
        self.lifecycle = Lifecycle(lambda: append("retire"), lambda *stop: append(stop), lambda: append("alone"))


async def test_a_front_does_what_the_supervisor_says_and_knows_when_it_is_gone():
    async with asyncio.timeout(20):
        ours, theirs = multiprocessing.Pipe()
        told = Told()
        channel = Channel(theirs, Metrics(CollectorRegistry()).registry)
        channel.open(READY, told.lifecycle)
        assert ours.recv() == READY
        for message in (Ping(), Retire(), Stop(signal.SIGTERM), Stop(signal.SIGINT, 5), MetricsRequest(7)):
            ours.send(message)
        channel.stuck()
        assert isinstance(ours.recv(), Stuck)
        assert isinstance(await asyncio.to_thread(ours.recv), Pong)
        assert (await asyncio.to_thread(ours.recv)).number == 7
        assert told.words == ["retire", (signal.SIGTERM, None), (signal.SIGINT, 5)]
        asking = [asyncio.create_task(ask()) for ask in (channel.reload, channel.everyones_metrics)]
        await asyncio.sleep(0)
        ours.close()
        with pytest.raises(ReloadRefused, match="stopping"):
            await asking[0]
        with pytest.raises(MetricsIncomplete):
            await asking[1]
        assert told.words[3:] == ["alone"]
        with pytest.raises(ReloadRefused, match="stopping"):
            await channel.reload()
        with pytest.raises(MetricsIncomplete):
            await channel.everyones_metrics()
        channel.stuck()
        channel.farewell()  # to nobody
        theirs.close()


async def test_each_reload_is_asked_for_and_answered_by_itself():
    async with asyncio.timeout(20):
        ours, theirs = multiprocessing.Pipe()
        channel = Channel(theirs, Metrics(CollectorRegistry()).registry)
        channel.open(READY)
        first, second, gone = (asyncio.create_task(channel.reload()) for _ in range(3))
        await asyncio.sleep(0)
        assert [ours.recv() for _ in range(4)] == [READY, ReloadRequest(), ReloadRequest(), ReloadRequest()]
        gone.cancel()
        ours.send(Reloaded(manifest()))
        assert await first == manifest()
        ours.send(Reloaded(ReloadRefused("no model")))
        with pytest.raises(ReloadRefused, match="no model"):
            await second
        ours.send(Reloaded(manifest()))
        last = asyncio.create_task(channel.reload())
        await asyncio.sleep(0)
        ours.send(Reloaded(manifest(window_px=96)))
        assert (await last).window_px == 96
        channel.farewell()
        assert isinstance(ours.recv(), ReloadRequest)
        assert isinstance(ours.recv(), Farewell)
        asyncio.get_running_loop().remove_reader(theirs.fileno())
        ours.close()
        theirs.close()


async def test_a_supervisor_that_stands_still_holds_up_nobody_who_asks_for_metrics(monkeypatch):
    monkeypatch.setattr(channel_module, "_ALL_METRICS_SECONDS", 0.01)

    async with asyncio.timeout(20):
        ours, theirs = multiprocessing.Pipe()
        channel = Channel(theirs, Metrics(CollectorRegistry()).registry)
        channel.open(READY)
        for _ in range(2):
            with pytest.raises(MetricsIncomplete):
                await channel.everyones_metrics()
        assert [ours.recv() for _ in range(2)] == [READY, AllMetricsRequest()]
        assert not ours.poll()
        asyncio.get_running_loop().remove_reader(theirs.fileno())
        ours.close()
        theirs.close()


async def test_who_asks_for_metrics_meanwhile_gets_the_same_answer():
    async with asyncio.timeout(20):
        ours, theirs = multiprocessing.Pipe()
        channel = Channel(theirs, Metrics(CollectorRegistry()).registry)
        channel.open(READY)
        asking = [asyncio.create_task(channel.everyones_metrics()) for _ in range(3)]
        await asyncio.sleep(0)
        assert [ours.recv() for _ in range(2)] == [READY, AllMetricsRequest()]
        assert not ours.poll()
        ours.send(AllMetrics(counted(3)))
        for answer in await asyncio.gather(*asking):
            assert value(answer, "tessera_images_total") == 3
        ours.send(MetricsRequest(1))
        assert isinstance(await asyncio.to_thread(ours.recv), ChildMetrics)
        asyncio.get_running_loop().remove_reader(theirs.fileno())
        ours.close()
        theirs.close()
