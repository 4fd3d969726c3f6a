"""How far a slide is, on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import click

from app.segmentation.slide import Progress


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Give what is told of each region read; a bar is drawn on standard error from the first one to the block's end."""
    with ExitStack() as shown:
        bars: list[Any] = []

        def progress(_done: int, total: int) -> None:
            if not bars:
                bars.append(shown.enter_context(click.progressbar(length=total, label=label, file=sys.stderr)))
            bars[0].update(1)

        yield progress
