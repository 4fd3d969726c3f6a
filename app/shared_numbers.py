"""Numbers that processes share."""

import mmap

_NUMBER_BYTES = 8


def shared_numbers(count: int) -> memoryview:
    """Return whole numbers, all 0, of 64 bits with a sign, in memory that this process shares with those it forks.

    They must be made before forking. Nothing locks them: what several processes write may be lost.
    """
    return memoryview(mmap.mmap(-1, count * _NUMBER_BYTES)).cast("q")
