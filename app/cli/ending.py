"""How a command ends that is told to."""

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

_LAST_SECONDS = 1
"""For what a command still has to tidy up."""

_T = TypeVar("_T")


async def until_signalled(work: Coroutine[Any, Any, _T]) -> _T | None:
    """Return what `work` returns; None if SIGTERM or SIGINT cancels it before it ends.

    After a second one the process ends soon after the work, with status 1 where a thread is stuck: Python would wait.

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
    atexit.register(_exit_beside_threads)
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(_LAST_SECONDS)


def _leave(_number: int, _frame: FrameType | None) -> None:
    end_at_once("Aborted!")


def end_at_once(line: str) -> NoReturn:
    """Say a line and end the process, with status 1, though threads are stuck."""
    click.echo(line, err=True)
    _exit()


def _exit_beside_threads() -> None:
    """End here where a thread is left: the model's runtime may still use what Python would take apart next."""
    if threading.active_count() > 1:
        _exit()


def _exit() -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)
