"""How the C library's allocator and the model's runtime keep memory that the service has let go of."""

import asyncio
import ctypes
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""
_LARGE_BYTES = 2**20
_KEPT_BYTES = 2**22
_LOOK_SECONDS = 2.0
_RESTING_SHARE = 0.02
"""Of a core, which a front that nobody asks for a patch takes less of: it answers health checks meanwhile."""
_MUCH_BYTES = 2**25
_MUCH_SECONDS = 0.5
"""Of a processor. To take the memory again costs the next patch some 4 ms, and who sends one now and then pays that for
one in twenty."""

_log = logging.getLogger(__name__)


def give_back_large_pieces() -> None:
    """Have each piece of 1 MiB or more given back to the system when it is let go of.

    glibc raises that bound by itself, to 32 MiB, with the first large piece that it sees: after a few large patches the
    service held more than a gigabyte that it did not use. Other C libraries do not keep so much, and have no such call.
    """
    if (mallopt := _of_c_library("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


async def give_back_at_rest(of_model: Callable[[], None]) -> None:
    """Have what this process holds and does not use given back when it has worked and has nothing to do; never return.

    Smaller pieces stay with the allocator of the thread that they are of, and what the runtime took for one lane while
    another ran stays with the runtime: after patches of all sizes, as much again as a front needs.

    Args:
        of_model: Has the model's runtime give back what it holds; called in a thread of its own.
    """
    if (malloc_trim := _of_c_library("malloc_trim")) is None:
        return
    loop = asyncio.get_running_loop()

    def give_back(done: asyncio.Event) -> None:
        gc.collect()  # garbage in cycles may hold a result, which lies in the runtime's memory
        try:
            of_model()
        except Exception:  # noqa: BLE001  onnxruntime's exceptions share no base
            _log.warning("the model's runtime gave no memory back", exc_info=True)
        malloc_trim(0)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(done.set)

    has_warned = False
    while True:
        try:
            await _at_each_rest(give_back)
        except (OSError, RuntimeError):  # no thread is to be had now, or /proc cannot be read
            if not has_warned:
                _log.warning("memory that is not used is not given back for now", exc_info=True)
            has_warned = True
            await asyncio.sleep(_LOOK_SECONDS)


async def _at_each_rest(give_back: Callable[[asyncio.Event], None]) -> NoReturn:
    """Call `give_back` in a thread of its own, with what it sets when it is done, whenever there is reason to."""
    needed, given_back_at = _resident_bytes(), 0.0
    while True:
        before = time.process_time()
        await asyncio.sleep(_LOOK_SECONDS)
        now, held = time.process_time(), _resident_bytes()
        needed = min(needed, held)
        has_worked = held > needed + _MUCH_BYTES or now - given_back_at > _MUCH_SECONDS
        if has_worked and now - before < _RESTING_SHARE * _LOOK_SECONDS:
            done = asyncio.Event()
            # A thread that does not come back does not keep the process from ending.
            threading.Thread(target=give_back, args=(done,), name="at rest", daemon=True).start()
            await done.wait()
            needed, given_back_at = _resident_bytes(), time.process_time()


def _of_c_library(name: str) -> Callable[..., int] | None:
    """Return a function that glibc has; None where that is not the C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
