"""How a connection ends: all that was written is sent, and no client can put that off for ever."""

import asyncio

from app.connections.alarm import Alarm
from app.connections.sent import below_tls, received_by, waits_for

_LINGER_SECONDS = 2.0
"""For a client to read an answer that it gets while it still sends: closed at once, it may see a reset instead."""
_LEAST_READ_BYTES = 2**20
"""Of an answer, that a client reads in the time of one request; a slower one is cut off."""
_PARTING_SECONDS = 2.0
"""For a client, once it has all, to confirm that a TLS connection ends: RFC 8446, 6.1, has nobody wait for that."""


class Ending:
    """The end of one connection, of its own accord or because its client does not read.

    Args:
        loop: The connection's, for its alarms.
        transport: The connection's.
        unread_seconds: For which an answer may wait to be read.

    Attributes:
        lingers: Whether the last answer was given, and what still comes is thrown away.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: asyncio.WriteTransport, unread_seconds: float
    ) -> None:
        self.lingers = False
        self._loop = loop
        self._transport = transport
        self._unread_seconds = unread_seconds
        self._unread_bytes = 0
        self._below_tls = below_tls(transport)
        self._end_due = Alarm(loop, self.end)
        self._reading_due = Alarm(loop, self._miss_reading)
        self._parting_due = Alarm(loop, self._part)
        self._acknowledged_bytes = 0
        self._more_due_at = 0.0

    def linger(self) -> None:
        """End once what was written is sent, and once the client has had time to read it."""
        self.lingers = True
        self._end_due.set(_LINGER_SECONDS)

    def end(self) -> None:
        """End once what was written is sent."""
        self._transport.close()
        if self._below_tls is None:
            self.expect_reading()
        else:
            if not self._more_due_at:
                self._expect_more()
            self._parting_due.set(_PARTING_SECONDS)

    def expect_reading(self) -> None:
        """Give the client its time to read what was written."""
        self._unread_bytes = self._transport.get_write_buffer_size()
        if self._unread_bytes:
            self._reading_due.set(self._unread_seconds)

    def note_reading(self) -> None:
        """Note that it has read."""
        self._reading_due.clear()
        if self._transport.is_closing():  # but not all
            self.expect_reading()

    def forget(self) -> None:
        """Do nothing more: the connection is lost."""
        self._end_due.clear()
        self._reading_due.clear()
        self._parting_due.clear()

    def _miss_reading(self) -> None:
        if self._unread_bytes - self._transport.get_write_buffer_size() < _LEAST_READ_BYTES:
            self._transport.abort()
        else:
            self.expect_reading()

    def _part(self) -> None:
        """End a TLS connection whose client has all, or takes too little: the system tells, its transport does not."""
        assert self._below_tls is not None  # noqa: S101  by who set this alarm
        now = self._loop.time()
        if waits_for(self._below_tls) == 0 or (
            now >= self._more_due_at and received_by(self._below_tls) - self._acknowledged_bytes < _LEAST_READ_BYTES
        ):
            self._transport.abort()
            return
        if now >= self._more_due_at:
            self._expect_more()
        self._parting_due.set(_PARTING_SECONDS)

    def _expect_more(self) -> None:
        assert self._below_tls is not None  # noqa: S101  by its callers
        self._acknowledged_bytes = received_by(self._below_tls)
        self._more_due_at = self._loop.time() + self._unread_seconds
