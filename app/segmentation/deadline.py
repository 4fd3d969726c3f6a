"""The one way in which work that takes too long ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.errors import DeadlineExceeded


@asynccontextmanager
async def answered_within(seconds: float, advice: str) -> AsyncIterator[None]:
    """End the block when it takes longer.

    Args:
        seconds: How long it may take.
        advice: What the user may do then.

    Raises:
        DeadlineExceeded: It took longer.
    """
    try:
        async with asyncio.timeout(seconds) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(f"no answer within {seconds:g} s; {advice}") from None
