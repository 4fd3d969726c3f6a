"""A connection before its two sides have settled on TLS.

The event loop would see to that by itself, but counts nobody until it is done, and waits for a minute: silent clients
could take all file descriptors of a process, whatever its limits.
"""

import asyncio
import logging
import ssl
from typing import Any, cast

from app.connections.limits import RESERVE, ConnectionLimits
from app.connections.protocol import GuardedConnection

_PARTING_SECONDS = 2.0
"""For a client to confirm the end."""

_log = logging.getLogger(__name__)


class Greeting(asyncio.Protocol):
    """Settles on TLS in bounded time, and leaves the connection to what is behind it.

    Args:
        behind: Speaks what is kept private.
        context: With the certificate.
        limits: What the client may do.
    """

    def __init__(self, behind: GuardedConnection, context: ssl.SSLContext, limits: ConnectionLimits) -> None:
        self._behind = behind
        self._context = context
        self._limits = limits
        self._early = bytearray()
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; one too many is refused without a word, for none could be said in private."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._behind.connections) >= self._limits.most + RESERVE:
            self._transport.abort()
            return
        self._behind.connections.add(cast("Any", self))
        self._transport.pause_reading()
        self._settling = self._behind.loop.create_task(self._settle())

    def data_received(self, data: bytes) -> None:
        """Keep what comes with the last word of the greeting."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Note that nobody is there any more."""
        self._is_lost = True

    def shutdown(self) -> None:
        """Take no request."""
        self._transport.abort()

    async def _settle(self) -> None:
        try:
            private = await self._behind.loop.start_tls(
                self._transport,
                self,
                self._context,
                server_side=True,
                ssl_handshake_timeout=self._limits.header_seconds,
                ssl_shutdown_timeout=_PARTING_SECONDS,
            )
        except OSError as error:
            _log.debug("no TLS with a client: %s", error)
            self._transport.abort()
            return
        finally:
            self._behind.connections.discard(cast("Any", self))
        if private is None or self._is_lost:
            return
        private.set_protocol(self._behind)
        self._behind.connection_made(private)
        if self._early:
            self._behind.data_received(bytes(self._early))
