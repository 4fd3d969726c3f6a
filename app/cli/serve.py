"""`tessera serve`: the service."""

import os
from logging import getLogger
from typing import IO, Any

import click

from app.cli.options import setting_options, settings_of
from app.errors import ExtraMissing, ProcessEnded, StartupError
from app.processes.memory import give_back_large_pieces
from app.settings import layout_of, unknown_variables
from app.telemetry import logging

_log = getLogger(__name__)


@click.command()
@setting_options()
def serve(**given: Any) -> None:
    """Run the service."""
    try:
        settings = settings_of(given)
    except click.ClickException as error:
        stated = given.get("log_format") or os.environ.get("TESSERA_LOG_FORMAT")
        if stated == "json":
            logging.configure("info", "json")
            raise _Logged(error) from error
        raise
    logging.configure(settings.log_level, settings.log_format)
    for name in unknown_variables():
        _log.warning("the environment variable %s is not a setting", name)
    give_back_large_pieces()
    layout = layout_of(settings)
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
        end = click.ClickException(str(error))
        raise (_Logged(end) if settings.log_format == "json" else end) from error


class _Logged(click.ClickException):
    """Another, told as a line of the log: what reads the log as JSON shall not miss why the service ended."""

    def __init__(self, told: click.ClickException) -> None:
        super().__init__(told.message)
        self.exit_code = told.exit_code

    def show(self, file: IO[Any] | None = None) -> None:  # noqa: ARG002  click passes it
        """Log it."""
        _log.critical("%s", self.message)
