import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from app.inference.batch import BatchLimits
from app.inference.batcher import Batcher
from app.inference.result import BatchResult
from app.telemetry.metrics import Metrics

arrivals = st.lists(st.tuples(st.sampled_from([4, 8, 12]), st.integers(0, 3), st.booleans()), min_size=1, max_size=40)


def answer(images: np.ndarray) -> BatchResult:
    identity = images[..., 0]
    return BatchResult(identity, identity, images[:, 0, 0, :].astype(np.float32))


@given(arrivals, st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=60)
def test_every_caller_gets_its_own_answer_under_any_arrival_order(calls, lanes, max_batch_size):
    async def scenario() -> None:
        engine = Batcher(answer, BatchLimits(lanes, max_batch_size, 300), Metrics(CollectorRegistry()))

        async def call(identity: int, side: int, pauses: int) -> None:
            for _ in range(pauses):
                await asyncio.sleep(0)
            result = await engine.submit(np.full((side, side, 3), identity, np.uint8))
            assert result.class_map.shape == (side, side)
            assert (result.class_map == identity).all()

        tasks = [asyncio.create_task(call(number, side, pauses)) for number, (side, pauses, _) in enumerate(calls)]
        await asyncio.sleep(0)
        for task, (_, _, leaves) in zip(tasks, calls, strict=True):
            if leaves:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome, (_, _, leaves) in zip(outcomes, calls, strict=True):
            assert outcome is None or (leaves and isinstance(outcome, asyncio.CancelledError))
        await engine.close()

    asyncio.run(scenario())
