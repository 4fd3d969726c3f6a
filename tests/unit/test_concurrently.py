import asyncio

import pytest

from app.segmentation.concurrently import all_of


@pytest.mark.anyio
async def test_the_first_failure_ends_the_others():
    ended = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await all_of([slow(), fail(), slow()])
    assert ended == [True, True]
