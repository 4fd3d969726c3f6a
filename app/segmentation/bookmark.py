"""How far a watcher has read in an archive's log of changes: a small file that is whole at any moment."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import StartupError


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    archive: str
    last_change: int | None = Field(default=None, ge=0)
    tries: int = Field(default=0, ge=0)


class Bookmark:
    """The last change that is done with, and how often the next one has been tried; what must not be lost is written.

    Args:
        path: The file; one of another archive, or none, begins before the start of the log.
        archive: The archive's URL.

    Raises:
        StartupError: The file is no bookmark, or cannot be read or written.
    """

    def __init__(self, path: Path, archive: str) -> None:
        self._path = path
        self._state = _State(archive=archive)
        try:
            if path.exists() and (found := _State.model_validate_json(path.read_bytes())).archive == archive:
                self._state = found
            self.save()
        except ValidationError as error:
            raise StartupError(f"{path} is no bookmark of a watcher; remove it, or choose another --state") from error
        except OSError as error:
            raise StartupError(
                f"{path} cannot be read and written: {error.strerror}; choose another --state"
            ) from error

    @property
    def last_change(self) -> int:
        """The number of the last change that is done with; 0 before the first."""
        return self._state.last_change or 0

    @property
    def is_new(self) -> bool:
        """Whether it has never moved, in this process or an earlier one."""
        return self._state.last_change is None

    @property
    def tries(self) -> int:
        """How often the change after that has been tried, across restarts."""
        return self._state.tries

    def begin_try(self) -> None:
        """Note that the next change is tried: should it end this process, the next one knows."""
        self._state.tries += 1
        self.save()

    def forget_try(self) -> None:
        """Take back the last try."""
        self._state.tries -= 1
        self.save()

    def move(self, change: int) -> None:
        """Be done with a change."""
        self.pass_over(change)
        self.save()

    def pass_over(self, change: int) -> None:
        """Be done with a change that cost nothing: the file need not know at once."""
        self._state.last_change, self._state.tries = change, 0

    def save(self) -> None:
        """Write the file."""
        partial = self._path.with_name(f".{self._path.name}.part")
        with partial.open("w", encoding="utf-8") as file:
            file.write(self._state.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)
