"""One thing to do after a time."""

import asyncio
from asyncio import TimerHandle
from collections.abc import Callable


class Alarm:
    """Calls `act` after a time, unless it is told not to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> None:
        self._loop = loop
        self._act = act
        self._due: TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Call it after `seconds`; one that is set already stays as it is."""
        if self._due is None:
            self._due = self._loop.call_later(seconds, self._ring)

    def clear(self) -> None:
        """Do not call it."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _ring(self) -> None:
        self._due = None
        self._act()
