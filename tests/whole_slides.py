"""Whole-slide files as scanners write them, made of arrays by tifffile."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

TILE_PX = 128
PATIENT = "Mustermann"
"""Stands in what a scanner writes, and must stand nowhere else."""


def aperio(mpp: float | None) -> str:
    """Return what an Aperio scanner says of a slide of this um/px."""
    spacing = "" if mpp is None else f"|AppMag = 20|MPP = {mpp}"
    return f"Aperio Image Library v11.2.1\r\n900x700 [0,0 900x700] (128x128){spacing}|Patient = {PATIENT}"


def pyramid(image: RgbImage, steps: Sequence[int] = (1, 2, 4)) -> list[RgbImage]:
    """Return (H, W, 3) `image` at these steps, sides rounded down."""
    height, width = image.shape[:2]
    sizes = [(width // step, height // step) for step in steps]
    return [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for size in sizes]


def write_tiff(
    path: Path,
    levels: Sequence[RgbImage],
    um_per_px: tuple[float, float] | None = None,
    description: str | None = None,
    **how: Any,
) -> Path:
    """Write levels, finest first, as a tiled TIFF without loss.

    Args:
        path: Where to.
        levels: (H, W, 3) uint8 each.
        um_per_px: Across and down, for the finest level's tags of resolution.
        description: The finest level's; an Aperio scanner's makes it an SVS.
        how: What else tifffile shall do: `byteorder`, `bigtiff`.
    """
    with tifffile.TiffWriter(path, **how) as file:
        for number, level in enumerate(levels):
            resolution = None if um_per_px is None else tuple(10_000 / side / 2**number for side in um_per_px)
            file.write(
                level,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="deflate",
                subfiletype=0 if number == 0 or description else 1,
                resolution=resolution,
                resolutionunit=None if resolution is None else "CENTIMETER",
                description=description,
                metadata=None,
            )
    return path


def write_svs(path: Path, image: RgbImage, mpp: float | None = 0.5, steps: Sequence[int] = (1, 2, 4)) -> Path:
    """Write (H, W, 3) uint8 `image` as an Aperio scanner does."""
    return write_tiff(path, pyramid(image, steps), description=aperio(mpp))


def write_scn(path: Path, glass: Size, areas: Sequence[tuple[int, int, RgbImage]], um_per_px: float = 0.5) -> Path:
    """Write scanned areas as a Leica SCN400 does: in px of a glass of which the rest was not scanned.

    Args:
        path: Where to.
        glass: Its size.
        areas: Left, top and (H, W, 3) uint8 pixels of each; each has a coarser level of half the size.
        um_per_px: Of the pixels.
    """
    nm = round(1000 * um_per_px)

    def scan(name: str, first_ifd: int, size: Size, place: tuple[int, int], extent: Size, level_count: int) -> str:
        levels = "".join(
            f'<dimension sizeX="{size.width_px >> number}" sizeY="{size.height_px >> number}" r="{number}"'
            f' ifd="{first_ifd + number}"/>'
            for number in range(level_count)
        )
        return (
            f'<image name="{name}" uuid="{name}"><creationDate>2020-01-01T00:00:00.000Z</creationDate>'
            f'<device model="Leica SCN400" version="1"/><pixels sizeX="{size.width_px}" sizeY="{size.height_px}">'
            f'{levels}</pixels><view sizeX="{extent.width_px * nm}" sizeY="{extent.height_px * nm}"'
            f' offsetX="{place[0] * nm}" offsetY="{place[1] * nm}" spacingZ="0"/><scanSettings><objectiveSettings>'
            "<objective>20</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4"
            "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
            "</scanSettings></image>"
        )

    macro = np.full((64, 64, 3), 9, np.uint8)
    scans = [scan("macro", 0, Size(64, 64), (0, 0), glass, 1)]
    pixels = [macro]
    for left, top, image in areas:
        size = Size(image.shape[1], image.shape[0])
        scans.append(scan(f"area{len(scans)}", len(pixels), size, (left, top), size, 2))
        pixels += pyramid(image, (1, 2))
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="s"><collection'
        f' name="c" uuid="c" sizeX="{glass.width_px * nm}" sizeY="{glass.height_px * nm}"><barcode>QQ==</barcode>'
        f"{''.join(scans)}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, level in enumerate(pixels):
            file.write(
                level,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="deflate",
                resolution=(10_000 / um_per_px,) * 2,
                resolutionunit="CENTIMETER",
                description=xml if number == 0 else None,
                metadata=None,
            )
    return path


def with_a_hole(path: Path) -> Path:
    """Let the last tiles of the finest level be zeros, as in a copy that has holes."""
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        for begin, length in zip(page.dataoffsets[-12:], page.databytecounts[-12:], strict=True):
            data[begin : begin + length] = bytes(length)
    path.write_bytes(data)
    return path
