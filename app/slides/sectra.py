"""A slide in Sectra's archive, read tile by tile through an order's call-back address.

In Sectra's SDK (github.com/sectra-medical/dpat_imageanalysisapi_sdk, `examples/python/ia_wholeslide`) slides are Deep
Zoom pyramids without overlap: level n, counted from 0, is halved ceil(log2(longest side)) - n times, and its tiles are

    GET <call-back URL>/images/<slideId>_files/<level>/<column>_<row>[_<focal plane>].<extension>
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from threading import Lock
from urllib.parse import quote

import numpy as np
from pydantic import ValidationError
from sectra_client.schemas import ImageMetadata

from app.errors import ImageRejected, SlideUnreadable
from app.imaging.decode import MEDIA_TYPES, decode
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides.sectra_callback import Callback, path_of
from app.slides.slide import Level

_LEAST_TILE_PX, _MOST_TILE_PX = 64, 4096
"""Smaller tiles would make a request for every few pixels."""
_MOST_SIDE_PX = 2**22
_MOST_INFO_BYTES = 2**20
_TILE_OVERHEAD_BYTES = 2**16
_KEPT_BYTES = 2**26
"""Of tiles as they came: windows overlap, and an archive is not to be asked for each tile several times."""


class SectraSlide:
    """A slide that an order names. Its focal plane is the one nearest to the scanner's own focus.

    Args:
        callback: The order's call-back address.
        slide_id: As the order names it.
        info: What the call-back says of it.

    Attributes:
        levels: Finest first, each half of the one before, rounded down as the SDK does, to a level of 1 px.

    Raises:
        SlideUnreadable: It gives no tiles, or none that can be read.
    """

    levels: tuple[Level, ...]

    def __init__(self, callback: Callback, slide_id: str, info: ImageMetadata) -> None:
        size, tile = info.imageSize, info.tileSize
        if not info.isStreamable:
            raise SlideUnreadable("Sectra gives no tiles of this slide; its pyramid lacks levels")
        if min(size.width, size.height) < 1 or max(size.width, size.height) > _MOST_SIDE_PX:
            raise SlideUnreadable(
                f"the slide is {size.width}x{size.height} px; 1 to {_MOST_SIDE_PX} px a side are read"
            )
        if min(tile.width, tile.height) < _LEAST_TILE_PX or max(tile.width, tile.height) > _MOST_TILE_PX:
            raise SlideUnreadable(
                f"the slide's tiles are {tile.width}x{tile.height} px;"
                f" {_LEAST_TILE_PX} to {_MOST_TILE_PX} px a side are read"
            )
        if len(info.opticalPaths) > 1:
            raise SlideUnreadable("the slide has several optical paths, as in fluorescence; slides of one are read")
        self._folder = path_of("images", f"{slide_id}_files")
        self._tile = Size(tile.width, tile.height)
        most_bytes = 4 * self._tile.pixels + _TILE_OVERHEAD_BYTES
        fetch = partial(callback.get, "a tile", max_bytes=most_bytes)
        self._fetch = _KeptTiles(fetch, _KEPT_BYTES)
        self._name_end = f"{_focal_plane(info)}.{_extension(info)}"
        self._finest = (max(size.width, size.height) - 1).bit_length()
        spacing = info.micronsPerPixel if 0 < info.micronsPerPixel < float("inf") else None
        self.levels = tuple(
            Level(
                Size(max(1, size.width >> halved), max(1, size.height >> halved)),
                None if spacing is None else spacing * 2**halved,
                float(2**halved),
            )
            for halved in range(self._finest + 1)
        )

    def read(self, level: int, region: Region) -> RgbImage:
        """Return (H, W, 3) uint8 pixels of `region` of a level; see `Slide.read`.

        Raises:
            SlideUnreadable: A tile does not decode or has too few pixels.
            ArchiveUnavailable, ArchiveDenied, ArchiveRefused: See `Callback.get`.
        """
        image = np.empty((region.size.height_px, region.size.width_px, 3), np.uint8)
        wide, high = self._tile.width_px, self._tile.height_px
        right, bottom = region.x_px + region.size.width_px, region.y_px + region.size.height_px
        for row in range(region.y_px // high, -(-bottom // high)):
            for column in range(region.x_px // wide, -(-right // wide)):
                x, y = column * wide, row * high
                left, top = max(x, region.x_px), max(y, region.y_px)
                end_x, end_y = min(x + wide, right), min(y + high, bottom)
                tile = self._read_tile(level, column, row)
                image[top - region.y_px : end_y - region.y_px, left - region.x_px : end_x - region.x_px] = tile[
                    top - y : end_y - y, left - x : end_x - x
                ]
        return image

    def _read_tile(self, level: int, column: int, row: int) -> RgbImage:
        """Return a tile's pixels; its right and bottom may have more than the level has, as in the SDK's examples."""
        data = self._fetch(f"{self._folder}/{self._finest - level}/{column}_{row}{self._name_end}")
        try:
            image = decode(data, self._tile.longest_px)
        except ImageRejected as error:
            raise SlideUnreadable(f"Sectra sent a tile that cannot be read: {error}") from error
        size = self.levels[level].size
        least = Size(
            min(self._tile.width_px, size.width_px - column * self._tile.width_px),
            min(self._tile.height_px, size.height_px - row * self._tile.height_px),
        )
        height, width = image.shape[:2]
        if width < least.width_px or height < least.height_px:
            raise SlideUnreadable(f"Sectra sent a tile of {width}x{height} px where the slide has {least}")
        return image


class _KeptTiles:
    """Tiles as they came, by path; several threads that want one in the same moment ask for it once.

    Args:
        fetch: Asks for a tile.
        most_bytes: How much of them to keep: those that were wanted last.
    """

    def __init__(self, fetch: Callable[[str], bytes], most_bytes: int) -> None:
        self._fetch = fetch
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._coming: dict[str, Future[bytes]] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0

    def __call__(self, path: str) -> bytes:
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
            is_new = path not in self._coming
            tile = self._coming.setdefault(path, Future())
        if is_new:
            try:
                data = self._fetch(path)
                self._keep(path, data)
            except BaseException as error:
                with self._lock:
                    self._coming.pop(path, None)  # whoever asks later asks anew
                tile.set_exception(error)
                raise
            tile.set_result(data)
        return tile.result()

    def _keep(self, path: str, data: bytes) -> None:
        with self._lock:
            del self._coming[path]
            self._kept[path] = data
            self._kept_bytes += len(data)
            while self._kept_bytes > self._most_bytes:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def open_slide(callback: Callback, slide_id: str) -> SectraSlide:
    """Ask the call-back what a slide is like, without anything that names its patient.

    Raises:
        SlideUnreadable: It gives no tiles, or its description is not as the SDK's schema has it.
        ArchiveUnavailable, ArchiveDenied, ArchiveRefused: See `Callback.get`.
    """
    text = callback.get("the slide's description", path_of("slides", slide_id, "info"), _MOST_INFO_BYTES)
    try:
        info = ImageMetadata.model_validate_json(text)
    except ValidationError:  # its message holds what was sent
        raise SlideUnreadable("Sectra describes the slide in a form that its SDK does not have") from None
    return SectraSlide(callback, slide_id, info)


def _focal_plane(info: ImageMetadata) -> str:
    if not info.focalPlanes:
        return ""
    return "_" + quote(min(info.focalPlanes, key=lambda plane: abs(plane.offsetUm)).id, safe="")


def _extension(info: ImageMetadata) -> str:
    """Return the extension of the stored format where it can be decoded, since others are compressed a second time."""
    offered = [each for each in info.availableTileFormats if each.mimeType in MEDIA_TYPES]
    if not offered:
        raise SlideUnreadable(f"Sectra gives the slide's tiles in no format that is read; offer {MEDIA_TYPES[1]}")
    stored = [each for each in offered if each.mimeType == info.storedTileFormat.mimeType]
    return quote((stored or offered)[0].extension.lstrip("."), safe="")
