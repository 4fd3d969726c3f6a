"""The engine process: loads the model, answers the fronts' windows, ends once all of them have."""

import asyncio
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from app.errors import StartupError
from app.inference.exchange import Exchange
from app.inference.remote import EngineFacts
from app.processes.channel import Channel, Pipe, Ready, Refused
from app.processes.memory import give_back_at_rest
from app.settings import Settings
from app.telemetry.metrics import Metrics


def run_engine(settings: Settings, exchanges: Sequence[Exchange], pipe: Pipe) -> None:
    """Be the engine."""
    # The runtime is loaded here alone: neither the supervisor nor the fronts have its memory or its threads.
    from app.inference.engine import Engine  # noqa: PLC0415
    from app.inference.model import load_segmenter  # noqa: PLC0415

    try:
        segmenter = load_segmenter(settings.model)
    except StartupError as error:
        pipe.send(Refused(str(error)))
        return
    engine = Engine(segmenter, exchanges)
    facts = EngineFacts.of(segmenter)
    metrics = Metrics(CollectorRegistry())
    channel = Channel(pipe, metrics.registry)

    def stalled() -> None:
        metrics.ready.set(0)
        channel.stuck()

    async def serve() -> None:
        alone = asyncio.Event()
        await segmenter.start(metrics, stalled)
        engine.start(alone.set)
        metrics.ready.set(1)  # also when it ends: whether the service is the fronts say
        channel.open(Ready(facts))
        at_rest = asyncio.create_task(give_back_at_rest(segmenter.give_back))
        await alone.wait()
        at_rest.cancel()
        await segmenter.close()

    asyncio.run(serve())
    channel.farewell()
