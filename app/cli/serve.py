"""`tessera serve`: the service."""

import sys
from logging import getLogger
from typing import Any

import click

from app.cli.ending import bad_settings_told, end_with
from app.cli.options import setting_options, settings_of
from app.errors import ExtraMissing, ProcessEnded, StartupError
from app.processes.layout import layout_of
from app.processes.memory import give_back_large_pieces
from app.processes.memory_limit import warn_of_little_memory
from app.settings import unknown_variables
from app.telemetry import logging

_log = getLogger(__name__)


@click.command()
@setting_options()
def serve(**given: Any) -> None:
    """Run the service."""
    with bad_settings_told(given.get("log_format")):
        settings = settings_of(given)
    logging.configure(settings.log_level, settings.log_format)
    for name in unknown_variables():
        _log.warning("the environment variable %s is not a setting", name)
    give_back_large_pieces()
    layout = layout_of(settings)
    warn_of_little_memory(settings, layout)
    if sys.platform != "win32":  # which has no such limit
        from app.processes.descriptors import allow_connections  # noqa: PLC0415

        allow_connections(settings, layout)
    try:
        if layout.supervised:
            from app.processes.supervisor import serve_with  # noqa: PLC0415  not for `tessera segment` to wait for

            serve_with(settings, layout)
        else:
            from app.main import create_app  # noqa: PLC0415
            from app.server import bind, run  # noqa: PLC0415

            listener = bind(settings.host, settings.port)
            run(create_app(settings), listener, settings)
    except (StartupError, ExtraMissing, ProcessEnded) as error:
        end_with(click.ClickException(str(error)))
