"""How a command ends that is told to, or has failed, and where it says so."""

import asyncio
import atexit
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from logging import getLogger, shutdown
from types import FrameType
from typing import Any, NoReturn

import click

from app.telemetry import logging

_LAST_SECONDS = 1
"""For what a command still has to tidy up."""

_log = getLogger(__name__)


async def until_signalled(work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`; return whether it ended, and neither SIGTERM nor SIGINT cancelled it before.

    After a second one the process ends soon after the work, with status 1 where a thread is stuck: Python would wait.

    On Windows, whose event loops take no signals, SIGINT cancels the caller and SIGTERM ends the process.
    """
    task = asyncio.create_task(work)
    told: list[int] = []
    if sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _end, task, told, number)
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
    return not task.cancelled()


def _end(task: asyncio.Task[None], told: list[int], number: int) -> None:
    told.append(number)
    task.cancel()
    if len(told) > 1:
        task.add_done_callback(_leave_soon)


def _leave_soon(_done: object) -> None:
    atexit.register(_exit_beside_threads)
    signal.signal(signal.SIGALRM, _leave)
    signal.alarm(_LAST_SECONDS)


def _leave(_number: int, _frame: FrameType | None) -> None:
    _say("Aborted!", "Aborted!")
    _exit()


def end_though_stuck(message: str) -> NoReturn:
    """Say why the process ends, and end it with status 1, though threads are stuck."""
    _say(message, f"Error: {message}")
    _exit()


def end_with(error: click.ClickException) -> NoReturn:
    """Say why the command ends, and end it with the status of the error."""
    _say(error.message, f"Error: {error.format_message()}")
    raise SystemExit(error.exit_code) from error


@contextmanager
def bad_settings_told(stated: str | None) -> Iterator[None]:
    """End the command if the block finds a setting that makes no sense, in the format of the log that is stated.

    Args:
        stated: By a flag; else by the environment, if at all.
    """
    try:
        yield
    except click.ClickException as error:
        log_format = stated or os.environ.get("TESSERA_LOG_FORMAT")
        logging.configure("info", "json" if log_format == "json" else "text")
        end_with(error)


def _say(message: str, line: str) -> None:
    """Say a message: in the log where that is JSON, since whatever reads it shall not miss this one; else as a line."""
    if any(isinstance(handler.formatter, logging.JsonFormatter) for handler in getLogger().handlers):
        _log.critical("%s", message)
    else:
        logging.tell(line)


def _exit_beside_threads() -> None:
    """End here where a thread is left: the model's runtime may still use what Python would take apart next."""
    if threading.active_count() > 1:
        _exit()
    signal.alarm(0)  # the end is near, and Python takes the handler away before it


def _exit() -> NoReturn:
    shutdown()
    sys.stdout.flush()
    os._exit(1)
