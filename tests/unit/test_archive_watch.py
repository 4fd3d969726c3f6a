"""The watcher's decisions, over an archive that does as it is told."""

import asyncio
import errno
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CollectorRegistry

from app.errors import (
    ArchiveDenied,
    ArchiveRefused,
    ArchiveUnavailable,
    ImageTooLarge,
    InferenceFailed,
    ModelNotReady,
    NotASlide,
    OtherStain,
    OutOfMemory,
    SeriesNotFound,
    SlideUnreadable,
    StartupError,
)
from app.interop.orthanc import Changes, SeriesOfStudy
from app.segmentation.backoff import Backoff
from app.segmentation.bookmark import Bookmark
from app.segmentation.watch import ARCHIVE_TRIES, PAGE, Outcome, Watcher
from app.telemetry.watching import WatchMetrics
from tests.full_disk import full_at

POLL_SECONDS = 1000.0
"""No wait of a backoff is as long, so the two can be told apart."""
UID = "1.2.840.99.7"
RESULT: Any = object()


class Archive:
    """A log of changes, and the series that it speaks of; errors that are put in `failures` come first."""

    def __init__(self) -> None:
        self.log: list[dict[str, Any]] = []
        self.modalities: dict[str, str] = {}
        self.unstable: set[str] = set()
        self.failures: list[Exception] = []
        self.asked_since: list[int] = []

    def arrives(self, name: str, modality: str = "SM") -> None:
        self.begins(name, modality)
        self.unstable.remove(name)
        self.logs(name, "StableSeries", "StableStudy")

    def begins(self, name: str, modality: str = "SM") -> None:
        self.modalities[name] = modality
        self.unstable.add(name)
        self.logs(name, "NewInstance", "NewSeries")

    def logs(self, name: str, *kinds: str) -> None:
        for kind in kinds:
            self.log.append({"Seq": len(self.log) + 1, "ChangeType": kind, "ID": name})

    def changes(self, since: int, limit: int) -> Changes:
        self.asked_since.append(since)
        if self.failures:
            raise self.failures.pop(0)
        page = [change for change in self.log if change["Seq"] > since][:limit]
        last = page[-1]["Seq"] if page else len(self.log)
        return Changes.model_validate({"Changes": page, "Last": last, "Done": last == len(self.log)})

    def last_change(self) -> int:
        if self.failures:
            raise self.failures.pop(0)
        return len(self.log)

    def series(self, resource: str) -> SeriesOfStudy | None:
        if resource not in self.modalities:
            return None
        return SeriesOfStudy(
            modality=self.modalities[resource],
            study_uid=UID,
            series_uid=resource,
            is_stable=resource not in self.unstable,
        )


