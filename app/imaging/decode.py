"""Uploaded bytes to (H, W, 3) uint8 sRGB, with guards on format, size and content.

The format is read off the bytes; what a client calls them decides nothing. No metadata leaves this file.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from app.errors import ImageRejected, ImageTooLarge, UnreadableImage, UnsupportedImage
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

MEDIA_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/webp", "image/bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
"""Pillow's names of the same formats."""

_GLASS = (255, 255, 255)
"""What shows through transparent pixels: in brightfield microscopy, the empty slide."""

# Pillow's bomb guard is a limit of the whole process and partly a mere warning; `decode` has its own, per call.
Image.MAX_IMAGE_PIXELS = None


def decode(data: bytes, max_side_px: int) -> RgbImage:
    """Decode one image, upright as its EXIF orientation says, transparent pixels on white.

    Args:
        data: A PNG, JPEG, TIFF, WebP or BMP file of one frame, with 8 or 16 bits a channel.
        max_side_px: The longest side allowed; it is read off the header, before any pixel is decoded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnsupportedImage: Another format, several frames, or 32-bit pixels.
        ImageTooLarge: A side is longer than `max_side_px`.
        UnreadableImage: The content is truncated or damaged.
    """
    if not data:
        raise UnreadableImage("the upload is empty; send the bytes of an image")
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check(image, max_side_px)
            return np.array(_to_rgb(_upright(image)))
    except UnidentifiedImageError:
        raise UnsupportedImage(f"not an image in a known format; send {', '.join(FORMATS)}") from None
    except (ImageRejected, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise UnreadableImage("the image is truncated or damaged and does not decode") from error


def _check(image: Image.Image, max_side_px: int) -> None:
    size = Size(*image.size)
    if max(image.size) > max_side_px:
        raise ImageTooLarge(f"the image is {size}; each side may have at most {max_side_px} px")
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo with a preview of itself
    if frames > 1:
        raise UnsupportedImage(f"the file holds {frames} images; send one image a file")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        sixteen_bit = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((sixteen_bit + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnsupportedImage("the image has 32 bits a pixel in one channel; send 8 or 16 bits a channel")
    if image.mode in ("LAB", "HSV"):
        raise UnsupportedImage(f"the image is in {image.mode} colours; send RGB, greyscale or CMYK")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, _GLASS), over).convert("RGB")
    return image.convert("RGB")
