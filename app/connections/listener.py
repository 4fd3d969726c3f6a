"""Where connections come in: those of TLS settle first, and each goes to the front that has the fewest.

An event loop's own server hands none on. Of TLS it knows none before the two sides have settled, and waits a minute for
that: silent clients could take all file descriptors of a process, whatever its limits.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Collection

from app.connections.alarm import Alarm
from app.connections.balancing import Balancer
from app.connections.limits import ConnectionLimits

_ENDING_SECONDS = 24 * 3600.0
"""Within which an event loop's own TLS ends, whatever of an answer is still to be sent; `Ending` is its judge."""
_PAUSE_SECONDS = 1.0
"""Before the next try, where no connection can be taken: there are no file descriptors left, or no memory."""

_log = logging.getLogger(__name__)


class Listener:
    """Takes connections, and begins with each in bounded time.

    Where as many have not settled on TLS as there may be connections, whoever has been at it for longest gives way: of
    a crowd that says nothing that is one of the crowd, and who speaks is done within milliseconds. Without TLS there is
    nothing to settle, and `Connection` refuses what is too many.

    Args:
        listener: Bound to an address; it is closed with this.
        protocol: Makes what speaks on a connection.
        connections: Those that have begun and not ended.
        limits: What clients may do.
        backlog: How many connections the system may keep waiting.
        context: With the certificate; None for connections without TLS.
        balancer: Hands them to other fronts; None where there are none.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        connections: Collection[object],
        limits: ConnectionLimits,
        backlog: int,
        context: ssl.SSLContext | None,
        balancer: Balancer | None,
    ) -> None:
        listener.setblocking(False)
        listener.listen(backlog)
        self._listener = listener
        self._protocol = protocol
        self._connections = connections
        self._limits = limits
        self._context = context
        self._balancer = balancer
        self._loop = asyncio.get_running_loop()
        self._beginning: dict[asyncio.Task[None], None] = {}
        self._pausing = Alarm(self._loop, self._go_on)
        self._go_on()

    @property
    def beginning(self) -> int:
        """How many connections have not begun yet."""
        return len(self._beginning)

    def publish(self) -> None:
        """Let other fronts know how many connections there are here."""
        if self._balancer is not None:
            self._balancer.publish(len(self._connections) + self.beginning if self._is_taking else None)

    def close(self) -> None:
        """Take no further connection: those that wait are for another process with this socket."""
        self._pausing.clear()
        if self._listener.fileno() < 0:  # closed already
            return
        self._pause()
        self._listener.close()
        if self._balancer is not None:
            self._balancer.refuse_more()
            while self._receive():
                pass
            self._balancer.close()
            self._balancer = None

    async def wait_closed(self) -> None:
        """Give up those that have not begun."""
        await asyncio.sleep(0)  # what was taken last begins: from then on its socket is its own to close
        for one in self._beginning:
            one.cancel()
        await asyncio.gather(*self._beginning, return_exceptions=True)

    def _go_on(self) -> None:
        self._is_taking = True
        self._loop.add_reader(self._listener, self._take)
        if self._balancer is not None:
            self._loop.add_reader(self._balancer.way_in, self._receive)
        self.publish()

    def _pause(self) -> None:
        self._is_taking = False
        self._loop.remove_reader(self._listener)
        if self._balancer is not None:  # what was handed over waits there
            self._loop.remove_reader(self._balancer.way_in)
        self.publish()

    def _miss(self, error: OSError) -> None:
        _log.error("no connection can be taken: %s", error)
        if self._is_taking:
            self._pause()
            self._pausing.set(_PAUSE_SECONDS)

    def _take(self) -> None:
        """Take one connection; in a crowd, others have a turn before the next."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # another process has it, or it is gone already
            return
        except OSError as error:
            self._miss(error)
            return
        self.publish()
        if self._balancer is None or not self._balancer.hand_over(connection):
            self._begin(connection)

    def _receive(self) -> bool:
        """Take one connection that another front has handed over; return whether another may wait."""
        assert self._balancer is not None  # noqa: S101  nobody else calls this
        try:
            connection = self._balancer.receive()
        except EOFError:
            self._loop.remove_reader(self._balancer.way_in)
            return False
        except OSError as error:
            self._miss(error)
            return error.errno == errno.EMFILE  # then it took one, if only to lose it
        if connection is not None:
            self._begin(connection)
        return connection is not None

    def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        if self._context is not None and len(self._beginning) >= self._limits.most:
            oldest = next(iter(self._beginning))
            del self._beginning[oldest]
            oldest.cancel()
        one = self._loop.create_task(self._settle(connection))
        self._beginning[one] = None
        one.add_done_callback(lambda done: self._beginning.pop(done, None))
        self.publish()

    async def _settle(self, connection: socket.socket) -> None:
        times = {"ssl_handshake_timeout": self._limits.header_seconds, "ssl_shutdown_timeout": _ENDING_SECONDS}
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._context, **(times if self._context else {})
            )
        except OSError as error:
            _log.debug("a connection did not begin: %s", error)