class Slides:
    """Answers every series, unless told how else."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.tried: list[str] = []
        self.stored: list[Any] = []
        self.refusals: list[Exception] = []

    async def segment(self, study_uid: str, series_uid: str, keep: Any) -> Any:
        assert study_uid == UID
        self.tried.append(series_uid)
        answer = self.answers[series_uid].pop(0) if self.answers.get(series_uid) else RESULT
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, str):
            return answer
        await keep(answer)
        return None

    async def store(self, result: Any) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.stored.append(result)


class KeptSlides(Slides):
    """Keeps results in a file, as an archive does, which another process finds there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.path.touch()

    async def segment(self, study_uid: str, series_uid: str, keep: Any) -> Any:
        if series_uid in self.path.read_text().split():
            return "1.2.3"
        await keep((series_uid,))
        return None

    async def store(self, result: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{result[0]}\n")


class Watch:
    """A watcher that runs until it has nothing left to do."""

    def __init__(self, folder: Path) -> None:
        self.archive, self.slides = Archive(), Slides()
        self.path = folder / "watch.json"
        self.registry = CollectorRegistry()
        self.metrics = WatchMetrics(self.registry)
        self.waits: list[float] = []

    def run(self, skip_existing: bool = False, polls: int = 1) -> None:
        left = polls

        async def wait(seconds: float) -> None:
            nonlocal left
            left -= seconds == POLL_SECONDS
            if not left:
                raise asyncio.CancelledError
            if seconds != POLL_SECONDS:
                self.waits.append(seconds)
                assert len(self.waits) < 1000, "it never ends"

        with Bookmark(self.path, "http://archive") as bookmark:
            self.metrics.show(bookmark.last_change, bookmark.last_progress)  # as the command does
            watcher = Watcher(self.archive, self.slides, bookmark, self.metrics, POLL_SECONDS, 3, skip_existing, wait)
            with pytest.raises(asyncio.CancelledError):
                asyncio.run(watcher.run())

    def outcomes(self) -> dict[str, float]:
        [family] = [family for family in self.registry.collect() if family.name == "tessera_watch_series"]
        counts = {one.labels["outcome"]: one.value for one in family.samples if one.name.endswith("_total")}
        assert set(counts) == set(get_args(Outcome)), "each is there from the start"
        return {outcome: count for outcome, count in counts.items() if count}

    def state(self) -> dict[str, Any]:
        """Return what the bookmark has, but for times."""
        times = {"last_progress", "left_at"}
        return {name: value for name, value in json.loads(self.path.read_text()).items() if name not in times}

    def progress(self) -> float | None:
        return self.registry.get_sample_value("tessera_watch_last_progress_timestamp_seconds")

    def gets_stuck(self) -> None:
        """Run it until its model is stuck."""

        async def goes_on(_: float) -> None:
            raise AssertionError("it goes on without a model")

        with Bookmark(self.path, "http://archive") as bookmark, pytest.raises(ModelNotReady, match="stuck"):
            self.metrics.show(bookmark.last_change, bookmark.last_progress)
            of_watch = (self.archive, self.slides, bookmark, self.metrics)
            asyncio.run(Watcher(*of_watch, POLL_SECONDS, 3, wait=goes_on).run())

    def was_left_alone_for(self, seconds: float) -> None:
        """Have the bookmark say so, by a clock that a test holds."""
        self.path.write_text(json.dumps(json.loads(self.path.read_text()) | {"left_at": time.time() - seconds}))


@pytest.fixture
def watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Watch]:
    caplog.set_level(logging.DEBUG, "app")
    yield Watch(tmp_path)
    assert UID not in caplog.text


def test_each_slide_is_answered_once(watch):
    for name in ("a", "b"):
        watch.archive.arrives(name)
    watch.run()
    watch.run()
    assert watch.slides.tried == ["a", "b"]
    assert len(watch.slides.stored) == 2
    assert watch.state() == {"archive": "http://archive", "last_change": 8, "tries": 0, "archive_failures": 0}
    assert watch.registry.get_sample_value("tessera_watch_last_change") == 8


def test_results_and_other_series_are_passed_over(watch):
    for modality in ("SEG", "SR", "ANN", "CT", ""):
        watch.archive.arrives(modality or "none", modality)
    watch.run()
    assert watch.slides.tried == []
    assert watch.outcomes() == {}
    assert watch.state()["last_change"] == 20


def test_a_slide_whose_result_is_there_is_not_answered_again(watch):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = ["1.2.3"]
    watch.run()
    assert watch.slides.stored == []
    assert watch.outcomes() == {"answered before": 1}


def test_a_slide_that_arrives_while_the_watcher_is_down_is_answered(watch):
    watch.archive.arrives("a")
    watch.run()
    watch.archive.arrives("b")
    watch.run()
    assert watch.slides.tried == ["a", "b"]


def test_what_the_archive_holds_at_the_first_start_is_skipped_where_that_is_asked_for(watch, caplog):
    watch.archive.arrives("old")
    watch.run(skip_existing=True)
    assert watch.slides.tried == []
    assert watch.state()["last_change"] == 4
    assert "skipping what the archive holds" in caplog.text
    watch.archive.arrives("new")
    watch.run(skip_existing=True)
    assert watch.slides.tried == ["new"]
    assert caplog.text.count("skipping") == 1


def test_nothing_is_skipped_at_a_later_start(watch):
    watch.archive.arrives("a")
    watch.run()
    watch.archive.arrives("b")
    watch.run(skip_existing=True)
    assert watch.slides.tried == ["a", "b"]


