"""What a DICOM image's header says of its pixel spacing."""

from typing import TYPE_CHECKING, Any

from app.pathology.geometry import of_square_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

_UM_PER_MM = 1000


def um_per_px(dataset: "Dataset") -> float | None:
    """Return the pixel spacing in um/px, the mean of the two directions; None where the header has none to use.

    A frame's stands in the data set itself, a tiled slide's in its shared functional groups; the other place is asked
    where that one is empty. A spacing that is no positive number, or of pixels that are not square within 2 %, is
    none: broken metadata does not cost the pixels.

    Source: DICOM PS3.3, sections 10.7.1 (Pixel Spacing) and C.7.6.16.2.1 (Pixel Measures).

    Raises:
        MemoryError: There is no memory to read it now.
    """
    places = (_shared, _own) if "TotalPixelMatrixColumns" in dataset else (_own, _shared)
    try:
        spacing = next(filter(None, (place(dataset) for place in places)))
        down, across = (_UM_PER_MM * float(value) for value in spacing)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  absent, or damaged in whatever way; the pixels are judged elsewhere
        return None
    return of_square_pixels(down, across)


def _own(dataset: "Dataset") -> Any:
    return dataset.get("PixelSpacing")


def _shared(dataset: "Dataset") -> Any:
    for group in dataset.get("SharedFunctionalGroupsSequence") or ():
        for measures in group.get("PixelMeasuresSequence") or ():
            return measures.get("PixelSpacing")
    return None
