"""The `tessera` command, a file a subcommand; what a subcommand needs is imported once it is asked for."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import click

from app.processes.signals import reload_signals
from app.software import software_version

_COMMANDS = ("serve", "segment", "slide", "dicomweb", "keys")


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"app.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] == "serve":
            ctx.with_resource(_told_to_end_early())
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(software_version(), "-V", "--version", prog_name="tessera")
def main() -> None:
    """Tissue maps of H&E patches. Research use only.

    Every option of serve can also be set by an environment variable: --max-side-px by TESSERA_MAX_SIDE_PX.
    """


@contextmanager
def _told_to_end_early() -> Iterator[None]:
    """Until the service takes signals itself, end at once where it is told to end, and have nothing to reload.

    A container's first process ignores what it does not take.
    """
    handlers: dict[int, Any] = {signal.SIGTERM: _end_well, signal.SIGINT: _end_well}
    handlers |= dict.fromkeys(reload_signals(), signal.SIG_IGN)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_well(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)
