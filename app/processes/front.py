"""A front process: speaks HTTP, decodes and encodes; and has the model itself, or an engine that has it."""

import asyncio
import gc
import signal
import socket

from prometheus_client import CollectorRegistry

from app.access.gate import Access
from app.connections.balancing import Balancer
from app.errors import ExtraMissing, StartupError
from app.inference.remote import EngineFacts
from app.inference.segmenter import Segmenter
from app.main import Surroundings, create_app
from app.processes.channel import Channel, Lifecycle, Pipe, Ready, Refused
from app.processes.memory import give_back_at_rest
from app.segmentation.admission import Places
from app.server import Server, end_at_once
from app.settings import Settings
from app.telemetry.metrics import Metrics


def run_front(
    settings: Settings,
    segmenter: Segmenter,
    places: Places,
    access: Access,
    listener: socket.socket,
    balancer: Balancer | None,
    pipe: Pipe,
) -> None:
    """Be a front, until the supervisor says so, another takes its place, or the supervisor is gone.

    Args:
        settings: How to run.
        segmenter: The model.
        places: Where it counts its images.
        access: Who may ask.
        listener: Where it takes connections.
        balancer: Hands them to other fronts; None where there are none.
        pipe: To the supervisor.
    """
    metrics = Metrics(CollectorRegistry())
    channel = Channel(pipe, metrics.registry)
    try:
        surroundings = Surroundings(places, access, channel.everyones_metrics, channel.reload, channel.stuck)
        app = create_app(settings, segmenter, metrics, surroundings)
    except (StartupError, ExtraMissing) as error:
        pipe.send(Refused(str(error)))
        return
    facts = EngineFacts.of(segmenter)
    tasks: set[asyncio.Task[None]] = set()  # the loop itself holds none

    def started() -> None:
        gc.freeze()  # what is there now stays; to look through it again and again took a tenth of a request's time
        channel.open(Ready(facts), Lifecycle(server.retire, server.leave, orphaned))
        tasks.add(asyncio.get_running_loop().create_task(give_back_at_rest(segmenter.give_back)))

    def orphaned() -> None:
        if not server.should_exit:  # a second SIGINT would cut off what is under way
            server.leave(signal.SIGINT)

    server = Server(app, settings, started, places.fronts, balancer, signals=())  # which are the supervisor's
    server.run(sockets=[listener])
    channel.farewell()
    if not server.ended_well:
        end_at_once()
