"""`tessera dicomweb watch` against a real Orthanc, slides sent by `storescu`."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from tests.conftest import ROOT
from tests.faulty_bundle import STUCK, write_faulty_bundle
from tests.orthanc import Orthanc, running_orthanc
from tests.slides import brown, changed, cmu1, stained_with_pas, write_slide
from tests.web import Server, serving

WAIT_SECONDS = 120
LEVELS = 2
"""Of the three of most slides here, those from the model's spacing on: a result has an instance for each."""


class RunningWatcher:
    """A `tessera dicomweb watch` of its own process."""

    def __init__(self, archive: Orthanc | Server, state: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "app.cli", "dicomweb", "watch", "--url", archive.url, "--state", str(state)]
        command += ["--allow-host", "127.0.0.1", "--poll", "0.2", "--device", "cpu", "--metrics-port", "0"]
        self.process = subprocess.Popen(
            [*command, "--log-format", "json", "--log-level", "debug", *flags],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TESSERA_STALL_TIMEOUT": "20"},
        )
        self.log: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.log.append(json.loads(line))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def messages(self) -> list[str]:
        return [line["message"] for line in self.log]

    def wait_for(self, message: str, times: int = 1) -> None:
        """Wait until the log has a message, so many times."""

        def there() -> bool:
            return self.messages().count(message) >= times or self._ended

        with self._changed:
            self._changed.wait_for(there, WAIT_SECONDS)
        assert self.messages().count(message) >= times, self.log

    def metrics(self) -> dict[str, float]:
        """Return the samples of the watcher's metrics."""
        address = next(found[0] for line in self.messages() if (found := re.search(r"http://\S+", line)))
        lines = httpx.get(address).text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(WAIT_SECONDS)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path / "orthanc") as running:
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningWatcher]]:
    """Starts watchers, and ends those that are left."""
    running: list[RunningWatcher] = []

    def started(archive: Orthanc | Server, *flags: str) -> RunningWatcher:
        running.append(RunningWatcher(archive, tmp_path / "watch.json", *flags))
        return running[-1]

    yield started
    for watcher in running:
        if watcher.process.poll() is None:
            watcher.process.kill()
            watcher.stop()


def last_change(archive: Orthanc) -> int:
    return int(httpx.get(f"{archive.url}/changes?last").json()["Last"])


def stable(archive: Orthanc, modality: str, series: int) -> int:
    """Wait until so many series of a modality are stable, and return the number of the last change."""
    deadline = threading.Event()
    for _ in range(10 * WAIT_SECONDS):
        found = archive.series(modality)
        if len(found) >= series and all(one["IsStable"] for one in found):
            return last_change(archive)
        deadline.wait(0.1)
    raise AssertionError(f"no {series} stable series of {modality}: {archive.series(modality)}")


def has_read(watcher: RunningWatcher, change: int) -> None:
    """Wait until the watcher is done with a change."""
    deadline = threading.Event()
    for _ in range(10 * WAIT_SECONDS):
        if watcher.metrics()["tessera_watch_last_change"] >= change:
            return
        deadline.wait(0.1)
    raise AssertionError(f"the watcher has not read change {change}: {watcher.log}")


def polls_once_more(watcher: RunningWatcher) -> None:
    """Wait until the watcher has looked at the archive as it now is."""
    deadline, since = threading.Event(), time.time()
    for _ in range(10 * WAIT_SECONDS):
        if watcher.metrics()["tessera_watch_last_poll_timestamp_seconds"] > since + 0.5:
            return
        deadline.wait(0.1)
    raise AssertionError(f"the watcher does not look at the archive: {watcher.log}")


def results(archive: Orthanc) -> list[str]:
    """Return Orthanc's identifiers of all instances of results."""
    return sorted(instance for series in archive.series("SEG") for instance in series["Instances"])


