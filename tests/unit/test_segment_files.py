"""Files without a server: what becomes of those under way when one of them ends all."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from app.segmentation.files import segment_files
from app.segmentation.patch import PatchLimits
from app.segmentation.reading import Upload
from app.segmentation.workers import Workers
from app.telemetry.metrics import SegmentationMetrics


class Patches:
    """Segments nothing: some files fail as nobody foresaw, and the others are at work when they do."""

    limits = PatchLimits(side_px=64, pixels_at_once=2**20)

    def __init__(self, *fail: bytes) -> None:
        self.fail = fail
        self.begun = 0
        self.working = 0

    @asynccontextmanager
    async def segmented(self, upload: Upload) -> AsyncIterator[None]:
        self.begun += 1
        if upload.data in self.fail:
            while self.begun < 3:
                await asyncio.sleep(0)
            raise ZeroDivisionError
        self.working += 1
        try:
            await asyncio.Event().wait()
            yield
        finally:
            for _ in range(3):  # ends, but not in the same turn
                await asyncio.sleep(0)
            self.working -= 1


@pytest.mark.parametrize("fail", [[b"first"], [b"first", b"second", b"third"]])
def test_nothing_is_at_work_any_more_when_an_unforeseen_error_is_raised(tmp_path, caplog, fail):
    paths = [tmp_path / name for name in ("first", "second", "third")]
    for path in paths:
        path.write_bytes(path.name.encode())
    patches = Patches(*fail)

    async def segment_all() -> int:
        workers = Workers(1, SegmentationMetrics(CollectorRegistry()))
        with pytest.raises(ZeroDivisionError):
            async for _ in segment_files(patches, workers, paths, tmp_path, 0.5, None, at_once=3):
                pass
        await workers.close()
        return patches.working

    assert asyncio.run(segment_all()) == 0
    gc.collect()  # asyncio tells of an error that nobody took when its task goes
    assert patches.begun == 3
    assert caplog.records == []
