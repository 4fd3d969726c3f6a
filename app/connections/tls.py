"""Connections that speak TLS, from the first byte on.

An event loop's own server knows of none before the two sides have settled, and waits a minute for that: silent clients
could take all file descriptors of a process, whatever its limits.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from app.connections.limits import ConnectionLimits

_PARTING_SECONDS = 2.0
"""For a client to confirm that it ends."""
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
        self._taking = self._loop.create_task(self._take())

    def close(self) -> None:
        """Take no further connection."""
        self._taking.cancel()

    async def wait_closed(self) -> None:
        """Give up those that have not settled."""
        for one in self._settling:
            one.cancel()
        await asyncio.gather(self._taking, *self._settling, return_exceptions=True)

    async def _take(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = await self._loop.sock_accept(self._listener)
                except ConnectionError:  # it is gone already
                    continue
                except OSError as error:
                    _log.error("no connection can be taken: %s", error)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                if len(self._settling) >= self._limits.most:
                    oldest = next(iter(self._settling))
                    del self._settling[oldest]
                    oldest.cancel()
                one = self._loop.create_task(self._settle(connection))
                self._settling[one] = None
                one.add_done_callback(lambda done: self._settling.pop(done, None))
                await asyncio.sleep(0)  # once it has begun the connection is its own; and in a crowd others have a turn

    async def _settle(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.header_seconds,
                ssl_shutdown_timeout=_PARTING_SECONDS,
            )
        except OSError as error:
            _log.debug("no TLS with a client: %s", error)
