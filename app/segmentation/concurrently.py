"""Running several coroutines at once, without what `asyncio.TaskGroup` costs here.

A task group that fails wraps the failure in a group whose traceback and frames refer to one another; on Python 3.11 the
decoded images in those frames then stay until the garbage collector's last generation comes by, which numpy's memory
does not hasten.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


async def all_of(coroutines: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return what each returns, in order; the first failure, or a cancellation, ends the others before it is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()  # a task that failed holds its error, whose traceback holds this frame
