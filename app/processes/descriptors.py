"""How many files a process may have open: each connection is one, and a shell's usual limit is 1024."""

import logging
import resource

from app.connections.limits import RESERVE, most_of_one
from app.processes.layout import Layout
from app.settings import Settings

_OTHERS = 128
"""What a process has open beside connections: its log, pipes, listeners, the model's libraries."""

_log = logging.getLogger(__name__)


def allow_connections(settings: Settings, layout: Layout) -> None:
    """Raise the limit of open files, which processes forked later have too, to what the settings' connections need.

    Where the system allows fewer, the log says so: beyond its limit connections are not refused but wait, and so do
    the probes on which the service shows that it lives.
    """
    most = most_of_one(settings.max_connections, layout.fronts)
    handshakes = most if settings.tls_cert is not None else 0
    needed = most + handshakes + RESERVE + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # the system has a limit of its own beside this one
        allowed = soft
    if allowed < needed:
        _log.warning(
            "a process may open %d files, and %d connections need %d; raise the limit (ulimit -n, LimitNOFILE=)"
            " or lower --max-connections",
            allowed,
            most,
            needed,
        )
