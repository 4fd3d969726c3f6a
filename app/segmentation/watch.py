"""Following an Orthanc: each slide that arrives is answered once, whatever happens to the archive or to this process.

The archive is the truth about what is answered: the series of a model's results follows from the slide's, and a slide
whose result is there is passed over. The bookmark only says where in the archive's log to go on: one that is lost costs
questions, not a second result.

A slide is answered at its StableSeries. Orthanc keeps in memory which series are still arriving, and one that is
restarted never writes the StableSeries of those, so a NewSeries whose StableSeries is not in sight is looked at too:

- The series is stable: it is answered here. Should a StableSeries come after all, the answer is found to be there.
- It is still arriving: the log is read no further, so that a restart of the archive, or of this process, does not lose
  it. What is behind it waits, for `_LONGEST_HOLD_SECONDS` at most, as a scanner may send to one series for hours; then
  its StableSeries is relied on, and only an archive that restarts before that loses it.
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Literal, get_args

from app.errors import (
    ArchiveDenied,
    ArchiveUnavailable,
    ImageTooLarge,
    ModelNotReady,
    NotASlide,
    OtherStain,
    OutOfMemory,
    SeriesNotFound,
    TesseraError,
)
from app.interop.orthanc import NEW_SERIES, STABLE_SERIES, Change, Orthanc
from app.segmentation.archive import MICROSCOPY, ArchiveSegmentation
from app.segmentation.backoff import Backoff
from app.segmentation.bookmark import Bookmark
from app.telemetry.watching import WatchMetrics

PAGE = 1000
"""Changes read at once: enough for most series to have their NewSeries and their StableSeries on one page."""
ARCHIVE_TRIES = 10
"""Of a series at which the archive fails or memory is short: with some 7 minutes of waits, in which that may pass."""
_LONGEST_HOLD_SECONDS = 600.0
_LONG_ABSENCE_SECONDS = 1800.0
"""As in docker/alerts.yml. Not the pause before a restart, which is minutes at most."""

Outcome = Literal["answered", "answered before", "not a slide", "not H&E", "too large", "gone", "given up"]

_Arriving = Literal["arriving"]

_PASSED_OVER: dict[type[TesseraError], Outcome] = {
    SeriesNotFound: "gone",
    NotASlide: "not a slide",
    OtherStain: "not H&E",
    ImageTooLarge: "too large",
}

_log = logging.getLogger(__name__)


class Watcher:
    """Follows the archive's log of changes until it is cancelled.

    An archive that does not give its log is waited out, however long that takes. A series that fails is tried a few
    times, also across restarts, and then passed over, so that it does not hold up those behind it: more often where the
    archive fails at it, which gave its log just before, or memory is lacking. A model that is stuck costs no series a
    try: it answers none any more, whatever that shows.

    Restarts are no progress: a watcher that is started again and again shows since when. It is not held against one
    that was told to leave and was off for long, as over a weekend, that nobody was there: once the archive gives it the
    log, it counts anew.

    Args:
        log: The archive's.
        slides: Answers a series.
        bookmark: Where to go on.
        metrics: Told of all this; shows already what the bookmark says.
        poll_seconds: Between two looks at a log that has nothing new.
        tries: How often to try a series that fails; `ARCHIVE_TRIES` where the archive does, or memory.
        skip_existing: Whether a bookmark that is new begins at the end of the log instead of its start.
        wait: Waits a number of seconds; a cancellation ends it at once.
    """

    def __init__(
        self,
        log: Orthanc,
        slides: ArchiveSegmentation,
        bookmark: Bookmark,
        metrics: WatchMetrics,
        poll_seconds: float,
        tries: int,
        skip_existing: bool = False,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._changes = log
        self._slides = slides
        self._bookmark = bookmark
        self._metrics = metrics
        self._poll_seconds = poll_seconds
        self._tries = tries
        self._skip_existing = skip_existing
        self._wait = wait
        self._backoff = Backoff()
        self._held_seconds = 0.0
        self._was_away = bookmark.unattended_seconds > _LONG_ABSENCE_SECONDS
        for outcome in get_args(Outcome):  # each from 0: Prometheus sees no increase in a counter that begins at 1
            metrics.series.labels(outcome)

    async def run(self) -> None:
        """Watch until it is cancelled, which leaves nothing half stored.

        Raises:
            ModelNotReady: The model is stuck, and answers nothing in this process any more.
        """
        while True:
            try:
                caught_up = await self._follow()
            except ModelNotReady:
                raise
            except Exception as error:  # noqa: BLE001  it is reported, and what is wrong with one series must not end all
                wait_seconds = self._backoff.next_seconds()
                self._report(error, wait_seconds)
                await self._wait(wait_seconds)
                continue
            self._backoff.reset()
            if caught_up:
                await self._wait(self._poll_seconds)

    async def _follow(self) -> bool:
        """Act on the next page of changes, up to the first slide; return whether there is nothing to do for now."""
        if self._skip_existing and self._bookmark.is_new:
            self._bookmark.move(await asyncio.to_thread(self._changes.last_change))
            self._show()
            _log.info("skipping what the archive holds", extra={"after_change": self._bookmark.last_change})
        page = await asyncio.to_thread(self._changes.changes, self._bookmark.last_change, PAGE)
        self._metrics.last_poll.set_to_current_time()
        if self._was_away:
            self._bookmark.save()
            self._show()
            self._was_away = False
        if page.last < self._bookmark.last_change:
            _log.warning("the archive's log of changes has begun anew; reading it from its start")
            self._bookmark.move(0)
            return False
        stable_at = {change.resource: change.sequence for change in page.changes if change.kind == STABLE_SERIES}
        for change in page.changes:
            if change.kind == STABLE_SERIES or (
                change.kind == NEW_SERIES and stable_at.get(change.resource, 0) < change.sequence
            ):
                outcome = await self._handle(change)
                if outcome == "arriving":
                    return True
                self._show()
                if outcome is not None:
                    return False
            else:
                self._bookmark.pass_over(change.sequence)
                self._show()
        self._bookmark.save()
        self._show()
        return page.done

    def _show(self) -> None:
        self._metrics.show(self._bookmark.last_change, self._bookmark.last_progress)

    async def _handle(self, change: Change) -> Outcome | _Arriving | None:
        """Answer a series, if it is a slide's, and move the bookmark past it; raise to have it tried again.

        Returns:
            What came of the slide, that the bookmark has not moved as it is still arriving, or None: it is no slide.
        """
        begun = time.monotonic()
        outcome = await self._try(change)
        if outcome == "arriving":
            if self._held_seconds < _LONGEST_HOLD_SECONDS:
                self._bookmark.forget_try()
                self._held_seconds += self._poll_seconds
                return outcome
            _log.info("series still arriving", extra={"change": change.sequence})
            outcome = None
        self._bookmark.move(change.sequence)
        self._held_seconds = 0.0
        self._backoff.reset()
        if outcome is None:
            return None
        self._metrics.series.labels(outcome).inc()
        seconds = round(time.monotonic() - begun, 3)
        level = logging.ERROR if outcome == "given up" else logging.INFO
        _log.log(level, "series %s", outcome, extra={"change": change.sequence, "seconds": seconds})
        return outcome

    async def _try(self, change: Change) -> Outcome | _Arriving | None:
        """Return what `_outcome` does, or that the series has failed too often; raise where that is not so yet."""
        if self._bookmark.tries >= self._tries:  # the last try ended the process, as one that takes all memory does
            return "given up"
        self._bookmark.begin_try()
        try:
            return await self._outcome(change)
        except (asyncio.CancelledError, ModelNotReady):
            try:
                self._bookmark.forget_try()  # says nothing about the series
            except OSError as error:  # must not take the place of what is raised
                self._report(error, None)
            raise
        except (ArchiveUnavailable, ArchiveDenied, OutOfMemory, MemoryError) as error:
            self._bookmark.excuse_try()
            if self._bookmark.excused_tries < ARCHIVE_TRIES:
                raise
            self._report(error, None)
            return "given up"
        except Exception as error:
            if self._bookmark.tries < self._tries:
                raise
            self._report(error, None)
            return "given up"

    async def _outcome(self, change: Change) -> Outcome | _Arriving | None:
        """Answer a series; return None for one that is not microscopy, as results are."""
        series = await asyncio.to_thread(self._changes.series, change.resource)
        if series is None:
            return "gone"
        if series.modality != MICROSCOPY:
            return None
        if change.kind == NEW_SERIES and not series.is_stable:
            return "arriving"
        try:
            known = await self._slides.segment(series.study_uid, series.series_uid, self._slides.store)
        except tuple(_PASSED_OVER) as error:  # another try would end alike
            outcome = next(outcome for kind, outcome in _PASSED_OVER.items() if isinstance(error, kind))
            if isinstance(error, (OtherStain, ImageTooLarge)):  # a person can have it answered all the same
                _log.warning("slide %s", outcome, extra={"change": change.sequence, "reason": str(error)})
            return outcome
        if known is not None:
            return "answered before"
        self._metrics.last_answer.set_to_current_time()
        return "answered"

    def _report(self, error: Exception, wait_seconds: float | None) -> None:
        """Log a failure; the message of an error that is not this project's may hold UIDs and stays out."""
        known = isinstance(error, TesseraError)
        kind = type(error).__name__
        self._metrics.failures.labels(kind).inc()
        where = (
            {} if known else {"at": [f"{at.filename}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)]}
        )
        extra = {
            "error": kind,
            "reason": str(error) if known else "unforeseen",
            "after_change": self._bookmark.last_change,
            "try": self._bookmark.tries,
            "excused_tries": self._bookmark.excused_tries,
            **({"wait_seconds": round(wait_seconds, 1)} if wait_seconds is not None else {}),
            **where,
        }
        _log.log(logging.WARNING if known else logging.ERROR, "the watch met an error", extra=extra)