def test_a_slide_sent_by_a_scanner_is_answered_once_and_the_answer_is_not(archive, start, tmp_path):
    watcher = start(archive)
    watcher.wait_for("watching")
    paths = write_slide(tmp_path / "slide", cmu1(600, 500), name="scanned")
    archive.send(paths)
    watcher.wait_for("series answered")
    has_read(watcher, stable(archive, "SEG", 1))
    archive.send(paths)  # a scanner that sends twice
    assert len(results(archive)) == LEVELS
    metrics = watcher.metrics()
    assert metrics['tessera_watch_series_total{outcome="answered"}'] == 1
    assert metrics["tessera_watch_last_answer_timestamp_seconds"] > 1e9
    assert metrics["tessera_images_total"] == 1
    [begun] = [line for line in watcher.log if line["message"] == "segmenting a slide"]
    assert begun["slide"] == begun["seen_by_model"] == begun["result"] == "300x250 px (0.299x0.249 mm at 0.998 um/px)"
    assert "tessera_ready" not in metrics  # 0 would say that the watcher is not
    assert watcher.stop() == 0
    assert watcher.messages()[-1] == "stopped"

    slide = pydicom.dcmread(paths[0], stop_before_pixels=True)
    log = json.dumps(watcher.log)
    for identifying in (slide.StudyInstanceUID, slide.SeriesInstanceUID, slide.SOPInstanceUID, "2.25.", "CANARY"):
        assert identifying not in log


def test_nothing_is_answered_twice_and_nothing_missed_across_restarts(archive, start, tmp_path):
    archive.send(write_slide(tmp_path / "slide", cmu1(600, 500), name="first"))
    stable(archive, "SM", 1)
    watcher = start(archive)
    watcher.wait_for("series answered")
    has_read(watcher, stable(archive, "SEG", 1))
    assert watcher.stop(signal.SIGINT) == 0

    archive.send(write_slide(tmp_path / "slide", cmu1(500, 600), name="second"))
    stable(archive, "SM", 2)
    watcher = start(archive)
    watcher.wait_for("series answered")
    has_read(watcher, stable(archive, "SEG", 2))
    assert watcher.messages().count("series answered") == 1
    assert watcher.stop() == 0
    answered = results(archive)

    (tmp_path / "watch.json").unlink()
    watcher = start(archive)
    watcher.wait_for("series answered before", 2)
    has_read(watcher, last_change(archive))
    assert "series answered" not in watcher.messages()
    assert watcher.stop() == 0
    assert results(archive) == answered


def test_slides_that_were_there_before_the_first_start_are_skipped_where_that_is_asked_for(archive, start, tmp_path):
    archive.send(write_slide(tmp_path / "slide", cmu1(600, 500), name="old"))
    stable(archive, "SM", 1)
    watcher = start(archive, "--skip-existing")
    watcher.wait_for("skipping what the archive holds")
    has_read(watcher, last_change(archive))
    assert watcher.stop() == 0

    archive.send(write_slide(tmp_path / "slide", cmu1(500, 600), name="new"))
    stable(archive, "SM", 2)
    watcher = start(archive, "--skip-existing")
    watcher.wait_for("series answered")
    has_read(watcher, stable(archive, "SEG", 1))
    assert [message for message in watcher.messages() if message.startswith(("series", "skipping"))] == [
        "series answered"
    ]
    assert watcher.stop() == 0
    assert len(archive.series("SEG")) == 1


def test_an_archive_that_is_down_is_waited_for(start, tmp_path):
    archive = Orthanc(tmp_path / "orthanc")
    paths = write_slide(tmp_path / "slide", cmu1(600, 500), name="patient")
    watcher = start(archive)
    watcher.wait_for("the watch met an error", 2)
    failed = [line for line in watcher.log if line["message"] == "the watch met an error"]
    assert {line["error"] for line in failed} == {"ArchiveUnavailable"}
    archive.start()
    try:
        archive.send(paths)
        watcher.wait_for("series answered")
        archive.stop()
        watcher.wait_for("the watch met an error", len(failed) + 1)
        archive.start()
        archive.send(write_slide(tmp_path / "slide", cmu1(500, 600), name="later"))
        watcher.wait_for("series answered", 2)
        assert watcher.stop() == 0
        assert len(results(archive)) == 2 * LEVELS
    finally:
        archive.kill()


