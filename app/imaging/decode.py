"""Uploaded bytes to (H, W, 3) uint8 RGB, with guards on format, size and content.

The format is read off the bytes; what a client calls them decides nothing. No metadata leaves this file but the um/px
that a TIFF states. Colour profiles are not applied: the models learn from pixels as they were stored.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImagePalette, TiffTags, UnidentifiedImageError

from app.errors import ImageRejected, ImageTooLarge, OutOfMemory, UnreadableImage, UnsupportedImage, no_memory_to
from app.imaging.common_files import common_pixels
from app.imaging.jpeg import check_scans
from app.imaging.structure import check_exif, glance, looks_like_an_accepted_format
from app.imaging.tiff import TIFFS_READ, check_kind, narrow_colours, tag_values, tags_of
from app.imaging.tiff_spacing import tiff_um_per_px
from app.libraries import silence_libraries
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size

MEDIA_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/webp", "image/bmp")
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
"""Pillow's names of the same formats."""
_SAID = ", ".join(FORMATS).replace("WEBP", "WebP")

GLASS = 255
"""In each channel, what shows where nothing is: in brightfield microscopy, the empty slide."""
_WIDE = 65535

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (CIPA DC-008, section 4.6.5)."""

_XMP = ("xmp", "XML:com.adobe.xmp")
"""Pillow's names of it."""
TILE_FLOOR_PX = 1024
"""Tiles of so many px a side are read, whatever a patch's longest side."""
_SLACK_BYTES = 2**16
"""What a BMP may hold beside its pixels: its header and palette."""
NO_MEMORY = no_memory_to("decode this image")
_PNG_DEPTH_AT = 24
"""Where a PNG's header, which is always its first chunk, states the bits of a channel."""

# Pillow's bomb guard is a limit of the whole process and partly a mere warning; `decode` has its own, per call.
Image.MAX_IMAGE_PIXELS = None


class OpenedFile:
    """An image file whose header has been read and found acceptable, and no pixel yet.

    Attributes:
        size: What the header states: a TIFF's as its orientation says, another's before that.
    """

    def __init__(self, data: bytes, image: ImageFile.ImageFile) -> None:
        self.size = Size(*image.size)
        self._data = data
        self._image = image

    def um_per_px(self) -> float | None:
        """Return the pixel spacing that the file states, of a TIFF alone; None where it states none to use."""
        return tiff_um_per_px(self._image) if self._image.format == "TIFF" else None

    def pixels(self) -> RgbImage:
        """Decode it; see `decode`."""
        image = self._image
        # Pillow knows a PNG's orientation once it has its pixels; `common_pixels` takes no PNG that may state one.
        is_upright = image.format == "PNG" or (image.format == "JPEG" and _orientation(image) == 1)
        pixels = common_pixels(self._data, image) if is_upright else None
        return _pillows_pixels(self._data, image) if pixels is None else pixels


@contextmanager
def opened(data: bytes, max_side_px: int) -> Iterator[OpenedFile]:
    """Give the file in `data` between its header and its pixels; takes and raises what `decode` does."""
    with _opened(data, max_side_px) as image:
        yield OpenedFile(data, image)


def decode(data: bytes, max_side_px: int) -> RgbImage:
    """Decode one image, upright as its EXIF orientation says, transparent pixels on white.

    An orientation that cannot be read is none: broken metadata does not cost the pixels.

    Args:
        data: A PNG, JPEG, TIFF, WebP or BMP file of one frame, with 8 or 16 bits a channel.
        max_side_px: The longest side allowed; it is read off the header, before any pixel is decoded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UnsupportedImage: Another format, several frames, or pixels that are neither 8 nor 16 bits a channel.
        ImageTooLarge: A side is longer than `max_side_px`.
        UnreadableImage: The content is truncated or damaged.
        OutOfMemory: There is no memory to decode it now.
    """
    with opened(data, max_side_px) as file:
        return file.pixels()


def decode_by_pillow(data: bytes, max_side_px: int) -> RgbImage:
    """Decode as `decode` does, any file by Pillow: the reference, with which what is faster agrees."""
    with _opened(data, max_side_px) as image:
        return _pillows_pixels(data, image)


def _pillows_pixels(data: bytes, image: ImageFile.ImageFile) -> RgbImage:
    if image.mode in ("P", "PA") and (colours := narrow_colours(_tags(image))):
        image.palette = ImagePalette.raw("RGB;L", colours)
    image.load()
    upright = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image, depth=data[_PNG_DEPTH_AT] if image.format == "PNG" else 8)
    return np.array(rgb if upright is None else rgb.transpose(upright))