def test_an_archive_that_is_down_at_the_first_start_is_skipped_as_far_as_it_is_once_it_answers(watch):
    """Also where the watcher was stopped before: a bookmark that has not moved is still new."""
    watch.archive.arrives("old")
    with Bookmark(watch.path, "http://archive"):
        pass
    watch.archive.failures = [ArchiveUnavailable("down")] * 3
    watch.run(skip_existing=True)
    watch.archive.arrives("new")
    watch.run(skip_existing=True)
    assert watch.slides.tried == ["new"]


def test_the_first_slide_of_an_archive_that_was_empty_is_answered(watch):
    watch.run(skip_existing=True)
    assert watch.state()["last_change"] == 0
    watch.archive.arrives("first")
    watch.run(skip_existing=True)
    assert watch.slides.tried == ["first"]


def test_a_long_log_is_read_page_by_page_without_a_wait(watch):
    for number in range(PAGE):
        watch.archive.arrives(f"series-{number}", "CT")
    watch.archive.arrives("slide")
    watch.run()
    assert watch.slides.tried == ["slide"]
    assert watch.waits == []
    assert watch.archive.asked_since == [0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 4 * PAGE + 3]


@pytest.mark.parametrize("error", [ArchiveUnavailable("down"), ArchiveDenied("no"), ArchiveRefused("what?")])
def test_an_archive_that_fails_is_waited_out(watch, error):
    watch.archive.arrives("a")
    watch.archive.failures = [error] * 12
    watch.run()
    assert watch.slides.tried == ["a"]
    assert len(watch.waits) == 12
    assert watch.outcomes() == {"answered": 1}


@pytest.mark.parametrize("error", [ArchiveUnavailable("down"), ArchiveDenied("no")])
def test_an_archive_that_goes_down_at_a_slide_for_long_does_not_cost_it_its_result(watch, error):
    watch.archive.arrives("a")

    async def goes_down(study_uid: str, series_uid: str, keep: Any) -> Any:
        watch.archive.failures = [error] * 3 * ARCHIVE_TRIES
        del watch.slides.segment
        raise error

    watch.slides.segment = goes_down
    watch.run()
    assert watch.outcomes() == {"answered": 1}
    assert len(watch.waits) == 1 + 3 * ARCHIVE_TRIES
    assert watch.state()["archive_failures"] == 0


@pytest.mark.parametrize("error", [ArchiveUnavailable("504 for this one"), ArchiveDenied("403 for this one")])
@pytest.mark.parametrize("where", ["read", "stored"])
def test_a_slide_at_which_the_archive_fails_is_given_up_in_the_end_and_the_next_one_answered(watch, error, where):
    for name in ("a", "b"):
        watch.archive.arrives(name)
    if where == "read":
        watch.slides.answers["a"] = [error] * 1000
    else:
        watch.slides.refusals = [error] * ARCHIVE_TRIES
    watch.run()
    assert watch.slides.tried == ["a"] * ARCHIVE_TRIES + ["b"]
    assert watch.outcomes() == {"given up": 1, "answered": 1}
    assert len(watch.waits) == ARCHIVE_TRIES - 1
    assert watch.waits[-1] >= 128, "each longer than the one before"
    failed = watch.registry.get_sample_value("tessera_watch_failures_total", {"error": type(error).__name__})
    assert failed == ARCHIVE_TRIES


@pytest.mark.parametrize("error", [OutOfMemory("none to run it"), MemoryError()])
def test_a_slide_for_which_there_is_no_memory_now_is_tried_as_often_as_one_at_which_the_archive_fails(watch, error):
    for name in ("a", "b", "c"):
        watch.archive.arrives(name)
    watch.slides.answers = {"a": [error] * (ARCHIVE_TRIES - 1), "b": [error] * ARCHIVE_TRIES}
    watch.run()
    assert watch.slides.tried == ["a"] * ARCHIVE_TRIES + ["b"] * ARCHIVE_TRIES + ["c"]
    assert watch.outcomes() == {"answered": 2, "given up": 1}


