"""The engine process: loads the model, answers the fronts' windows, ends when the supervisor closes its pipe."""

import asyncio
import signal
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from app.errors import StartupError
from app.inference.exchange import Exchange
from app.inference.remote import EngineFacts
from app.processes.channel import Channel, Pipe, Ready, Refused
from app.settings import Settings
from app.telemetry.metrics import Metrics


def run_engine(settings: Settings, exchanges: Sequence[Exchange], pipe: Pipe) -> None:
    """Be the engine."""
    # The runtime is loaded here alone: neither the supervisor nor the fronts have its memory or its threads.
    from app.inference.engine import Engine  # noqa: PLC0415
    from app.inference.model import load_segmenter  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the fronts finish first; then the supervisor says so
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    metrics = Metrics(CollectorRegistry())
    try:
        segmenter = load_segmenter(settings.model, metrics)
    except StartupError as error:
        pipe.send(Refused(str(error)))
        return
    engine = Engine(segmenter, exchanges)
    facts = EngineFacts.of(segmenter)

    channel = Channel(pipe, metrics.registry)

    async def serve() -> None:
        stopped = asyncio.Event()
        await segmenter.start(channel.stuck)
        engine.start()
        metrics.ready.set_function(lambda: float(segmenter.ready))
        channel.open(Ready(facts), retire=stopped.set, orphaned=stopped.set)
        await stopped.wait()
        await segmenter.close()

    asyncio.run(serve())
    metrics.ready.set(1)  # the fronts say whether the service is
    channel.farewell()
