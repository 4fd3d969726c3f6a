"""Connections that speak TLS, from the first byte on.

An event loop's own server knows of none before the two sides have settled, and waits a minute for that: silent clients
could take all file descriptors of a process, whatever its limits.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from app.connections.alarm import Alarm
from app.connections.limits import ConnectionLimits

_ENDING_SECONDS = 24 * 3600.0
"""Within which an event loop's own TLS ends, whatever of an answer is still to be sent; `Ending` is its judge."""
_PAUSE_SECONDS = 1.0
"""Before the next try, where no connection can be taken: there are no file descriptors left, or no memory."""

_log = logging.getLogger(__name__)


class PrivateListener:
    """Takes connections, and settles on TLS with each in bounded time.

    Where as many have not settled as there may be connections, whoever has been at it for longest gives way: of a crowd
    that says nothing that is one of the crowd, and who speaks is done within milliseconds.

    Args:
        listener: Bound to an address; it is closed with this.
        protocol: Makes what speaks on a connection that has settled.
        context: With the certificate.
        limits: What clients may do.
        backlog: How many connections the system may keep waiting.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext,
        limits: ConnectionLimits,
        backlog: int,
    ) -> None:
        listener.setblocking(False)
        listener.listen(backlog)
        self._listener = listener
        self._protocol = protocol
        self._context = context
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._settling: dict[asyncio.Task[None], None] = {}
        self._pausing = Alarm(self._loop, self._go_on)
        self._go_on()

    @property
    def settling(self) -> int:
        """How many connections have not settled yet."""
        return len(self._settling)

    def close(self) -> None:
        """Take no further connection: those that wait are for another process with this socket."""
        self._pausing.clear()
        if self._listener.fileno() >= 0:  # not closed already
            self._loop.remove_reader(self._listener)
            self._listener.close()

    async def wait_closed(self) -> None:
        """Give up those that have not settled."""
        await asyncio.sleep(0)  # what was taken last begins: from then on its socket is its own to close
        for one in self._settling:
            one.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)

    def _go_on(self) -> None:
        self._loop.add_reader(self._listener, self._take)

    def _take(self) -> None:
        """Take one connection; in a crowd, others have a turn before the next."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # another process has it, or it is gone already
            return
        except OSError as error:
            _log.error("no connection can be taken: %s", error)
            self._loop.remove_reader(self._listener)
            self._pausing.set(_PAUSE_SECONDS)
            return
        connection.setblocking(False)
        if len(self._settling) >= self._limits.most:
            oldest = next(iter(self._settling))
            del self._settling[oldest]
            oldest.cancel()
        one = self._loop.create_task(self._settle(connection))
        self._settling[one] = None
        one.add_done_callback(lambda done: self._settling.pop(done, None))

    async def _settle(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.header_seconds,
                ssl_shutdown_timeout=_ENDING_SECONDS,
            )
        except OSError as error:
            _log.debug("no TLS with a client: %s", error)
