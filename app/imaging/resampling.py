"""Images and maps at another size. What size, and why, is decided in `app/segmentation/scale.py`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import OutOfMemory, no_memory_to
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size


def resample_image(image: RgbImage, size: Size) -> RgbImage:
    """Return (H, W, 3) uint8 `image` at `size`, each new pixel made of all that it covers, so that nothing aliases.

    It is resampled across and then down. Between the two, values are rounded and cut off at 8 bits, so the order shows;
    and Pillow's own depends on the shape, which a part of an image does not share with the whole.

    Raises:
        OutOfMemory: There is no memory for it now.
    """
    # Chosen by measurement among Pillow's filters: docs/decisions/0009.
    return _resized(image, Image.Resampling.BICUBIC, Size(size.width_px, image.shape[0]), size)


def resample_map(values: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Return (H, W) uint8 `values`, classes or confidences, at `size`: each new pixel has its nearest one's value.

    Between two classes there is none, so values are never mixed; and the two maps of a patch stay in step.

    Raises:
        OutOfMemory: There is no memory for it now.
    """
    return _resized(values, Image.Resampling.NEAREST, size)


def _resized(values: NDArray[np.uint8], how: Image.Resampling, *sizes: Size) -> NDArray[np.uint8]:
    """Return `values` at each of the sizes in turn."""
    try:
        picture = Image.fromarray(values)
        for size in sizes:
            picture = picture.resize((size.width_px, size.height_px), how)
        return np.array(picture)
    except MemoryError as error:
        raise OutOfMemory(no_memory_to("rescale this image")) from error
