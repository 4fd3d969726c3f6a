"""The cores that several processes share, each of which has lanes of its own."""

import mmap
from copy import copy

_COUNT_BYTES = 8


class Cores:
    """How many batches each process runs: numbers in memory that all share, each written by one process alone.

    A process may always run as many as its share of the cores, and beyond that what the others leave. Nobody waits for
    another process: one that wants its share back begins at once, and until the batches end that run beyond the others'
    shares, more run than there are cores. A process that dies takes nothing along that another waits for.
    See docs/decisions/0015-processes.md.

    Args:
        count: How many cores.
        processes: How many share them. It is made before they are forked.
    """

    def __init__(self, count: int, processes: int = 1) -> None:
        self.count = count
        self._running = memoryview(mmap.mmap(-1, processes * _COUNT_BYTES)).cast("q")
        self._index = 0

    def seen_by(self, index: int) -> "Cores":
        """Return the same cores for another process."""
        theirs = copy(self)
        theirs._index = index
        return theirs

    @property
    def free(self) -> int:
        """How many batches this process may begin now."""
        return max(0, self._share - self._running[self._index], self.count - sum(self._running))

    @property
    def _share(self) -> int:
        each, rest = divmod(self.count, len(self._running))
        return max(1, each + (self._index < rest))

    def begin(self) -> None:
        """Count in a batch of this process."""
        self._running[self._index] += 1

    def end(self) -> None:
        """Count it out."""
        self._running[self._index] -= 1
