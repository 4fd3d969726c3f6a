"""A whole-slide file, such as SVS, NDPI, MRXS, SCN, BIF or tiled TIFF: its levels, through OpenSlide.

Needs the extra `wsi`. Of what a file says, only sizes, spacings and the scanned area are used: never the pictures of
its label and of the whole glass, nor properties and error messages that can quote a patient's name.
Source: https://openslide.org/api/python; why OpenSlide: docs/decisions/0020.
"""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide
from PIL import Image

from app.errors import OutOfMemory, SlideUnreadable, UnsupportedImage
from app.imaging.decode import GLASS, NO_MEMORY
from app.imaging.tiff_spacing import tiff_file_um_per_px
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size, of_microscope, of_square_pixels
from app.slides.slide import Level

_OPAQUE = 255
_NO_SCANNERS = "generic-tiff"
"""OpenSlide's name for the maker of a tiled TIFF that bears no other's marks."""
_KEPT_BYTES = 2**28
"""Of decoded tiles, for all threads: windows overlap those beside and below."""


class WholeSlideFile:
    """A whole-slide file, a `Slide`, which is open until its block ends.

    Its pixels are those of the scanned area, where the file says what that is (`openslide.bounds-x` and its like, of
    MRXS, SCN and BIF): QuPath shows and counts the same. Glass in it that was not scanned is white. Threads may read at
    once, but not while it is closed. After one part that cannot be read, OpenSlide gives no others.

    Args:
        path: The file; an MRXS has its folder beside it.
        um_per_px: Pixel spacing of the finest level, which counts where the file states none that can be used.

    Attributes:
        levels: Finest first; see `Slide`. Their spacing is not known where the file states none, or one of pixels that
            are not square or not a microscope's.
        corner: (x, y) of the scanned area's top left corner, in px of the file's finest level.

    Raises:
        UnsupportedImage: It is none of OpenSlide's kinds, or too damaged to tell.
        SlideUnreadable: It is one, and damaged, incomplete or in an encoding that OpenSlide does not read.
        OSError: It cannot be opened.
    """

    levels: tuple[Level, ...]
    corner: tuple[int, int]

    def __init__(self, path: Path, um_per_px: float | None = None) -> None:
        with path.open("rb"):  # OpenSlide takes a file that may not be read for one of another kind
            pass
        try:
            self._file = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError:
            raise UnsupportedImage(
                "not a whole-slide file that OpenSlide reads, or one whose end is missing; pictures are segmented by"
                " `tessera segment`"
            ) from None
        except openslide.OpenSlideError:  # its message can quote what the file says
            raise SlideUnreadable(
                "the whole-slide file is damaged, lacks a file or folder that belongs beside it, or has an encoding"
                " that OpenSlide does not read"
            ) from None
        self._file.set_cache(openslide.OpenSlideCache(_KEPT_BYTES))
        properties, whole = self._file.properties, Size(*self._file.dimensions)
        area = _scanned(properties, whole)
        self.corner = (area.x_px, area.y_px)
        own = _um_per_px(properties) or of_microscope(tiff_file_um_per_px(path, whole)) or um_per_px
        self.levels = tuple(
            _level(Size(*size), downsample, own, None if area.size == whole else area.size)
            for size, downsample in zip(self._file.level_dimensions, self._file.level_downsamples, strict=True)
        )

    def read(self, level: int, region: Region) -> RgbImage:
        """Return (H, W, 3) uint8 pixels of a region of a level; see `Slide.read`.

        OpenSlide takes whole px of the finest level for a place. Where a level's downsample is no whole number, a
        region is thus read up to half of such a px beside its place, and interpolated: docs/decisions/0020.

        Raises:
            SlideUnreadable: The file is damaged, there or where it was read before.
            OutOfMemory: There is no memory for it now.
        """
        downsample = self.levels[level].downsample
        place = (
            self.corner[0] + round(region.x_px * downsample),
            self.corner[1] + round(region.y_px * downsample),
        )
        try:
            read = self._file.read_region(place, level, (region.size.width_px, region.size.height_px))
        except openslide.OpenSlideError:
            raise SlideUnreadable("the whole-slide file is damaged: a part of it cannot be read") from None
        except MemoryError:
            raise OutOfMemory(NO_MEMORY) from None
        pixels: RgbImage = np.asarray(read)
        if pixels[..., 3].min() < _OPAQUE:
            glass = Image.new("RGBA", read.size, (GLASS, GLASS, GLASS, _OPAQUE))
            pixels = np.asarray(Image.alpha_composite(glass, read))
        return np.ascontiguousarray(pixels[..., :3])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


def _um_per_px(properties: Mapping[str, str]) -> float | None:
    """Return the finest level's spacing as a scanner states it, None where none is stated that can be used.

    Of a TIFF of no scanner's kind OpenSlide repeats the tags of resolution, which any program may have written: those
    count by the rules of `tiff_file_um_per_px`.
    """
    if properties.get(openslide.PROPERTY_NAME_VENDOR) == _NO_SCANNERS:
        return None
    down, across = (
        _number(properties, name) for name in (openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X)
    )
    return None if down is None or across is None else of_microscope(of_square_pixels(down, across))


def _number(properties: Mapping[str, str], name: str) -> float | None:
    try:
        return float(properties[name])
    except (KeyError, ValueError):
        return None


def _scanned(properties: Mapping[str, str], whole: Size) -> Region:
    """Return the scanned area in px of the finest level: all of it where none is stated, or one that cannot be."""
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    everything = Region(0, 0, whole)
    try:
        x, y, width, height = (int(properties[name]) for name in names)
    except (KeyError, ValueError):
        return everything
    is_within = 0 <= x < x + width <= whole.width_px and 0 <= y < y + height <= whole.height_px
    return Region(x, y, Size(width, height)) if is_within else everything


def _level(size: Size, downsample: float, um_per_px: float | None, scanned: Size | None) -> Level:
    """Return a level; of one that holds more than `scanned`, in px of the finest, that part."""
    if scanned is not None:
        size = Size(*(max(1, round(side / downsample)) for side in (scanned.width_px, scanned.height_px)))
    return Level(size, None if um_per_px is None else um_per_px * downsample, downsample)
