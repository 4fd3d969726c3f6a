"""`tessera serve`: the service."""

from logging import getLogger
from typing import Any

import click

from app.cli.options import setting_options, settings_of
from app.errors import ExtraMissing, StartupError
from app.settings import unknown_variables
from app.telemetry import logging

_log = getLogger(__name__)


@click.command()
@setting_options()
def serve(**given: Any) -> None:
    """Run the service."""
    from app.main import create_app  # noqa: PLC0415  the web stack is not for `tessera segment` to wait for
    from app.server import bind, run  # noqa: PLC0415

    settings = settings_of(given)
    logging.configure(settings.log_level, settings.log_format)
    for name in unknown_variables():
        _log.warning("the environment variable %s is not a setting", name)
    try:
        listener = bind(settings.host, settings.port)
        app = create_app(settings)
    except (StartupError, ExtraMissing) as error:
        raise click.ClickException(str(error)) from error
    run(app, listener, settings.request_timeout)