@contextmanager
def _opened(data: bytes, max_side_px: int) -> Iterator[ImageFile.ImageFile]:
    if not data:
        raise UnreadableImage("the upload is empty; send the bytes of an image")
    glance(data)
    check_scans(data)
    silence_libraries()
    try:
        with _identified(data) as image:
            _check(image, max_side_px)
            _check_runs(data, image)
            _drop_xmp(image)
            _check_exif(image)
            if image.format == "TIFF":
                _drop_directories(image)
            yield image
    except ImageRejected:
        raise
    except MemoryError as error:
        raise OutOfMemory(NO_MEMORY) from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to
        raise UnreadableImage("the image is truncated or damaged and does not decode") from error


def _identified(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if not looks_like_an_accepted_format(data):
            raise UnsupportedImage(f"not an image in a known format; send {_SAID} or DICOM") from None
    if not data.startswith((b"II", b"MM")):
        raise UnreadableImage("the image is damaged at its beginning, or of a pixel type that is not read")
    check_kind(tags_of(BytesIO(data)))
    raise UnreadableImage(
        f"the TIFF is damaged at its beginning, or of a kind that is not read, such as JPEG 2000; {TIFFS_READ}"
    )


def _check(image: Image.Image, max_side_px: int) -> None:
    size = Size(*image.size)
    if max(image.size) > max_side_px:
        raise ImageTooLarge(f"the image is {size}; each side may have at most {max_side_px} px")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: a photo with a preview of itself
        raise UnsupportedImage("the file holds several images; send one image a file")
    if image.format == "TIFF":
        check_kind(_tags(image))
        tile_px = max((*tag_values(_tags(image), "TileWidth"), *tag_values(_tags(image), "TileLength")), default=0)
        if tile_px > max(max_side_px, TILE_FLOOR_PX):
            raise ImageTooLarge(
                f"the TIFF's tiles are {tile_px} px a side; each side may have at most {max_side_px} px"
            )


def _check_runs(data: bytes, image: ImageFile.ImageFile) -> None:
    """Refuse a BMP of more codes than its pixels need: Pillow goes through them in Python.

    A code of two bytes makes a pixel or more, or ends a row. Source: Microsoft's "Bitmap Compression" of Windows GDI.
    """
    most_bytes = 2 * (image.width + 1) * image.height + _SLACK_BYTES
    if any(tile.codec_name == "bmp_rle" for tile in image.tile) and len(data) > most_bytes:
        raise UnreadableImage("the BMP has far more codes than its pixels need")


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Return a TIFF's tags; none of another image."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    return tags


def _drop_xmp(image: Image.Image) -> None:
    """Forget XMP, from which Pillow takes an orientation where EXIF has none, and browsers and viewers do not."""
    for name in _XMP:
        image.info.pop(name, None)


def _check_exif(image: Image.Image) -> None:
    """Refuse too much of it: of a PNG what lies before the pixels, and once they are loaded what lies behind."""
    as_text = image.info.get("Raw profile type exif", "")  # two letters a byte
    check_exif(max(len(image.info.get("exif", b"")), len(as_text) // 2))


def _drop_directories(image: Image.Image) -> None:
    """Forget the directories that a TIFF's own leads to: Pillow would read all that they say, of any length."""
    tags = image.getexif()
    for tag in TiffTags.TAGS_V2_GROUPS:
        if tag in tags:
            del tags[tag]


def _orientation(image: Image.Image) -> int:
    _drop_xmp(image)  # a PNG may have it after its pixels
    _check_exif(image)
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  whatever is wrong with metadata, the pixels are here
        return 1


def _to_rgb(image: Image.Image, depth: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_sixteen_bit_grey(image)
    if image.mode in ("LAB", "HSV"):
        raise UnsupportedImage(f"the image is in {image.mode} colours; send RGB, greyscale or CMYK")
    if image.mode == "La":  # grey times its opacity (TIFF 6.0, section 18), which Pillow turns into nothing else
        image = image.convert("LA")
    if image.format == "PNG" and image.mode in ("L", "RGB") and "transparency" in image.info:
        _scale_transparency(image, depth)
    if image.has_transparency_data:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, (GLASS, GLASS, GLASS)), over).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bit_grey(image: Image.Image) -> Image.Image:
    grey = np.array(image).astype(np.uint32)
    if tag_values(_tags(image), "PhotometricInterpretation") == (0,):  # WhiteIsZero
        grey = _WIDE - grey
    if "transparency" in image.info:
        grey[grey == image.info["transparency"]] = _WIDE
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Bring a PNG's transparent colour, which is in the file's bit depth, to the 8 bits of the decoded pixels.

    Source: PNG (W3C, third edition), section 11.3.1.1, tRNS.
    """
    if depth == 16:
        raise UnsupportedImage(
            "the PNG has 16 bits a channel and one transparent colour; send it with an alpha channel"
        )
    if depth < 8 and image.mode == "L":
        image.info["transparency"] = image.info["transparency"] * 255 // (2**depth - 1)
