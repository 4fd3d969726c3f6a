"""A front process: speaks HTTP, decodes and encodes; and has the model itself, or an engine that has it."""

import gc
import logging
import os
import signal
import socket

from app.access.gate import Access
from app.errors import ExtraMissing, StartupError
from app.inference.remote import EngineFacts
from app.inference.segmenter import Segmenter
from app.main import Surroundings, create_app
from app.processes.channel import Channel, Pipe, Ready, Refused
from app.segmentation.admission import Places
from app.server import Server
from app.settings import Settings
from app.telemetry.metrics import Metrics


def run_front(
    settings: Settings,
    segmenter: Segmenter | None,
    metrics: Metrics,
    places: Places,
    access: Access,
    listener: socket.socket,
    pipe: Pipe,
) -> None:
    """Be a front, until SIGTERM or SIGINT, until another takes its place, or until the supervisor is gone.

    Args:
        settings: How to run.
        segmenter: The model; None where it is still to be loaded.
        metrics: The front's own.
        places: Where it counts its images.
        access: Who may ask.
        listener: Where it takes connections.
        pipe: To the supervisor.
    """
    channel = Channel(pipe, metrics.registry)
    try:
        model = segmenter or _loaded(settings, metrics)
        surroundings = Surroundings(places, access, channel.everyones_metrics, channel.reload, channel.stuck)
        app = create_app(settings, model, metrics, surroundings)
    except (StartupError, ExtraMissing) as error:
        pipe.send(Refused(str(error)))
        return
    facts = EngineFacts.of(model)

    def started() -> None:
        gc.freeze()  # what is there now stays; to look through it again and again took a tenth of a request's time
        channel.open(Ready(facts), server.retire, lambda: server.handle_exit(signal.SIGINT, None))

    server = Server(app, settings, started, places.fronts)
    server.run(sockets=[listener])
    channel.farewell()
    if not server.ended_well:
        logging.shutdown()
        os._exit(1)  # without waiting for threads that do not come back


def _loaded(settings: Settings, metrics: Metrics) -> Segmenter:
    from app.inference.model import load_segmenter  # noqa: PLC0415  no other front has a use for the runtime

    return load_segmenter(settings.model, metrics)