def test_a_model_that_is_stuck_ends_the_watch_and_costs_no_slide_its_result(watch, caplog):
    for name in ("a", "b"):
        watch.archive.arrives(name)
    watch.slides.answers["a"] = [ModelNotReady("stuck")] * 5
    for _ in range(5):
        watch.gets_stuck()
        assert watch.state() == {"archive": "http://archive", "last_change": 2, "tries": 0, "archive_failures": 0}
    assert caplog.records == []
    watch.run()
    assert watch.slides.tried == ["a"] * 6 + ["b"]
    assert watch.outcomes() == {"answered": 2}


def test_failures_of_the_archive_are_counted_across_restarts_and_apart_from_the_slides_own(watch):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [ArchiveUnavailable("down")] * 5 + [asyncio.CancelledError()]
    watch.run()
    assert watch.state() == {"archive": "http://archive", "last_change": 2, "tries": 0, "archive_failures": 5}
    watch.slides.answers["a"] = [SlideUnreadable("a blip")] * 2 + [ArchiveUnavailable("down")] * (ARCHIVE_TRIES - 6)
    watch.run()
    assert watch.outcomes() == {"answered": 1}


def test_progress_is_a_change_done_with_or_nothing_to_do(watch, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("prometheus_client.metrics.time.time", lambda: now[0])

    async def fails(study_uid: str, series_uid: str, keep: Any) -> Any:
        now[0] += 60
        if now[0] < 1400:
            raise ArchiveUnavailable("down")
        raise asyncio.CancelledError

    watch.slides.segment = fails
    watch.archive.failures = [ArchiveUnavailable("down")]
    watch.archive.arrives("a")
    watch.run()
    assert watch.progress() == 1000, "stuck since, although the log was read"
    assert watch.registry.get_sample_value("tessera_watch_last_poll_timestamp_seconds") == 1360
    del watch.slides.segment
    watch.run()
    assert watch.progress() == now[0]
    now[0] = 5000
    watch.run()
    assert watch.progress() == 5000, "nothing to do"


def test_a_watcher_whose_model_gets_stuck_at_each_start_shows_since_when_it_makes_no_progress(watch, monkeypatch):
    """Before, each start was progress, and a watcher that was started again and again looked well for ever."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [ModelNotReady("stuck")] * 5
    for _ in range(5):
        watch.gets_stuck()
        now[0] += 400
        watch.was_left_alone_for(300)
    assert watch.progress() == 1000
    assert watch.registry.get_sample_value("tessera_watch_last_poll_timestamp_seconds") == 2600
    watch.run()
    assert watch.progress() == 3000


def test_a_first_start_that_fails_each_time_shows_since_when(tmp_path, monkeypatch):
    """Also where it gets no further than to its bookmark, as without a model that can be loaded."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    for _ in range(3):
        with Bookmark(tmp_path / "state.json", "http://one") as bookmark:
            assert bookmark.last_progress == 1000
        now[0] += 60


def test_a_watcher_that_was_off_for_a_day_makes_progress_once_the_archive_gives_its_log(watch, monkeypatch):
    """Where it was stopped at a slide too, which may take long: nobody was there to answer it."""
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [asyncio.CancelledError(), asyncio.CancelledError(), ModelNotReady("stuck")]
    watch.run()
    now[0] += 86400
    watch.was_left_alone_for(86400)
    watch.archive.failures = [ArchiveUnavailable("down")]
    at_looks, at_slides = [], []
    changes, segment = watch.archive.changes, watch.slides.segment
    monkeypatch.setattr(watch.archive, "changes", lambda *of: at_looks.append(watch.progress()) or changes(*of))
    monkeypatch.setattr(watch.slides, "segment", lambda *of: at_slides.append(watch.progress()) or segment(*of))
    watch.run()
    assert at_looks == [1000, 1000], "it was down at the first"
    assert at_slides == [87400]
    now[0] += 400
    watch.was_left_alone_for(400)
    watch.gets_stuck()
    assert watch.progress() == 87400, "and no further start is progress"


def test_only_a_watcher_that_was_told_to_leave_was_off(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])

    def opened() -> Bookmark:
        return Bookmark(tmp_path / "state.json", "http://one")

    def after(error: BaseException | None) -> float:
        with suppress(BaseException), opened():
            if error is not None:
                raise error
        now[0] += 86400
        with suppress(ModelNotReady), opened() as bookmark:
            raise ModelNotReady("so that nothing is noted")
        return bookmark.unattended_seconds

    assert after(None) == 86400
    assert after(asyncio.CancelledError()) == 86400
    assert after(ModelNotReady("stuck")) == 0
    killed = opened()
    killed._lock.close()
    now[0] += 86400
    with opened() as bookmark:
        assert bookmark.unattended_seconds == 0


