"""Files without a server: what becomes of those under way when one of them ends all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from app.segmentation.files import segment_files


class Patches:
    """Segments nothing: the first file fails as nobody foresaw, and the others are at work when it does."""

    def __init__(self) -> None:
        self.begun = 0
        self.working = 0

    @asynccontextmanager
    async def segmented(self, data: bytes, mpp: float | None) -> AsyncIterator[None]:
        self.begun += 1
        if data == b"first":
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


def test_nothing_is_at_work_any_more_when_an_unforeseen_error_is_raised(tmp_path):
    paths = [tmp_path / name for name in ("first", "second", "third")]
    for path in paths:
        path.write_bytes(path.name.encode())
    patches = Patches()

    async def segment_all() -> int:
        with pytest.raises(ZeroDivisionError):
            async for _ in segment_files(patches, paths, tmp_path, 0.5, None, at_once=3):
                pass
        return patches.working

    assert asyncio.run(segment_all()) == 0
    assert patches.begun == 3
