"""How a command ends that is told to."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

import click

_LAST_SECONDS = 1
"""For what a command still has to tidy up."""

_T = TypeVar("_T")


async def until_signalled(work: Coroutine[Any, Any, _T]) -> _T | None:
    """Return what `work` returns; None if SIGTERM or SIGINT cancels it before it ends.

    After a second one the process ends soon after the work, with status 1: Python would wait for a stuck thread.

    On Windows, whose event loops take no signals, SIGINT cancels the caller and SIGTERM ends the process.
    """
    task = asyncio.create_task(work)
    told: list[int] = []
    if sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _end, task, told, number)
    await asyncio.wait((task,))
    return None if task.cancelled() else task.result()


def _end(task: asyncio.Task[_T], told: list[int], number: int) -> None:
    told.append(number)
    task.cancel()
    if len(told) > 1:
        task.add_done_callback(_leave_soon)


def _leave_soon(_done: object) -> None:
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(_LAST_SECONDS)


def _leave(_number: int, _frame: FrameType | None) -> None:
    click.echo("Aborted!", err=True)
    logging.shutdown()
    os._exit(1)
