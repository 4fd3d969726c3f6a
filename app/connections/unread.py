"""What clients have not read of their answers. It waits in memory, and images no longer count for it.

`Ending` bounds for how long it may wait on one connection; here is how much may wait on all of a front's together.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from app.connections.refusals import known_as
from app.connections.sent import below_tls, taken_from

_MOST_BYTES = 2**29
"""That may wait on all connections of a front. The largest answer has 2**28 bytes of pictures, as Base64 a third more:
one client may take its time over it."""
_FEW_BYTES = 2**16
"""On one connection, for which the others are not looked at: the limit from which on a transport holds writers up."""

_log = logging.getLogger(__name__)


class Unread:
    """What one client has not read.

    Args:
        loop: On which one that has too much is cut off.
        transport: The connection's.
        of_front: Returns those of all connections of this process.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.WriteTransport,
        of_front: Callable[[], Iterable["Unread"]],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._of_front = of_front
        self._below_tls = below_tls(transport)
        self._written_bytes = 0  # to a TLS connection that had taken all before
        self._taken_before_bytes = 0
        self._held_bytes = 0
        self._is_cut_off = False

    @property
    def size_bytes(self) -> int:
        """How much waits in this process, on its way to the client."""
        if self._is_cut_off:
            return 0
        return self._held_bytes + max(self._transport.get_write_buffer_size(), self._under_tls_bytes())

    @contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Count a piece of an answer in that the block writes: first it may have to wait for those before it."""
        self._held_bytes = size_bytes
        self._keep_bound()
        try:
            yield
        finally:
            self._held_bytes = 0

    @contextmanager
    def writing(self, size_bytes: int) -> Iterator[None]:
        """Count the bytes that the block writes; they replace what `holding` had counted."""
        self._held_bytes = 0
        if self._below_tls is not None:
            if not self._under_tls_bytes():
                self._taken_before_bytes = taken_from(self._below_tls) or 0
            self._written_bytes += size_bytes
        yield
        self._keep_bound()

    def _under_tls_bytes(self) -> int:
        """Return what waits below TLS, whose transport counts only what it has not encrypted.

        Encrypted, it is a little more than what was written, so this is a little less than what waits.
        """
        if self._below_tls is None or not self._written_bytes:
            return 0
        taken = taken_from(self._below_tls)
        waits = 0 if taken is None else max(0, self._taken_before_bytes + self._written_bytes - taken)
        if not waits:
            self._written_bytes = 0
        return waits

    def _keep_bound(self) -> None:
        """Cut off those that have the most, until all have no more than they may; only what is written adds to it."""
        if self.size_bytes <= _FEW_BYTES:
            return
        sizes = [(one.size_bytes, one) for one in self._of_front()]
        together = sum(size for size, _ in sizes)
        while together > _MOST_BYTES:
            size, most = sizes.pop(max(range(len(sizes)), key=lambda index: sizes[index][0]))
            most._cut_off(size, together)
            together -= size

    def _cut_off(self, size_bytes: int, together_bytes: int) -> None:
        self._is_cut_off = True
        self._loop.call_soon(self._transport.abort)  # whoever writes to it now does so to the end
        with known_as(""):  # it is not about the request that is answered now
            _log.warning(
                "a client that did not read is cut off: %d bytes of answers wait, %d of them its own",
                together_bytes,
                size_bytes,
            )
