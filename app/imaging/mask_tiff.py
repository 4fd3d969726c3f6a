"""A slide's class map as a pyramidal TIFF, which viewers of slides lay over the slide. Needs the extra `wsi`.

The classes are a palette's indices, as in a patch's mask, so that no reader can average two classes to a third. Levels
are pages that follow each other, coarser ones marked as reduced images (TIFF 6.0, NewSubfileType): so OpenSlide, and
with it QuPath, knows a pyramid.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from app.imaging.resampling import resample_map
from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass
from app.pathology.geometry import Size

_TILE_PX = 512
_REDUCED = 1
"""NewSubfileType of a coarser level."""
_UM_PER_CM = 10_000
_MOST_CLASSIC_PIXELS = 2**31
"""A TIFF of more than 4 GiB needs the form BigTIFF, and of noise these many could have so much."""


def write_mask_tiff(
    path: Path,
    class_map: ClassMap,
    classes: Sequence[TissueClass],
    um_per_px: float | None,
    software: str,
    description: str,
) -> None:
    """Write a class map as a tiled, lossless palette TIFF with coarser levels, each of nearest pixels of the finest.

    Args:
        path: Of the file.
        class_map: (H, W) uint8.
        classes: The classes of the class map.
        um_per_px: Its pixel spacing; None where it is not known.
        software: What made it.
        description: What the file says of itself.

    Raises:
        OSError: It cannot be written.
        OutOfMemory: There is no memory for a coarser level now.
    """
    palette = np.zeros((3, 256), np.uint16)
    palette[:, : len(classes)] = 257 * np.array([tissue.color for tissue in classes]).T  # 16 bits a colour
    height, width = class_map.shape
    with tifffile.TiffWriter(path, bigtiff=class_map.size > _MOST_CLASSIC_PIXELS) as file:
        step = 1
        while True:
            size = Size(-(-width // step), -(-height // step))
            resolution = None if um_per_px is None else (_UM_PER_CM / (um_per_px * step),) * 2
            file.write(
                class_map if step == 1 else resample_map(class_map, size),
                photometric="palette",
                colormap=palette,
                compression="deflate",
                tile=(_TILE_PX, _TILE_PX),
                subfiletype=0 if step == 1 else _REDUCED,
                resolution=resolution,
                resolutionunit=None if resolution is None else "CENTIMETER",
                software=software,
                description=description.encode() if step == 1 else None,
                metadata=None,
            )
            if size.longest_px <= _TILE_PX:
                return
            step *= 2
