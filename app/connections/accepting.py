"""What is made of each connection that comes."""

import asyncio
import ssl
from typing import Any, cast

from app.connections.limits import ConnectionLimits
from app.connections.protocol import GuardedConnection
from app.connections.tls import Greeting
from app.telemetry.metrics import Metrics


def guarded(limits: ConnectionLimits, metrics: Metrics, tls: ssl.SSLContext | None) -> type[asyncio.Protocol]:
    """Return what uvicorn is to make of each connection.

    Args:
        limits: What a client may do.
        metrics: Told of what is refused.
        tls: With the certificate; None to speak in the clear. Uvicorn is to know nothing of it.
    """

    def connection(**uvicorns: Any) -> asyncio.Protocol:
        behind = GuardedConnection(limits, metrics, **uvicorns)
        return behind if tls is None else Greeting(behind, tls, limits)

    return cast("type[asyncio.Protocol]", connection)
