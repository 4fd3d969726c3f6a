"""How far a watcher has read in an archive's log of changes: a small file that is whole at any moment."""

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import StartupError
from app.segmentation.folder import locked, replace


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    archive: str
    last_change: int | None = Field(default=None, ge=0)
    tries: int = Field(default=0, ge=0)
    archive_failures: int = Field(default=0, ge=0)
    last_progress: float = Field(default_factory=time.time, ge=0, allow_inf_nan=False)
    left_at: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class Bookmark:
    """The last change that is done with, when that was, and how often the next one has been tried since.

    What cannot be written, as on a full disk, has not happened: methods that write raise OSError and change nothing.

    Args:
        path: The file; where there is none, the bookmark is before the start of the log. A lock beside it makes sure
            that one watcher alone has it.
        archive: The archive's URL.

    Raises:
        StartupError: The file is no bookmark, or another archive's, or another watcher has it, or it cannot be read or
            written.
    """

    def __init__(self, path: Path, archive: str) -> None:
        self._path = path
        try:
            with ExitStack() as lock:
                lock.enter_context(locked(path.with_name(f".{path.name}.lock")))
                now = time.time()
                self._state = self._state_of(archive)
                self._unattended_seconds = now - (self._state.left_at or now)
                # From a clock that was ahead, it would hide for as long that there is no progress.
                self._write(last_progress=min(self.last_progress, now), left_at=None)
                self._lock = lock.pop_all()
        except ValidationError as error:
            raise StartupError(f"{path} is no bookmark of a watcher; remove it, or choose another --state") from error
        except BlockingIOError as error:
            raise StartupError(f"another watcher uses {path}; choose another --state") from error
        except OSError as error:
            raise StartupError(
                f"{path} cannot be read and written: {error.strerror}; choose another --state"
            ) from error

    def _state_of(self, archive: str) -> _State:
        if not self._path.exists():
            return _State(archive=archive)
        found = _State.model_validate_json(self._path.read_bytes())
        if found.archive != archive:
            raise StartupError(f"{self._path} is the bookmark of another archive; choose another --state, or remove it")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None or not issubclass(kind, Exception):
                with suppress(OSError):  # then it looks as if it had been killed
                    self._write(left_at=time.time())
        finally:
            self._lock.close()

    @property
    def last_change(self) -> int:
        """The number of the last change that is done with; 0 before the first."""
        return self._state.last_change or 0

    @property
    def last_progress(self) -> float:
        """When a change was last done with or none was left, or since when it counts anew; in seconds since 1970."""
        return self._state.last_progress

    @property
    def unattended_seconds(self) -> float:
        """How long before this process a watcher left it because it was told to; 0 where it was killed or failed."""
        return self._unattended_seconds

    @property
    def is_new(self) -> bool:
        """Whether it has never moved, in this process or an earlier one."""
        return self._state.last_change is None

    @property
    def tries(self) -> int:
        """How often the change after that has been tried, across restarts; without `excused_tries`."""
        return self._state.tries

    @property
    def excused_tries(self) -> int:
        """How often it was tried and the archive failed, or memory was lacking."""
        return self._state.archive_failures

    def begin_try(self) -> None:
        """Note that the next change is tried: should it end this process, the next one knows."""
        self._write(tries=self.tries + 1)

    def forget_try(self) -> None:
        """Take back the last try."""
        self._write(tries=self.tries - 1)

    def excuse_try(self) -> None:
        """Count the last try as a failure of the archive, or of this machine: nothing is wrong with the slide."""
        self._write(tries=self.tries - 1, archive_failures=self.excused_tries + 1)

    def move(self, change: int) -> None:
        """Be done with a change."""
        self._write(last_change=change, tries=0, archive_failures=0, last_progress=time.time())

    def pass_over(self, change: int) -> None:
        """Be done with a change that cost nothing: the file need not know at once."""
        self._state = self._with(last_change=change, tries=0, archive_failures=0, last_progress=time.time())

    def save(self) -> None:
        """Note that there is progress, and write the file."""
        self._write(last_progress=time.time())

    def _with(self, **changed: Any) -> _State:
        return self._state.model_copy(update=changed)

    def _write(self, **changed: Any) -> None:
        state = self._with(**changed)
        replace(self._path, state.model_dump_json().encode())
        self._state = state
