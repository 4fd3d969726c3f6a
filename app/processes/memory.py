"""How the C library's allocator keeps memory that the service has let go of."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_LARGE_BYTES = 2**20
_KEPT_BYTES = 2**22


def give_back_large_pieces() -> None:
    """Have each piece of 1 MiB or more given back to the system when it is let go of.

    glibc raises that bound by itself, to 32 MiB, with the first large piece that it sees: after a few large patches the
    service held more than a gigabyte that it did not use. Other C libraries do not keep so much, and have no such call.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
