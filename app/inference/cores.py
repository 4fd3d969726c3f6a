"""The cores that several processes share, each of which has lanes of its own."""

from copy import copy

from app.shared_numbers import shared_numbers

_LANES = 16
"""That a process has at least, if there are as many cores: enough for most of a large patch's windows at once. With a
lane for each core in each process, a large machine would have some thousand threads."""


class Cores:
    """How many batches each process runs: numbers that all share, each written by one process alone.

    A process may always run its share of the cores, at least one batch, and beyond that what the others leave. Nobody
    waits for another process: one that wants its share back begins at once. Until the batches end that others began on
    it, more run than there are cores. A process that dies takes nothing along that another waits for. See
    docs/decisions/0015-processes.md.

    Args:
        count: How many cores.
        processes: How many share them.
    """

    def __init__(self, count: int, processes: int = 1) -> None:
        self.count = count
        self._running = shared_numbers(processes)
        self._index = 0

    def seen_by(self, index: int) -> "Cores":
        """Return the same cores for another process."""
        theirs = copy(self)
        theirs._index = index
        return theirs

    @property
    def lanes(self) -> int:
        """How many batches this process may run at most."""
        return min(self.count, max(self._share, _LANES))

    @property
    def are_shared(self) -> bool:
        """Whether others may leave some, or take them."""
        return len(self._running) > 1

    @property
    def free(self) -> int:
        """How many batches this process may begin now."""
        own = self._running[self._index]
        return max(0, min(self.lanes - own, max(self._share - own, self.count - sum(self._running))))

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
