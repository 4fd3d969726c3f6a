"""How much memory the service may take, beside what large patches on all cores need."""

import logging
import os
from contextlib import suppress
from pathlib import Path

from app.processes.layout import Layout
from app.settings import Settings

_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""A container's, in cgroup v2 and v1. Where there is none they say `max`, or a number beyond any machine."""
_IDLE_BYTES = 200 * 2**20
"""Of a service with two fronts."""
_LANE_BYTES = 220 * 2**20
"""What the runtime holds for a window of 1024 px: 160 to 216 MiB with the default bundle. Other bundles are not known
here; the quality one takes 362."""
_PIXEL_BYTES = 20
"""Of a decoded pixel, with its results and pictures."""

_log = logging.getLogger(__name__)


def warn_of_little_memory(settings: Settings, layout: Layout) -> None:
    """Say in the log where large patches on all cores may take more memory than there is: who takes more is killed.

    Uploads that wait are not counted. Where a GPU is expected to run the model nothing is said.
    """
    if layout.on_gpu or (limit := memory_limit()) is None:
        return
    needed = _IDLE_BYTES + settings.cores * _LANE_BYTES + settings.max_pixels_at_once * _PIXEL_BYTES
    if needed > limit:
        _log.warning(
            "large patches on %d cores may take %.1f GiB of memory, and the limit is %.1f GiB: raise it, or lower"
            " --cores or --max-pixels-at-once",
            settings.cores,
            needed / 2**30,
            limit / 2**30,
        )


def memory_limit() -> int | None:
    """Return how many bytes the service may take: its container's limit, or the machine's memory; None if unknown."""
    found = []
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(path.read_text(encoding="ascii")))
    with suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)
