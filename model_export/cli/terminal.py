"""What a training tells on a terminal."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager

import click

from model_export.training.hardware import Hardware


class Terminal:
    """Progress on a terminal: a bar for an epoch's steps, a line for each phase; of several processes one talks."""

    def __init__(self, hardware: Hardware) -> None:
        self._talks = hardware.first

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        """Show a bar, unless the output is no terminal."""
        return click.progressbar(steps, label=title, hidden=not (self._talks and sys.stdout.isatty()))

    def line(self, text: str) -> None:
        """Write a line."""
        if self._talks:
            click.echo(text)
