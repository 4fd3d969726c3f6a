"""The pixels of a DICOM instance in one step, for tests that do not care that the service looks at its header first."""

from app.pathology.arrays import RgbImage
from app.slides import dicom


def decode_dicom(data: bytes, max_side_px: int) -> RgbImage:
    return dicom.opened(data, max_side_px).pixels()
