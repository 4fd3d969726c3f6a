"""Which of Sectra's orders are carried out, and ending them: by their user, or because the service stops."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from app.errors import STOPPING, ModelNotReady, OrderCancelled, TesseraError


class RunningOrder:
    """One order.

    Args:
        token: Its cancellation token.
        stopping: Set when the service stops.
    """

    def __init__(self, token: str, stopping: asyncio.Event) -> None:
        self.token = token
        self._stopping = stopping
        self._reason: TesseraError | None = None
        self._task: asyncio.Task[Any] | None = None

    def end(self, reason: TesseraError) -> None:
        """End its `endable` block, or keep it from entering one."""
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def check(self) -> None:
        """Return if it goes on. May be called in any thread.

        Raises:
            OrderCancelled, ModelNotReady: It was ended.
        """
        if self._reason is not None:
            raise self._reason

    @contextmanager
    def endable(self) -> Iterator[None]:
        """Run a block that is left as soon as the order is ended.

        Raises:
            OrderCancelled, ModelNotReady: It was ended, in the block or before.
        """
        self.check()
        self._task = task = asyncio.current_task()
        try:
            yield
        except asyncio.CancelledError:
            if self._reason is not None and task is not None and task.uncancel() == 0:
                raise self._reason from None
            raise
        finally:
            self._task = None

    async def wait(self, seconds: float) -> bool:
        """Wait, no longer than until the service stops; return whether it goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return not self._stopping.is_set()


class RunningOrders:
    """The orders that are carried out. Used on the event loop."""

    def __init__(self) -> None:
        self._orders: set[RunningOrder] = set()
        self._stopping = asyncio.Event()

    @contextmanager
    def enter(self, token: str) -> Iterator[RunningOrder]:
        """Let an order be ended for the length of the block.

        Raises:
            ModelNotReady: The service is stopping.
        """
        if self._stopping.is_set():
            raise _stopping()
        running = RunningOrder(token, self._stopping)
        self._orders.add(running)
        try:
            yield running
        finally:
            self._orders.discard(running)

    def cancel(self, token: str) -> None:
        """End the orders that came with this token."""
        for running in self._orders:
            if running.token == token:
                running.end(OrderCancelled("the order was cancelled"))

    def stop(self) -> None:
        """End every order, and let no other in."""
        self._stopping.set()
        for running in self._orders:
            running.end(_stopping())


def _stopping() -> ModelNotReady:
    return ModelNotReady(f"{STOPPING}; order it again later")
