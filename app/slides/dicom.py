"""One uploaded DICOM instance to (H, W, 3) uint8 RGB, with guards on form, size and content.

A tiled whole-slide instance becomes its total pixel matrix, any other image its frame. What the header states is
checked before a pixel is decoded, and the header itself is bounded. No attribute's value enters a message or a log.
Source: DICOM PS3.3, sections A.32.8 (VL Whole Slide Microscopy) and C.8.12.4 (its image module), and PS3.10, section 7.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import ImageTooLarge, OutOfMemory, TesseraError, UnreadableImage, UnsupportedImage
from app.imaging.decode import GLASS, NO_MEMORY, TILE_FLOOR_PX
from app.imaging.dicom_packages import require_dicom
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Size
from app.slides.dicom_frames import frames, to_rgb
from app.slides.dicom_header import read_header, read_pixels
from app.slides.dicom_matrix import frame_count, is_part, is_tiled, too_many_frames, um_per_px

if TYPE_CHECKING:
    from pydicom import Dataset

MEDIA_TYPE = "application/dicom"

_MOST_FRAMES = 2**14
"""Each costs some 0.2 ms, however small."""


def is_dicom(data: bytes) -> bool:
    """Whether `data` begins as a DICOM file does (PS3.10, section 7.1)."""
    return data[128:132] == b"DICM"


def header(data: bytes) -> "Dataset":
    """Return the attributes of an image that precede its pixels.

    Raises:
        UnsupportedImage, UnreadableImage, ExtraMissing: As `opened` does.
    """
    with _guarded():
        return _header(data)[0]


class OpenedInstance:
    """An instance whose header has been read and found acceptable, and no pixel yet.

    Attributes:
        size: The image's: of a slide's level, that of its total pixel matrix.
    """

    def __init__(self, data: bytes, max_side_px: int) -> None:
        self._data = data
        self._dataset, self._position = _header(data)
        self.size = _checked_size(self._dataset, max_side_px)

    def um_per_px(self) -> float | None:
        """Return the pixel spacing that the header states; None where it states none to use."""
        with _guarded():
            return um_per_px(self._dataset)

    def pixels(self) -> RgbImage:
        """Decode it: (H, W, 3) uint8, the total pixel matrix of a slide's level, or the single frame.

        Raises:
            UnsupportedImage, UnreadableImage, OutOfMemory: As `opened` does.
        """
        with _guarded():
            size, dataset = self.size, self._dataset
            read_pixels(self._data, dataset, self._position)
            convert = to_rgb(dataset)
            image = np.full((size.height_px, size.width_px, 3), GLASS, np.uint8)
            for (x, y), frame in zip(_places(dataset, size), frames(dataset), strict=True):
                tile = convert(frame)[: size.height_px - y, : size.width_px - x]
                image[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
            return image


def opened(data: bytes, max_side_px: int) -> OpenedInstance:
    """Return one instance between its header and its pixels.

    Args:
        data: A DICOM file of a VL Whole Slide Microscopy, VL Microscopic, VL Slide-Coordinates Microscopic, VL
            Photographic or Secondary Capture image; uncompressed, RLE, JPEG baseline or JPEG 2000.
        max_side_px: The longest side allowed.

    Raises:
        UnsupportedImage: Another kind of object or encoding, several frames, focal planes or optical paths.
        ImageTooLarge: A side is longer than `max_side_px`.
        UnreadableImage: The content is truncated or damaged.
        OutOfMemory: There is no memory to decode it now.
        ExtraMissing: The packages that read DICOM are not installed.
    """
    with _guarded():
        return OpenedInstance(data, max_side_px)


@contextmanager
def _guarded() -> Iterator[None]:
    require_dicom()
    try:
        yield
    except TesseraError:
        raise
    except MemoryError:
        raise OutOfMemory(NO_MEMORY) from None
    except Exception:  # pydicom raises whatever damaged bytes lead it to  # noqa: BLE001
        # Without its cause: the messages of pydicom's errors quote values.
        raise UnreadableImage("the DICOM file is truncated or damaged and does not decode") from None


def _header(data: bytes) -> tuple["Dataset", int]:
    """Return the attributes of an image of a kind that is segmented, and the byte at which its pixels begin."""
    from pydicom import uid  # noqa: PLC0415

    if not is_dicom(data):
        raise UnsupportedImage("not a DICOM file: it has no DICM at byte 128")
    dataset, position = read_header(data)
    if dataset.SOPClassUID not in (
        uid.VLWholeSlideMicroscopyImageStorage,
        uid.VLMicroscopicImageStorage,
        uid.VLSlideCoordinatesMicroscopicImageStorage,
        uid.VLPhotographicImageStorage,
        uid.SecondaryCaptureImageStorage,
    ):
        raise UnsupportedImage(
            "the DICOM object is not an image that is read; send a VL Whole Slide Microscopy, another VL microscopic,"
            " a VL Photographic or a single-frame Secondary Capture image"
        )
    if is_part(dataset):
        raise UnsupportedImage("the DICOM file is one part of a concatenation; send the whole instance")
    if "LABEL" in list(dataset.get("ImageType") or ())[2:3]:  # its writing would be taken for tissue, and may be a name
        raise UnsupportedImage("the DICOM image is of the slide's label; send an instance that shows the tissue")
    if dataset.get("SpecimenLabelInImage") == "YES":  # PS3.3, C.8.12.4: such as an overview, glass and label
        raise UnsupportedImage(
            "the DICOM image shows the slide's label (Specimen Label in Image is YES), which may name a patient; send"
            " an instance that shows the tissue alone"
        )
    return dataset, position


def _checked_size(dataset: "Dataset", max_side_px: int) -> Size:
    """Return the size of the image, everything that it could cost within bounds."""
    frame = Size(int(dataset.Columns), int(dataset.Rows))
    tiled = is_tiled(dataset)
    size = Size(int(dataset.TotalPixelMatrixColumns), int(dataset.TotalPixelMatrixRows)) if tiled else frame
    if size.longest_px > max_side_px:
        raise ImageTooLarge(
            f"the image is {size}; each side may have at most {max_side_px} px;"
            " a whole slide is segmented by `tessera dicomweb segment`"
        )
    if frame.longest_px > max(max_side_px, TILE_FLOOR_PX):
        raise ImageTooLarge(f"the image's tiles are {frame}; each side may have at most {max_side_px} px")
    count = frame_count(dataset)
    if not tiled and count != 1:
        raise UnsupportedImage(f"the DICOM image has {count} frames; send one frame, or a tiled whole slide image")
    if tiled and (found := too_many_frames(dataset)):
        raise UnsupportedImage(
            f"the DICOM image has {found}; send an instance of one focal plane and one optical path, without overlaps"
        )
    if count > _MOST_FRAMES:
        raise ImageTooLarge(f"the DICOM image has {count} frames; at most {_MOST_FRAMES} are read")
    return size


def _places(dataset: "Dataset", size: Size) -> list[tuple[int, int]]:
    """Return (x, y) of each frame's top left corner in the image, in px from 0, in the order of the frames."""
    if not is_tiled(dataset):
        return [(0, 0)]
    count = frame_count(dataset)
    if dataset.get("DimensionOrganizationType") == "TILED_FULL":
        # Frames run along the rows, then down (PS3.3, section C.7.6.17.3); no more are counted than there may be.
        rows, columns = range(0, size.height_px, int(dataset.Rows)), range(0, size.width_px, int(dataset.Columns))
        places = [(x, y) for y, x in islice(product(rows, columns), count + 1)]
    elif "PerFrameFunctionalGroupsSequence" in dataset:
        places = [_position(item) for item in dataset.PerFrameFunctionalGroupsSequence]
        if len(set(places)) < len(places):
            raise UnsupportedImage("two frames of the slide lie in one place; send an instance of one focal plane")
    else:
        raise UnsupportedImage(
            "the DICOM image does not say where its tiles lie: it has neither the Dimension Organization Type"
            " TILED_FULL nor Per-frame Functional Groups"
        )
    if len(places) != count:
        raise UnreadableImage(
            "the DICOM image has more or fewer frames than its header places; send the whole instance"
        )
    if any(x not in range(size.width_px) or y not in range(size.height_px) for x, y in places):
        raise UnreadableImage("a tile of the DICOM image lies outside of its total pixel matrix")
    return places


def _position(item: Any) -> tuple[int, int]:
    """Return a frame's place from its item of the functional groups, where it counts from 1 (PS3.3, C.8.12.6.1)."""
    position = item.PlanePositionSlideSequence[0]
    return (
        int(position.ColumnPositionInTotalImagePixelMatrix) - 1,
        int(position.RowPositionInTotalImagePixelMatrix) - 1,
    )
