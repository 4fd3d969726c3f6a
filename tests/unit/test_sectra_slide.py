"""A slide of Sectra's, with an archive that is a dictionary."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from sectra_client.schemas import FocalPlane, OpticalPath
from sectra_client.schemas import Size as SectraSize

from app.errors import ArchiveRefused, SlideUnreadable
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides import sectra
from app.slides.sectra import SectraSlide
from app.slides.slide import Slide
from tests.pictures import encoded, noise
from tests.sectra_pacs import JPEG, PNG, SectraPacs


class Archive:
    """Gives tiles of an image's finest level, by path."""

    def __init__(self, image: RgbImage, tile_px: int, encode: Callable[[RgbImage], bytes] = encoded) -> None:
        self._image, self._tile_px, self._encode = image, tile_px, encode
        self.paths: list[str] = []
        self.refusals: list[Exception] = []

    def get(self, what: str, path: str, max_bytes: int) -> bytes:
        self.paths.append(path)
        if self.refusals:
            raise self.refusals.pop()
        column, row = (int(part) for part in re.findall(r"\d+", path.rsplit("/", 1)[1])[:2])
        x, y = column * self._tile_px, row * self._tile_px
        tile = self._image[y : y + self._tile_px, x : x + self._tile_px]
        if not tile.size:
            raise ArchiveRefused("404")
        return self._encode(tile)


def info(width: int, height: int, tile_px: int = 64, **changes: object):
    pacs = SectraPacs()
    known = pacs._slides[pacs.add_image(np.zeros((1, 1, 3), np.uint8), tile_px=tile_px)]
    return known.model_copy(update={"imageSize": SectraSize(width=width, height=height), **changes})


def slide(image: RgbImage, tile_px: int = 64, **changes: object) -> tuple[SectraSlide, Archive]:
    archive = Archive(image, tile_px)
    return SectraSlide(archive, "id", info(image.shape[1], image.shape[0], tile_px, **changes)), archive


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (63, 65), (200, 129)])
@pytest.mark.parametrize("tile_px", [64, 100])
def test_any_region_is_what_the_image_has_there(size, tile_px):
    image = noise(*size)
    whole: Slide = slide(image, tile_px)[0]
    generator = np.random.default_rng(5)
    for _ in range(20):
        x, y = (int(generator.integers(0, side)) for side in size)
        region = Region(
            x, y, Size(int(generator.integers(1, size[0] - x + 1)), int(generator.integers(1, size[1] - y + 1)))
        )
        assert np.array_equal(whole.read(0, region), image[region.slices])


def test_the_levels_are_those_of_the_sdk():
    """The table in the SDK's `dzidesc.py`, for a slide of 87647x76723 px."""
    levels = SectraSlide(Archive(noise(1, 1), 240), "id", info(87647, 76723, 240)).levels
    sizes = [(level.size.width_px, level.size.height_px) for level in levels]
    assert len(levels) == 18
    assert sizes[:4] == [(87647, 76723), (43823, 38361), (21911, 19180), (10955, 9590)]
    assert sizes[13:16] == [(10, 9), (5, 4), (2, 2)]
    assert [level.downsample for level in levels[:3]] == [1, 2, 4]
    assert [level.um_per_px for level in levels[:3]] == [0.5, 1, 2]


def test_a_tile_is_asked_for_as_the_sdk_does():
    image = noise(130, 70)
    whole, archive = slide(image)
    whole.read(0, Region(64, 0, Size(1, 1)))
    assert archive.paths == ["/images/id_files/8/1_0_0.png"]


def test_a_tile_is_asked_for_once():
    whole, archive = slide(noise(130, 70))
    for _ in range(2):
        whole.read(0, Region(0, 0, Size(130, 70)))
    assert len(archive.paths) == 6


def test_tiles_are_kept_by_the_bytes_that_they_have(monkeypatch):
    """Before, each counted as if it had come without compression."""
    image = noise(64 * 6, 64)
    monkeypatch.setattr(sectra, "_KEPT_BYTES", len(encoded(image[:, :64])) * 4)
    whole, archive = slide(image)
    for x in (0, 64, 128, 0, 64, 128):
        whole.read(0, Region(x, 0, Size(1, 1)))
    assert len(archive.paths) == 3
    for x in (192, 256, 320, 0):  # the first has to go
        whole.read(0, Region(x, 0, Size(1, 1)))
    assert len(archive.paths) == 7


def test_a_tile_that_did_not_come_is_asked_for_again():
    image = noise(64, 64)
    whole, archive = slide(image)
    archive.refusals.append(ArchiveRefused("503"))
    region = Region(0, 0, Size(64, 64))
    with pytest.raises(ArchiveRefused):
        whole.read(0, region)
    assert np.array_equal(whole.read(0, region), image)
    assert len(archive.paths) == 2


def test_who_waits_for_a_tile_that_does_not_come_is_told_so_and_does_not_ask_once_more(monkeypatch):
    archive = Archive(noise(64, 64), 64)
    begun, waits, goes_on = threading.Event(), threading.Event(), threading.Event()

    def refuse(what: str, path: str, max_bytes: int) -> bytes:
        archive.paths.append(path)
        begun.set()
        assert goes_on.wait(60)
        raise ArchiveRefused("503")

    class Told(Future):
        def result(self, timeout=None):
            waits.set()
            return super().result(timeout)

    monkeypatch.setattr(archive, "get", refuse)
    monkeypatch.setattr(sectra, "Future", Told)
    whole = SectraSlide(archive, "id", info(64, 64))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(whole.read, 0, Region(0, 0, Size(64, 64)))
        assert begun.wait(60)
        second = threads.submit(whole.read, 0, Region(0, 0, Size(64, 64)))
        waited = waits.wait(10)
        goes_on.set()
        assert waited
        for asked in (first, second):
            with pytest.raises(ArchiveRefused):
                asked.result()
    assert len(archive.paths) == 1


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"focalPlanes": []}, "0_0.png"),
        ({"focalPlanes": [FocalPlane(id="a/b", offsetUm=0.5), FocalPlane(id="c", offsetUm=-2)]}, "0_0_a%2Fb.png"),
        ({"storedTileFormat": JPEG}, "0_0_0.jpg"),
        ({"storedTileFormat": JPEG.model_copy(update={"mimeType": "image/jp2"})}, "0_0_0.jpg"),
        ({"availableTileFormats": [JPEG.model_copy(update={"mimeType": "image/jp2"}), PNG]}, "0_0_0.png"),
        ({"availableTileFormats": [PNG.model_copy(update={"extension": ".png"})]}, "0_0_0.png"),
    ],
)
def test_plane_and_format_are_chosen(changes, end):
    whole, archive = slide(noise(64, 64), **changes)
    whole.read(0, Region(0, 0, Size(1, 1)))
    assert archive.paths == [f"/images/id_files/6/{end}"]


def test_fluorescence_is_refused():
    paths = [OpticalPath(id=str(number), description="DAPI") for number in range(2)]
    with pytest.raises(SlideUnreadable, match="several optical paths"):
        slide(noise(8, 8), opticalPaths=paths)


@pytest.mark.parametrize("um_per_px", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_that_is_none_is_unknown(um_per_px):
    assert slide(noise(8, 8), micronsPerPixel=um_per_px)[0].levels[0].um_per_px is None
