"""How many decoded pixels may be in the works at once: the bound on memory that a bound on images is not."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """Hands out pixels in the order they were asked for.

    Args:
        pixels: The most that are out at once. A larger request gets all of them.
    """

    def __init__(self, pixels: int) -> None:
        self._total = pixels
        self._free = pixels
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait for `pixels` and hold them for the length of the block."""
        share = min(pixels, self._total)
        if self._waiting or share > self._free:
            await self._wait_for(share)
        else:
            self._free -= share
        try:
            yield
        finally:
            self._free += share
            self._hand_out()

    async def _wait_for(self, share: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((share, turn))
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was granted in the same moment
                self._free += share
            self._hand_out()
            raise

    def _hand_out(self) -> None:
        while self._waiting:
            share, turn = self._waiting[0]
            if not turn.done():
                if share > self._free:
                    return
                self._free -= share
                turn.set_result(None)
            self._waiting.popleft()
