"""A front process: speaks HTTP, decodes and encodes; and has the model itself, or an engine that has it."""

import gc
import signal
import socket

from app.inference.segmenter import Segmenter
from app.main import OneOfSeveral, create_app
from app.processes.channel import Channel, Pipe, Ready
from app.segmentation.admission import Places
from app.server import Server
from app.settings import Settings
from app.telemetry.metrics import Metrics


def run_front(
    settings: Settings, segmenter: Segmenter, metrics: Metrics, places: Places, listener: socket.socket, pipe: Pipe
) -> None:
    """Be a front, until SIGTERM or SIGINT, or until the supervisor is gone."""
    channel = Channel(pipe, metrics.registry, lambda: server.handle_exit(signal.SIGTERM, None))
    app = create_app(settings, segmenter, metrics, OneOfSeveral(places, channel.everyones_metrics))

    def started() -> None:
        gc.freeze()  # what is there now stays; to look through it again and again took a tenth of a request's time
        channel.open(Ready())

    server = Server(app, settings.request_timeout, started)
    server.run(sockets=[listener])