def test_a_series_that_became_stable_while_the_archive_was_restarted_is_answered(watch):
    """Its log then never says so."""
    watch.archive.begins("a")
    watch.run()
    assert watch.slides.tried == []
    watch.archive.unstable.clear()
    watch.archive.arrives("b")
    watch.run()
    assert watch.slides.tried == ["a", "b"]
    assert watch.outcomes() == {"answered": 2}


def test_the_log_is_read_no_further_than_to_a_slide_that_still_arrives_and_all_are_answered_in_the_end(watch):
    watch.archive.begins("a")
    watch.archive.arrives("b")
    watch.run()
    assert watch.slides.tried == []
    assert (watch.state()["last_change"], watch.state()["tries"]) == (1, 0)
    watch.archive.unstable.clear()
    watch.archive.logs("a", "StableSeries")
    watch.run()
    assert watch.slides.tried == ["b", "a"]
    assert watch.outcomes() == {"answered": 2}


def test_a_slide_that_arrives_without_end_does_not_hold_up_the_others_for_long(watch):
    watch.archive.begins("endless")
    watch.archive.arrives("a")
    watch.run(polls=2)
    assert watch.slides.tried == ["a"]
    watch.archive.unstable.clear()
    watch.archive.logs("endless", "StableSeries")
    watch.run()
    assert watch.slides.tried == ["a", "endless"]
    assert watch.outcomes() == {"answered": 2}


def test_a_series_of_another_kind_that_still_arrives_holds_up_nothing(watch):
    watch.archive.begins("ct", "CT")
    watch.archive.arrives("a")
    watch.run()
    assert watch.slides.tried == ["a"]


def test_the_series_itself_failing_to_be_found_counts_too(watch, monkeypatch):
    """As where the archive answers 504 for it alone."""
    watch.archive.arrives("a")
    watch.archive.arrives("b")
    found = watch.archive.series

    def series(resource: str) -> SeriesOfStudy | None:
        if resource == "a":
            raise ArchiveUnavailable("504")
        return found(resource)

    monkeypatch.setattr(watch.archive, "series", series)
    watch.run()
    assert watch.outcomes() == {"given up": 1, "answered": 1}


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_no_slide_is_passed_over_while_the_state_cannot_be_written(watch, monkeypatch, fails_at):
    """A full disk: from some write on, four in a row fail."""
    for name in ("a", "b"):
        watch.archive.arrives(name)
    writes = 0
    really = os.replace

    def replace(source: Path, target: Path) -> None:
        nonlocal writes
        writes += 1
        if fails_at < writes <= fails_at + 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        really(source, target)

    monkeypatch.setattr("os.replace", replace)
    watch.run()
    assert set(watch.slides.tried) == {"a", "b"}
    assert "given up" not in watch.outcomes()
    assert sum(watch.outcomes().values()) == 2
    assert watch.state() == {"archive": "http://archive", "last_change": 8, "tries": 0, "archive_failures": 0}


def test_a_stop_is_not_lost_where_the_state_cannot_be_written(watch, monkeypatch, caplog):
    watch.archive.arrives("a")

    async def is_stopped(study_uid: str, series_uid: str, keep: Any) -> Any:
        monkeypatch.setattr("os.replace", fails)
        raise asyncio.CancelledError

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    watch.slides.segment = is_stopped
    watch.run(polls=1000)  # raises CancelledError, and not at a poll
    assert [record.error for record in caplog.records] == ["OSError"]


