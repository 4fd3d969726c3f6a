"""How a command ends that is told to."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def until_signalled(work: Coroutine[Any, Any, _T]) -> _T | None:
    """Return what `work` returns; None if SIGTERM or SIGINT cancels it before it ends.

    On Windows, whose event loops take no signals, SIGINT cancels the caller and SIGTERM ends the process.
    """
    task = asyncio.create_task(work)
    if sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await asyncio.wait((task,))
    return None if task.cancelled() else task.result()
