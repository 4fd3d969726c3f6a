"""Areas of a slide that is an array, without an archive."""

import asyncio

import numpy as np
import pytest
import shapely
from prometheus_client import CollectorRegistry

from app.errors import AreaOutside
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.segmentation.sectra import area as area_module
from app.segmentation.sectra.area import AreaSegmentation
from app.segmentation.workers import Workers
from app.slides.slide import Level
from app.telemetry.metrics import Metrics
from tests.fakes import ColourSegmenter
from tests.pictures import BLUE, WHITE, plain


class Picture:
    """A slide of one level."""

    def __init__(self, image: RgbImage) -> None:
        self._image = image
        self.levels = (Level(Size(image.shape[1], image.shape[0]), 0.5, 1.0),)

    def read(self, level: int, region: Region) -> RgbImage:
        return self._image[region.slices]


async def areas_at_once(count: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Segment that many areas of all the pixels allowed at once; return how many masks there were when each began."""
    begun, alive = [], 0
    rasterise = area_module._rasterised
    metrics = Metrics(CollectorRegistry())
    fetchers, workers = Workers(2, metrics), Workers(2, metrics)
    segmenter = ColourSegmenter()
    await segmenter.start()
    segmentation = AreaSegmentation(segmenter, fetchers, workers, metrics, 100 * 100)

    def counted(*arguments: object) -> np.ndarray:
        nonlocal alive
        alive += 1
        begun.append(alive)
        return rasterise(*arguments)

    async def one() -> None:
        nonlocal alive
        found = await segmentation.segment(Picture(plain(BLUE, 100, 100)), outline)
        assert found.pixel_counts == [100 * 100, 0, 0, 0]
        alive -= 1

    outline = shapely.MultiPolygon([shapely.box(0, 0, 100, 100)])
    monkeypatch.setattr(area_module, "_rasterised", counted)
    try:
        await asyncio.gather(*(one() for _ in range(count)))
    finally:
        await fetchers.close()
        await workers.close()
    return begun


def test_masks_are_within_the_budget_of_pixels(monkeypatch):
    assert asyncio.run(areas_at_once(5, monkeypatch)) == [1] * 5


def test_an_area_between_the_centres_of_pixels_is_refused_and_gives_its_pixels_back():
    async def scenario() -> None:
        metrics = Metrics(CollectorRegistry())
        workers = Workers(1, metrics)
        segmentation = AreaSegmentation(ColourSegmenter(), workers, workers, metrics, 1)
        outline = shapely.MultiPolygon([shapely.box(10.1, 10.1, 10.2, 10.2)])
        try:
            for _ in range(2):
                with pytest.raises(AreaOutside, match="less than a pixel"):
                    await segmentation.segment(Picture(plain(WHITE, 20, 20)), outline)
        finally:
            await workers.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))