@pytest.mark.parametrize(
    "error",
    [SlideUnreadable("no pixels"), InferenceFailed("failed"), ArchiveRefused("no"), RuntimeError(f"a bug at {UID}")],
)
def test_a_slide_that_fails_is_given_up_after_some_tries_and_the_next_one_answered(watch, caplog, error):
    for name in ("a", "b"):
        watch.archive.arrives(name)
    watch.slides.answers["a"] = [error] * 5
    watch.run()
    assert watch.slides.tried == ["a", "a", "a", "b"]
    assert watch.outcomes() == {"given up": 1, "answered": 1}
    assert "series given up" in caplog.text


def test_a_slide_that_fails_once_is_answered(watch):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [SlideUnreadable("a blip")]
    watch.run()
    assert watch.outcomes() == {"answered": 1}
    assert len(watch.waits) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotASlide("a label"), "not a slide"),
        (OtherStain("brown"), "not H&E"),
        (ImageTooLarge("huge"), "too large"),
        (SeriesNotFound("none"), "gone"),
    ],
)
def test_what_no_further_try_would_change_is_passed_over_at_once(watch, error, outcome):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [error]
    watch.run()
    assert watch.slides.tried == ["a"]
    assert watch.outcomes() == {outcome: 1}
    assert watch.waits == []


def test_a_slide_that_is_too_large_is_said_with_its_size(watch, caplog):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [ImageTooLarge("the slide is 9x9 px (1x1 mm at 1 um/px)")]
    watch.run()
    [line] = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert vars(line)["reason"] == "the slide is 9x9 px (1x1 mm at 1 um/px)"


def test_a_slide_that_is_not_he_is_said_with_the_reason_and_the_number_of_its_change(watch, caplog):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [OtherStain("Only 3% of what is stained")]
    watch.run()
    [line] = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert line.getMessage() == "slide not H&E"
    assert (vars(line)["change"], vars(line)["reason"]) == (3, "Only 3% of what is stained")
    assert watch.slides.stored == []


def test_a_series_that_was_deleted_meanwhile_is_passed_over(watch):
    watch.archive.arrives("a")
    watch.archive.modalities.clear()
    watch.run()
    assert watch.slides.tried == []
    assert watch.outcomes() == {"gone": 1}


def test_an_unforeseen_error_is_logged_by_place_not_by_message(watch, caplog):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [KeyError(UID)]
    watch.run()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.error == "KeyError"
    assert record.at[-1].startswith(__file__)
    assert UID not in str(vars(record))


def test_a_slide_that_ends_the_process_is_given_up_in_the_end(watch):
    """As one that takes all memory does: the count of tries is on disk before each."""
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [KeyboardInterrupt()] * 9
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            watch.run()
    watch.run()
    assert watch.slides.tried == ["a"] * 3
    assert watch.outcomes() == {"given up": 1}


def test_a_kill_between_a_stored_result_and_its_bookmark_neither_loses_nor_doubles_it(watch, monkeypatch):
    """A process of its own, which is killed for good: what is on disk is all that the next one has."""
    for name in ("a", "b"):
        watch.archive.arrives(name)
    stored = watch.path.with_name("stored")
    watch.slides = KeptSlides(stored)

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def run_until_killed() -> None:
        monkeypatch.setattr(Bookmark, "move", killed)
        watch.run()

    process = multiprocessing.get_context("fork").Process(target=run_until_killed)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert stored.read_text().split() == ["a"]
    assert (watch.state()["last_change"], watch.state()["tries"]) == (2, 1)
    watch.run()
    assert stored.read_text().split() == ["a", "b"]
    assert watch.outcomes() == {"answered before": 1, "answered": 1}
    assert watch.state()["last_change"] == 8


def test_a_stop_in_the_middle_of_a_slide_stores_nothing_and_counts_no_try(watch):
    watch.archive.arrives("a")
    watch.slides.answers["a"] = [asyncio.CancelledError()]
    watch.run()
    assert watch.slides.stored == []
    assert watch.state() == {"archive": "http://archive", "last_change": 2, "tries": 0, "archive_failures": 0}
    watch.run()
    assert len(watch.slides.stored) == 1


def test_a_log_that_begins_anew_is_read_from_its_start(watch, caplog):
    watch.path.write_text(json.dumps({"archive": "http://archive", "last_change": 5000, "tries": 0}))
    watch.archive.arrives("a")
    watch.run()
    assert watch.slides.tried == ["a"]
    assert "begun anew" in caplog.text


