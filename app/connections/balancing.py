"""Connections go to the front that has the fewest, whichever of them the system woke.

The system deals out connections by a hash of their addresses: of a few that stay, as a viewer's or a worklist's do, one
front may have all, and of 32 among 14 fronts it has five where others have none. So a front that has taken one looks
how many each has, and hands it over where another has fewer: the descriptor, over a socket (unix(7), SCM_RIGHTS). Envoy
calls this exact balance.
"""

import errno
import os
import socket
from array import array
from collections.abc import Sequence
from contextlib import ExitStack

from app.shared_numbers import shared_numbers

_WORD = b"\0"
"""What a descriptor travels with: a message must hold something."""
_AWAY = 2**62
"""The number of connections of a front that takes none: it has not begun to, or is about to leave, or has no room."""


class Balance:
    """What the fronts of one model know of each other's connections, and the ways between them. Made before they fork.

    Args:
        fronts: How many there are.

    Raises:
        OSError: The system has no room for it.
    """

    def __init__(self, fronts: int) -> None:
        self._cells = shared_numbers((fronts + 2) * fronts)
        self._cells[:fronts] = memoryview(array("q", [_AWAY] * fronts))
        with ExitStack() as unless_made:
            self._ways = []
            for _ in range(fronts):
                ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                for end in ends:
                    unless_made.enter_context(end)
                    end.setblocking(False)
                self._ways.append(ends)
            unless_made.pop_all()

    def seen_by(self, index: int) -> "Balancer":
        """Return the part of the front of an index, which keeps its own ends of the ways."""
        ways = [None if other == index else way_out.dup() for other, (_, way_out) in enumerate(self._ways)]
        return Balancer(index, self._cells, self._ways[index][0].dup(), ways)

    def close(self) -> None:
        """Let go of the ways, once every front of this process has its own."""
        for ends in self._ways:
            for end in ends:
                end.close()


class Balancer:
    """A front's own part: how many connections it has, and who has fewer.

    Args:
        index: Which front it is.
        cells: Shared numbers, each written by one front alone.
        way_in: Where those come that others hand over; closed with this.
        ways_out: To each front, None to itself; likewise.
    """

    def __init__(
        self, index: int, cells: memoryview, way_in: socket.socket, ways_out: Sequence[socket.socket | None]
    ) -> None:
        fronts = len(ways_out)
        self.way_in = way_in
        self._ways_out = ways_out
        self._index = index
        self._held, self._received = cells[:fronts], cells[fronts : 2 * fronts]
        rows = range(2, fronts + 2)
        self._handed = [cells[row * fronts : (row + 1) * fronts] for row in rows]

    def publish(self, held: int | None) -> None:
        """Let the others know how many connections this front has; None where it takes none now."""
        self._held[self._index] = _AWAY if held is None else held

    def hand_over(self, connection: socket.socket) -> bool:
        """Give a connection that this front does not have yet to another, if one has fewer; return whether it did.

        It is closed here then. Where the other takes none any more, or not fast enough, it stays here.
        """
        counts = [self._count(front) for front in range(len(self._ways_out))]
        fewest = min(range(len(counts)), key=lambda front: (counts[front], front != self._index))
        way = self._ways_out[fewest]
        if way is None:
            return False
        try:
            socket.send_fds(way, [_WORD], [connection.fileno()])
        except OSError:  # it has begun to leave, or its way is full
            return False
        self._handed[self._index][fewest] += 1
        connection.close()
        return True

    def receive(self) -> socket.socket | None:
        """Return a connection that another front handed over; None where none waits.

        Raises:
            EOFError: None will come any more.
            OSError: There is no room for a further descriptor (EMFILE), so that the connection is lost.
        """
        try:
            word, descriptors, _, _ = socket.recv_fds(self.way_in, len(_WORD), 1)
        except BlockingIOError:
            return None
        if not word:
            raise EOFError
        self._received[self._index] += 1
        if not descriptors:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        received = socket.socket(fileno=descriptors[0])
        received.set_inheritable(False)  # as those are that were accepted
        return received

    def refuse_more(self) -> None:
        """Let none be handed over any more; those that were can still be received."""
        self.way_in.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Let go of the ways."""
        for way in (self.way_in, *self._ways_out):
            if way is not None:
                way.close()

    def _count(self, front: int) -> int:
        """Return how many connections a front has, with those under way to it."""
        handed = sum(row[front] for row in self._handed)
        return int(self._held[front] + handed - self._received[front])
