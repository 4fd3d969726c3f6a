"""Areas of a slide that is an array, without an archive."""

import asyncio

import numpy as np
import pytest
import shapely
from prometheus_client import CollectorRegistry

from app.errors import AreaOutside, ImageTooLarge, TooManyRegions
from app.interop.sectra import AreaTissue
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.segmentation.outlines import LEAST_REGION_PX
from app.segmentation.sectra import area as area_module
from app.segmentation.sectra.area import AreaSegmentation
from app.segmentation.windows import SegmentedArea
from app.segmentation.workers import Workers
from app.slides.slide import Level
from app.telemetry.metrics import Metrics
from tests.fakes import ColourSegmenter, manifest
from tests.pictures import BLUE, GREEN, WHITE, plain

pytestmark = pytest.mark.anyio


class Picture:
    """A slide of one level, 0.5 um/px."""

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
    await segmenter.start(metrics)
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


async def test_an_area_between_the_centres_of_pixels_is_refused_and_gives_its_pixels_back():
    async with asyncio.timeout(20):
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


async def test_an_area_is_seen_at_the_models_spacing_and_drawn_in_the_slides_pixels():
    """Of 101 px each two become one, and half of the last one lies beyond the slide."""

    async with asyncio.timeout(20):
        metrics = Metrics(CollectorRegistry())
        workers, model = Workers(1, metrics), ColourSegmenter(manifest().model_copy(update={"um_per_px": 1.0}))
        await model.start(metrics)
        whole = shapely.MultiPolygon([shapely.box(0, 0, 101, 101)])
        try:
            segmentation = AreaSegmentation(model, workers, workers, metrics, 51 * 51)
            found = await segmentation.segment(Picture(plain(BLUE, 101, 101)), whole)
            with pytest.raises(ImageTooLarge, match=r"more than 2600 px at the model's 1\.0 um/px"):
                await AreaSegmentation(model, workers, workers, metrics, 2600).segment(
                    Picture(plain(BLUE, 101, 101)), whole
                )
        finally:
            await workers.close()
        assert found.um_per_px == 1.0
        assert sum(found.pixel_counts) == found.pixel_counts[0] in range(50 * 50, 51 * 51 + 1)
        [region] = found.tissue
        assert all(value <= 101 for value in region.outline.bounds)
        assert region.outline.area > 0.97 * whole.area


def tissue_in(outline: shapely.Polygon, image: RgbImage) -> AreaTissue:
    """Return what is found within an outline on a slide at the model's own spacing."""

    async def scenario() -> AreaTissue:
        metrics = Metrics(CollectorRegistry())
        workers, model = Workers(1, metrics), ColourSegmenter()
        await model.start(metrics)
        try:
            segmentation = AreaSegmentation(model, workers, workers, metrics, image.size)
            return await segmentation.segment(Picture(image), shapely.MultiPolygon([outline]))
        finally:
            await workers.close()

    return asyncio.run(asyncio.wait_for(scenario(), 20))


def test_tissue_ends_at_the_line_however_little_lies_beyond_it():
    """The corners that a round line leaves are smaller than the regions that join others, and were tissue before."""
    round_line = shapely.box(16, 16, 84, 84).buffer(16)
    beyond = shapely.box(*round_line.bounds) - round_line
    assert len(beyond.geoms) == 4
    assert all(0 < corner.area < LEAST_REGION_PX for corner in beyond.geoms)
    found = tissue_in(round_line, plain(BLUE, 100, 100))
    [region] = found.tissue
    assert region.outline.area == pytest.approx(found.pixel_counts[0], rel=0.01)
    assert (region.outline & beyond).area < 0.01 * round_line.area


def test_tissue_that_goes_on_beyond_the_line_is_there_however_little_lies_within():
    image = plain(BLUE, 100, 100)
    image[:37, :37] = GREEN
    image[60:67, 60:67] = GREEN  # of 49 px, all of it within
    found = tissue_in(shapely.box(30, 30, 90, 90) | shapely.box(60, 0, 90, 30), image)  # 259 px of it are seen
    assert found.pixel_counts[:2] == [60 * 60 + 30 * 30 - 98, 98]
    by_class = {region.class_index: region.outline for region in found.tissue}
    assert len(found.tissue) == 2
    assert by_class[1].bounds == (30, 30, 37, 37)
    assert by_class[0].area == 60 * 60 + 30 * 30 - 49


def test_regions_join_others_where_they_would_in_a_slides_file():
    image = plain(BLUE, 100, 100)
    image[20:28, 20:28] = GREEN  # of 64 px
    image[60:67, 60:69] = GREEN  # of 63 px
    found = tissue_in(shapely.box(0, 0, 100, 100), image)
    assert found.pixel_counts[1] == 64 + 63
    assert [region.outline.bounds for region in found.tissue if region.class_index == 1] == [(20, 20, 28, 28)]


def test_what_is_too_tangled_to_be_traced_is_not_merged_either(monkeypatch):
    """GDAL would take seconds for it, in which no other thread runs."""
    monkeypatch.setattr(area_module, "merge_small", lambda *_: pytest.fail("it is merged"))
    class_map = np.random.default_rng(1).integers(0, 2, (1500, 1500), np.uint8)
    segmented = SegmentedArea(class_map, np.full_like(class_map, 200), np.zeros(3, np.float32), (), (1.0,))
    with pytest.raises(TooManyRegions, match="order a smaller one"):
        area_module._found(segmented, np.ones((1500, 1500), bool), manifest())
