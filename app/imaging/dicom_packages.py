"""The packages of the extra `dicom`: whether they are installed, and that they keep to themselves what they read."""

import warnings

from app.libraries import require, silence_libraries

_PACKAGES = ("pydicom", "highdicom")


def require_dicom() -> None:
    """Make sure that pydicom and highdicom can be imported, and that neither tells an attribute's value.

    Both log and warn with the values that they find odd, and a value can name a patient. They import slowly and are
    optional, so whoever needs them calls this first and imports them in its functions. The filter is set on each call:
    whoever replaces the process's filters, as tests do, would drop it.

    Raises:
        ExtraMissing: One of them is not installed.
    """
    require("DICOM", _PACKAGES, "dicom")
    from pydicom import config  # noqa: PLC0415  its import sets the level of its logger

    config.settings.reading_validation_mode = config.IGNORE
    silence_libraries()
    for package in _PACKAGES:
        warnings.filterwarnings("ignore", module=package)
