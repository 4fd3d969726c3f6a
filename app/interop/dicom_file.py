"""DICOM objects as files (PS3.10, section 7)."""

from io import BytesIO
from typing import TYPE_CHECKING

from app.imaging.dicom_packages import require_dicom
from app.interop.dicom_identity import repeating_the_source

if TYPE_CHECKING:
    from pydicom import Dataset


def to_bytes(dataset: "Dataset") -> bytes:
    """Return a complete DICOM file in Explicit VR Little Endian, the same bytes for the same object.

    Args:
        dataset: An object with its file meta information, as `segmentation_object` and `measurement_report` return.

    Raises:
        UnsupportedImage: It repeats something malformed of its source, which is noticed only now.
        ExtraMissing: The packages that write DICOM are not installed.
    """
    require_dicom()
    file = BytesIO()
    with repeating_the_source():
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