@pytest.mark.parametrize("watching", [True, False], ids=["with the watcher running", "with the watcher stopped"])
def test_a_slide_that_arrives_right_before_the_archive_is_restarted_is_answered(start, tmp_path, watching):
    """Orthanc then never writes that it is stable."""
    with running_orthanc(tmp_path / "orthanc", StableAge=600) as archive:
        watcher = start(archive)
        watcher.wait_for("watching")
        archive.send(write_slide(tmp_path / "slide", cmu1(600, 500), name="first"))
        polls_once_more(watcher)
        if not watching:
            assert watcher.stop() == 0
        later = write_slide(tmp_path / "slide", cmu1(500, 600), name="later")
        archive.stop()
        archive.start()
        archive.send(later)
        if not watching:
            watcher = start(archive)
        watcher.wait_for("series answered")
        assert watcher.stop() == 0
        kinds = [change["ChangeType"] for change in httpx.get(f"{archive.url}/changes?limit=1000").json()["Changes"]]
        assert "StableSeries" not in kinds
        assert len(results(archive)) == LEVELS
        held = json.loads((tmp_path / "watch.json").read_text())["last_change"]
        assert kinds[held:].count("NewSeries") == 2, "the slide that still arrives, and the first one's result"


def test_a_stop_does_not_wait_for_an_archive_that_says_nothing(start):
    asked, over = threading.Event(), threading.Event()

    def answer(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        over.wait(2 * WAIT_SECONDS)

    with serving(answer) as silent:
        watcher = start(silent, "--timeout", str(2 * WAIT_SECONDS))
        try:
            assert asked.wait(WAIT_SECONDS)
            assert watcher.stop() == 0
        finally:
            over.set()
        assert watcher.messages()[-1] == "stopped"
        assert len(silent.seen) == 1


def test_a_watcher_shows_from_its_start_how_far_it_was_and_when_it_made_progress(start, tmp_path):
    """Before, the last change was 0 and progress was now, until there was some."""
    bookmark = tmp_path / "watch.json"
    over = threading.Event()
    with serving(lambda _: over.wait(2 * WAIT_SECONDS)) as silent:
        bookmark.write_text(json.dumps({"archive": silent.url, "last_change": 7, "last_progress": 1000.0}))
        watcher = start(silent, "--timeout", str(2 * WAIT_SECONDS))
        try:
            watcher.wait_for("watching")
            metrics = watcher.metrics()
            assert watcher.stop() == 0
        finally:
            over.set()
    assert metrics["tessera_watch_last_change"] == 7
    assert metrics["tessera_watch_last_progress_timestamp_seconds"] == 1000
    assert json.loads(bookmark.read_text())["last_progress"] == 1000


def test_a_slide_that_cannot_be_read_does_not_hold_up_the_next(archive, start, tmp_path):
    broken = write_slide(tmp_path / "slide", cmu1(600, 500), name="broken", downsamples=(1,))
    slide = pydicom.dcmread(broken[0])
    slide.PixelData = encapsulate([b"no picture"] * slide.NumberOfFrames)
    slide.save_as(broken[0], enforce_file_format=True)
    archive.send(broken)
    archive.send(write_slide(tmp_path / "slide", cmu1(300, 300), name="label", flavor="LABEL", downsamples=(1,)))
    stable(archive, "SM", 2)
    archive.send(write_slide(tmp_path / "slide", cmu1(600, 500), name="whole"))
    watcher = start(archive, "--tries", "2")
    watcher.wait_for("series answered")
    outcomes = [message for message in watcher.messages() if message.startswith("series ")]
    assert sorted(outcomes) == ["series answered", "series given up", "series not a slide"]
    assert watcher.stop() == 0
    assert len(results(archive)) == LEVELS


def test_slides_that_are_not_he_are_passed_over_and_that_is_said_without_their_uids(archive, start, tmp_path):
    """Before, they got a map of tumor like any other."""
    by_colour = write_slide(tmp_path / "slide", brown(cmu1(600, 500)), name="brown")
    by_header = [
        changed(path, SpecimenDescriptionSequence=stained_with_pas())
        for path in write_slide(tmp_path / "slide", cmu1(500, 600), name="pas")
    ]
    for paths in (by_colour, by_header):
        archive.send(paths)
    stable(archive, "SM", 2)
    archive.send(write_slide(tmp_path / "slide", cmu1(600, 600), name="he"))
    watcher = start(archive)
    watcher.wait_for("series answered")
    assert sorted(message for message in watcher.messages() if message.startswith("series ")) == [
        "series answered",
        *2 * ["series not H&E"],
    ]
    reasons = sorted(line["reason"] for line in watcher.log if line["message"] == "slide not H&E")
    assert [line["level"] for line in watcher.log if line["message"] == "slide not H&E"] == 2 * ["warning"]
    assert re.match(r"Only \d+% of what is stained on the slide has the colours of haematoxylin and eosin", reasons[0])
    assert reasons[1].startswith("The slide's header names other stains")
    assert watcher.metrics()['tessera_watch_series_total{outcome="not H&E"}'] == 2
    assert watcher.stop() == 0
    for path in (by_colour[0], by_header[0]):
        slide = pydicom.dcmread(path, stop_before_pixels=True)
        for uid in (slide.StudyInstanceUID, slide.SeriesInstanceUID, slide.SOPInstanceUID):
            assert uid not in json.dumps(watcher.log)
    assert len(results(archive)) == LEVELS


def test_a_stop_in_the_middle_of_a_slide_stores_nothing_and_the_next_start_answers_it(archive, start, tmp_path):
    paths = write_slide(tmp_path / "slide", np.tile(cmu1(), (2, 2, 1)), name="large", downsamples=(1,))
    archive.send(paths)
    stable(archive, "SM", 1)
    watcher = start(archive, "--cores", "1")
    watcher.wait_for("watching")
    pause = threading.Event()
    while watcher.metrics().get('tessera_stage_duration_seconds_count{stage="infer"}', 0) < 1:
        pause.wait(0.05)
    assert watcher.stop() == 0
    assert results(archive) == []
    assert json.loads((tmp_path / "watch.json").read_text())["tries"] == 0
    watcher = start(archive)
    watcher.wait_for("series answered")
    assert watcher.stop() == 0
    assert len(results(archive)) == 1


def test_a_stuck_model_ends_the_command_and_the_next_start_answers_the_slide(archive, start, tmp_path):
    """Before, the watcher went on without a model, and gave up each slide that came."""
    image = cmu1(600, 500).copy()
    image[0, 0, 0] = STUCK
    syntax = ExplicitVRLittleEndian
    paths = write_slide(tmp_path / "slide", image, name="stuck", um_per_px=1.0, downsamples=(1,), syntax=syntax)
    archive.put(paths)
    stable(archive, "SM", 1)
    slide = pydicom.dcmread(paths[0], stop_before_pixels=True)
    write_faulty_bundle(tmp_path / "faulty")
    model = ["--allow-host", "127.0.0.1", "--device", "cpu", "--bundle", str(tmp_path / "faulty")]
    one = ["segment", "--url", archive.dicomweb_url, "--study", slide.StudyInstanceUID, "--series"]
    for command in (
        ["watch", "--url", archive.url, "--state", str(tmp_path / "watch.json")],
        [*one, slide.SeriesInstanceUID],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", "dicomweb", *command, *model],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=WAIT_SECONDS,
            env={**os.environ, "TESSERA_STALL_TIMEOUT": "1", "TESSERA_LOG_FORMAT": "json"},
        )
        assert done.returncode == 1, done.stderr
        last = done.stderr.splitlines()[-1]
        if command[0] == "watch":
            assert json.loads(last)["level"] == "critical"
            assert json.loads(last)["message"].startswith("the model does not answer any more")
        else:  # a person reads what this one says
            assert last.startswith("Error: the model does not answer any more")
        assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "watch.json").read_text())["tries"] == 0
    watcher = start(archive)
    watcher.wait_for("series answered")
    assert watcher.stop() == 0
    assert len(results(archive)) == 1
