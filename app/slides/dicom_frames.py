"""The frames of one DICOM instance: what an encoded frame may cost, and its stored values as RGB.

Decoding itself is pydicom's, of JPEGs in colour Pillow's. Source: DICOM PS3.3, section C.7.6.3 (Image Pixel), and
PS3.5, annexes A.4 and G (RLE).
"""

import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import UnreadableImage, UnsupportedImage
from app.imaging.jpeg import check_scans, states_ycc
from app.imaging.jpeg2000 import check_codestream, states_rgb
from app.imaging.structure import glance
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size
from app.slides.dicom_matrix import frame_count

if TYPE_CHECKING:
    from pydicom import Dataset

_GREY = ("MONOCHROME1", "MONOCHROME2")
_YBR = ("YBR_FULL", "YBR_FULL_422")
_COLOUR = ("RGB", *_YBR, "YBR_ICT", "YBR_RCT")
_PALETTE = "PALETTE COLOR"
_RLE_HEADER = struct.Struct("<16L")
_ITEM_HEADER = struct.Struct("<4sL")
_EXTENDED_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_SLACK_BYTES = 2**16
"""What an encoded frame may hold beside its pixels: a colour profile, comments."""
_CODE = 2
"""Bytes that one of RLE takes at most to make a pixel's."""


def frames(dataset: "Dataset") -> Iterator[NDArray[Any]]:
    """Decode the frames one at a time, in their stored order, colours as RGB.

    Raises:
        UnreadableImage: An encoded frame would decode to more than the header states.
        Exception: Whatever pydicom raises on damaged pixels.
    """
    from pydicom.pixels.utils import iter_pixels  # noqa: PLC0415
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGBaseline8Bit  # noqa: PLC0415

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_encoded(dataset)
    if syntax == JPEGBaseline8Bit and dataset.PhotometricInterpretation in _COLOUR and dataset.BitsAllocated == 8:
        is_rgb = dataset.PhotometricInterpretation == "RGB"
        return (_jpeg_in_colour(encoded, is_rgb) for encoded in _encoded_frames(dataset))
    is_converted = (
        syntax in JPEG2000TransferSyntaxes
        and dataset.PhotometricInterpretation in _YBR
        and any(states_rgb(first) for first in islice(_encoded_frames(dataset), 1))
    )
    return iter_pixels(dataset, raw=is_converted, allow_excess_frames=False)