def test_the_waits_double_up_to_a_limit_and_are_shortened_at_random():
    backoff = Backoff()
    waits = [backoff.next_seconds() for _ in range(12)]
    for longest, wait in zip([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300], waits, strict=True):
        assert longest / 2 <= wait <= longest
    assert Backoff().next_seconds() != Backoff().next_seconds()
    backoff.reset()
    assert backoff.next_seconds() <= 1


def test_a_success_resets_the_waits(watch):
    for name in ("a", "b"):
        watch.archive.arrives(name)
        watch.slides.answers[name] = [ArchiveUnavailable("down")] * 6
    watch.run()
    assert len(watch.waits) == 12
    for first, last in (watch.waits[0:6:5], watch.waits[6:12:5]):
        assert first <= 1
        assert last >= 16


def test_a_bookmark_of_another_archive_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "state.json"
    with Bookmark(path, "http://one") as bookmark:
        bookmark.move(7)
    with pytest.raises(StartupError, match="bookmark of another archive"):
        Bookmark(path, "http://two")
    with Bookmark(path, "http://one") as bookmark:
        assert bookmark.last_change == 7


def test_two_watchers_cannot_have_one_bookmark(tmp_path):
    path = tmp_path / "state.json"
    with Bookmark(path, "http://one"), pytest.raises(StartupError, match=r"another watcher uses .*state\.json"):
        Bookmark(path, "http://one")
    with Bookmark(path, "http://one") as bookmark:
        bookmark.move(1)


def test_a_bookmark_of_an_earlier_release_is_read(tmp_path):
    path = tmp_path / "state.json"
    path.write_text('{"archive": "http://one", "last_change": 7, "tries": 1}')
    with Bookmark(path, "http://one") as bookmark:
        assert (bookmark.last_change, bookmark.tries, bookmark.excused_tries) == (7, 1, 0)
        assert time.time() - 60 < bookmark.last_progress <= time.time()


def test_progress_that_a_clock_which_was_ahead_has_written_does_not_lie_ahead(tmp_path):
    path = tmp_path / "state.json"
    path.write_text(f'{{"archive": "http://one", "last_progress": {time.time() + 1e6}}}')
    with Bookmark(path, "http://one") as bookmark:
        assert bookmark.last_progress <= time.time()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"archive": "http://one", "last_change": -1}',
        '{"last_change": 1}',
        '{"archive": "http://one", "last_progress": "Infinity"}',
    ],
)
def test_a_file_that_is_no_bookmark_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(StartupError, match="no bookmark of a watcher"):
        Bookmark(path, "http://one")
    assert path.read_text() == content


def test_a_bookmark_that_cannot_be_kept_is_said_at_the_start(tmp_path):
    with pytest.raises(StartupError, match="choose another --state"):
        Bookmark(tmp_path / "missing" / "state.json", "http://one")


def test_a_bookmark_is_new_until_it_moves(tmp_path):
    path = tmp_path / "state.json"
    for _ in range(2):
        with Bookmark(path, "http://one") as bookmark:
            assert bookmark.is_new
    with Bookmark(path, "http://one") as bookmark:
        bookmark.move(0)
    with Bookmark(path, "http://one") as bookmark:
        assert not bookmark.is_new


def test_a_bookmark_leaves_no_partial_file(tmp_path):
    path = tmp_path / "state.json"
    with Bookmark(path, "http://one") as bookmark:
        bookmark.begin_try()
    with Bookmark(path, "http://one") as bookmark:
        assert bookmark.tries == 1
        bookmark.forget_try()
        bookmark.move(3)
    assert {file.name for file in tmp_path.iterdir()} == {"state.json"}


def test_a_bookmark_that_does_not_fit_on_the_disk_is_as_it_was_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "state.json"
    with Bookmark(path, "http://one") as bookmark:
        bookmark.move(3)
        with full_at(10), pytest.raises(OSError, match="File too large"):
            bookmark.move(4)
        assert bookmark.last_change == 3
    assert {file.name for file in tmp_path.iterdir()} == {"state.json"}
    with Bookmark(path, "http://one") as bookmark:
        assert bookmark.last_change == 3
