import asyncio

import pytest

from app.segmentation.budget import PixelBudget

pytestmark = pytest.mark.anyio


async def test_pixels_are_handed_out_in_order_and_come_back():
    budget = PixelBudget(10)
    order: list[int] = []

    async def use(number: int, pixels: int, until: asyncio.Event) -> None:
        async with budget.hold(pixels):
            order.append(number)
            await until.wait()

    done = asyncio.Event()
    tasks = [asyncio.create_task(use(n, pixels, done)) for n, pixels in enumerate((6, 6, 3))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == [0]  # 3 would fit beside 6, but 6 came first
    done.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
    async with budget.hold(99):  # more than there are: alone, then
        pass
    async with budget.hold(10):
        pass


async def test_who_gives_up_waiting_leaves_the_pixels_to_the_next():
    budget = PixelBudget(10)
    async with budget.hold(10):
        gone = asyncio.create_task(budget.hold(8).__aenter__())
        stays = budget.hold(4)
        waiting = asyncio.create_task(stays.__aenter__())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    async with budget.hold(6):
        pass
    await stays.__aexit__(None, None, None)
