import asyncio

import pytest
from prometheus_client import CollectorRegistry

from app.errors import DeadlineExceeded
from app.segmentation.deadline import answered_within
from app.segmentation.workers import Workers
from app.telemetry.metrics import Metrics
from tests.fakes import Held


@pytest.mark.anyio
async def test_a_deadline_that_passes_in_the_middle_of_a_decoding_is_told_at_its_end():
    workers, held = Workers(1, Metrics(CollectorRegistry())), Held()

    async def answer() -> None:
        async with answered_within(0.01, "wait longer"):
            await workers.run(None, held)

    answering = asyncio.create_task(answer())
    assert await asyncio.to_thread(held.begun.wait, 10)
    while not (answering.cancelling() or answering.done()):  # the former by the deadline
        await asyncio.sleep(0.001)
    assert not answering.done()
    held.let_go.set()
    with pytest.raises(DeadlineExceeded):
        await answering
    await workers.close()
