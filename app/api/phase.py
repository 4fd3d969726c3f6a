"""Where a process is between its start and its end, as clients are told."""

from enum import Enum, auto

from fastapi import FastAPI


class Phase(Enum):
    """What a process says of itself and of its connections."""

    SERVING = auto()
    LEAVING = auto()
    """It ends soon: not ready, and no connection is kept for another request."""
    RETIRING = auto()
    """It ends soon and another serves: the service is ready, and no connection is kept for another request."""


def is_ready(app: FastAPI) -> bool:
    """Return whether the service takes images, as far as this process can tell."""
    phase: Phase = app.state.phase
    if phase is not Phase.SERVING:
        return phase is Phase.RETIRING
    service = getattr(app.state, "service", None)
    if service is None or not service.segmenter.ready or service.segmenter.late:
        return False
    return bool(app.state.access.is_usable)