def _jpeg_in_colour(encoded: bytes, is_rgb: bool) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 RGB of a JPEG: as it says of itself, as the header does where it says nothing.

    pydicom would convert once more what Pillow has converted, which goes by Adobe's marker.
    """
    with Image.open(BytesIO(encoded), formats=("JPEG",)) as image:
        ids = bytes(component[0] for component in getattr(image, "layer", ()))
        if is_rgb and not states_ycc(encoded) and ids != b"RGB" and "adobe_transform" not in image.info:
            image.draft("YCbCr", image.size)  # as stored: libjpeg takes three channels for YCbCr
        pixels = np.asarray(image)
    if pixels.shape[2:] != (3,):
        raise UnreadableImage("a frame of the DICOM image has more or fewer channels than its header states")
    return pixels


def to_rgb(dataset: "Dataset") -> Callable[[NDArray[Any]], RgbImage]:
    """Return what turns a frame of `dataset`, (H, W) or (H, W, 3), into (H, W, 3) uint8.

    Grey is repeated, MONOCHROME1 counts from white, more than 8 bits are scaled; windows and colour profiles are not
    applied, as with any other upload.

    Raises:
        UnsupportedImage: The pixels are of another kind.
    """
    kind = str(dataset.PhotometricInterpretation)
    stored = int(dataset.BitsStored)
    if int(dataset.BitsAllocated) not in (8, 16) or not 8 <= stored <= 16 or int(dataset.PixelRepresentation):
        raise UnsupportedImage("the DICOM image's pixels are not unsigned numbers of 8 to 16 bits; send such an image")
    if kind not in (*_GREY, *_COLOUR, _PALETTE) or int(dataset.SamplesPerPixel) != (3 if kind in _COLOUR else 1):
        raise UnsupportedImage("the DICOM image is in colours that are not read; send RGB, YBR, greyscale or a palette")
    table = _palette(dataset) if kind == _PALETTE else _eight_bits(stored)
    if kind == "MONOCHROME1":
        table = 255 - table

    def convert(frame: NDArray[Any]) -> RgbImage:
        pixels: RgbImage = table[frame]
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., np.newaxis], 3, axis=2)
        return pixels

    return convert


def _eight_bits(bits: int) -> NDArray[np.uint8]:
    """Return (65536,) uint8: what each value of `bits` bits is in 8."""
    top = 2**bits - 1
    values = np.minimum(np.arange(2**16, dtype=np.uint32), top)
    table: NDArray[np.uint8] = ((values * 255 + top // 2) // top).astype(np.uint8)
    return table


def _palette(dataset: "Dataset") -> NDArray[np.uint8]:
    """Return (65536, 3) uint8: the colour of each stored value; of one beyond the palette, its first or last.

    Entries of 8 bits may stand in words of 16, and an odd number of bytes is padded, neither of which pydicom's own
    function knows. Source: DICOM PS3.3, sections C.7.6.3.1.5 and C.7.6.3.1.6, and PS3.5, section 7.1.1.
    """
    # A segmented table of a few bytes expands to as many entries as it likes (PS3.3, section C.7.9.2).
    if "RedPaletteColorLookupTableData" not in dataset:
        raise UnsupportedImage("the DICOM image's palette is missing or segmented; send RGB")
    entries, first, bits = (int(number) for number in dataset.RedPaletteColorLookupTableDescriptor)
    entries = entries or 2**16
    tables = [dataset[f"{colour}PaletteColorLookupTableData"].value for colour in ("Red", "Green", "Blue")]
    in_words = len(tables[0]) >= 2 * entries
    palette = np.stack([np.frombuffer(table, "<u2" if in_words else "u1", entries) for table in tables], axis=1)
    has_eight_bits = not in_words or (bits == 8 and palette.max() < 2**8)
    places = np.clip(np.arange(2**16) - first, 0, entries - 1)
    table: NDArray[np.uint8] = _eight_bits(8 if has_eight_bits else 16)[palette[places]]
    return table


def _check_encoded(dataset: "Dataset") -> None:
    """Refuse frames that decode to another size than the header's, which decoders would allocate all the same.

    Tables of offsets may have frames overlap: each may be as long as the file, but not all together.
    """
    from pydicom.uid import RLELossless  # noqa: PLC0415

    _check_offsets(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    size = Size(int(dataset.Columns), int(dataset.Rows))
    planes = int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) // 8
    most_bytes = 2 * size.pixels * planes + _SLACK_BYTES
    left_bytes = len(dataset.PixelData)
    for encoded in _encoded_frames(dataset):
        left_bytes -= len(encoded)
        if left_bytes < 0:
            raise UnreadableImage("the DICOM image's frames overlap")
        if len(encoded) > most_bytes:
            matches = False
        elif syntax == RLELossless:
            matches = _is_rle_of(encoded, size.pixels, planes)
        else:
            glance(encoded)
            check_scans(encoded)
            with Image.open(BytesIO(encoded), formats=("JPEG", "JPEG2000")) as image:
                matches = image.size == (size.width_px, size.height_px)
                if matches and image.format == "JPEG2000":
                    check_codestream(encoded, size)
        if not matches:
            raise UnreadableImage("a frame of the DICOM image is not of the size that its header states")


def _encoded_frames(dataset: "Dataset") -> Iterator[bytes]:
    from pydicom.encaps import generate_frames  # noqa: PLC0415
    from pydicom.pixels.utils import as_pixel_options  # noqa: PLC0415

    options = as_pixel_options(dataset)
    return generate_frames(
        dataset.PixelData,
        number_of_frames=options["number_of_frames"],
        extended_offsets=options.get("extended_offsets"),
    )


def _check_offsets(dataset: "Dataset") -> None:
    """Refuse tables that do not have one entry a frame: each entry of a few bytes becomes an object."""
    count = frame_count(dataset)
    _, basic_bytes = _ITEM_HEADER.unpack_from(dataset.PixelData)
    extended = (len(dataset[name].value) for name in _EXTENDED_OFFSETS if name in dataset)
    if basic_bytes not in {0, 4 * count} or any(length != 8 * count for length in extended):
        raise UnreadableImage("the DICOM image's table of offsets does not have one entry for each frame")


def _is_rle_of(encoded: bytes, plane_bytes: int, planes: int) -> bool:
    """Return whether an RLE frame has so many segments, one behind the other, and each decodes to no more than a plane.

    A code of two bytes makes one or more; those that make nothing may not be as many. Source: PS3.5, annexes G.3 to
    G.5.
    """
    segments, *offsets = _RLE_HEADER.unpack_from(encoded)
    borders = [*offsets[:segments], len(encoded)]
    return (
        segments == planes
        and borders[0] >= _RLE_HEADER.size
        and all(0 <= end - begin <= _CODE * plane_bytes + _RLE_HEADER.size for begin, end in pairwise(borders))
        and all(_rle_decoded_bytes(encoded, *ends) <= plane_bytes + _RLE_HEADER.size for ends in pairwise(borders))
    )


def _rle_decoded_bytes(encoded: bytes, begin: int, end: int) -> int:
    """Return how many bytes a segment decodes to: up to 64 times its own."""
    position, decoded = begin, 0
    while position < end:
        control = encoded[position]
        if control < 128:
            decoded += control + 1
            position += control + 2
        else:
            decoded += (257 - control) % 129  # 128 does nothing
            position += 1 if control == 128 else 2
    return decoded
