"""Who made a DICOM object, from what, and when: the same for the same input, so that the same bytes come out.

A SOP Instance UID must never name two contents (PS3.5, section 9). UIDs are derived here from what a result depends
on, and so nothing else in an object may change from run to run: its time is the source's, or that of the model's
release where the model is younger, and not the clock's.
"""

import re
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, time
from typing import TYPE_CHECKING, Any

from app.errors import TesseraError, UnsupportedImage
from app.interop.provenance import Conditions
from app.pathology.manifest import HE, ModelManifest
from app.software import software_version

if TYPE_CHECKING:
    from pydicom import Dataset

MANUFACTURER = "tessera"

_NAMESPACE = uuid.UUID("c1c4ac4e-5c3f-5b0e-9d0b-7d2f5d3f8a61")
_UTF_8 = "ISO_IR 192"
_RESEARCH = ", research use only"
LONG_STRING = 64
"""Characters in a value of representation LO (PS3.5, section 6.2)."""

_TYPE_2 = ("PatientID", "PatientName", "AccessionNumber", "StudyID", "ReferringPhysicianName")
"""Attributes that a source must have but may leave empty; metadata from an archive may lack them altogether."""
_DATE = r"\d{8}"
_FORMS = {
    "PatientBirthDate": _DATE,
    "PatientSex": r"[MFO]",
    "StudyDate": _DATE,
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?",
}
"""More of them, with the form of their values; a value of another form is left empty, since no object may repeat it."""
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_IDENTIFIER = r"\d+(\.\d+)+"
"""The form of an identifier. In archives some have a part that begins with 0, against PS3.5, section 9.1."""
_MOMENTS = (
    ("ContentDate", "ContentTime"),
    ("AcquisitionDateTime",),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)
_SERIES_NUMBERS = {"SEG": 901, "SR": 902}
"""By modality, beyond what scanners count to."""
_UNKNOWN = datetime(1900, 1, 1)
_OFFSET = r"\+(0\d|1[0-4])[0-5]\d|-(?!0000)(0\d|1[0-2])[0-5]\d"
"""The form of a time zone: hours and minutes from UTC (PS3.3, section C.12.1.1.8)."""
_OF_A_PLACE = (
    "DeviceSerialNumber",
    "InstitutionAddress",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "StationName",
)
"""What an item of Contributing Equipment can say beside maker, model and versions (PS3.15, table E.1-1)."""


def derived_uid(*parts: str) -> str:
    """Return a UID that depends on `parts` alone: a name-based UUID (RFC 9562, version 5) under 2.25 (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(10).join(parts)).int}"


def series_uid(source: "Dataset", manifest: ModelManifest) -> str:
    """Return the Series Instance UID of a model's Segmentations for a source series; known beforehand."""
    return derived_uid("series", "SEG", str(source.SeriesInstanceUID), result_key(manifest))


def result_key(manifest: ModelManifest) -> str:
    """Return all that a result depends on beside its source: the model, its classes, and this version of tessera."""
    unsaid = {"stain"} if manifest.stain == HE else set()  # as results were named before manifests could say it
    return f"{MANUFACTURER} {software_version()} {manifest.model_dump_json(exclude=unsaid)}"


def parameters_of(manifest: ModelManifest, conditions: Conditions) -> dict[str, str]:
    """Return the parameters of the algorithm (PS3.3, section 10.16): which model file, and how it saw the image."""
    return {"model_sha256": manifest.sha256} | conditions.stated


def description(what: str, manifest: ModelManifest) -> str:
    """Return a Series Description, cut to what one may hold."""
    return f"{what} by {manifest.name} {manifest.version}"[: LONG_STRING - len(_RESEARCH)] + _RESEARCH


def moment(source: "Dataset") -> datetime:
    """Return when the content of `source` was made, as far as it says; 1900 where it does not."""
    for keywords in _MOMENTS:
        text = "".join(str(source.get(keyword) or "") for keyword in keywords)
        if found := re.match(r"\d{8}(\d\d){0,3}", text):  # minutes and seconds may be left out: PS3.5, section 6.2
            try:
                return datetime.strptime(found[0].ljust(14, "0"), "%Y%m%d%H%M%S")
            except ValueError:  # no such day: the next attribute may know better
                continue
    return _UNKNOWN


def made_at(source: "Dataset", manifest: ModelManifest) -> datetime:
    """Return the moment that a result bears: the source's, or the model's release where that is later."""
    own = moment(source)
    return own if manifest.released is None else max(own, datetime.combine(manifest.released, time()))


def complete(source: "Dataset") -> "Dataset":
    """Return `source` with what highdicom takes for granted: empty where it is missing or malformed.

    Raises:
        ValueError: An identifier, without which a result would be of nothing, is missing or malformed.
    """
    from pydicom import Dataset  # noqa: PLC0415

    copy = Dataset()
    copy.update(source)
    for keyword in _TYPE_2:
        if keyword not in copy:
            setattr(copy, keyword, None)
    for keyword, form in _FORMS.items():  # highdicom raises on such a value
        value = str(copy.get(keyword) or "")
        if not re.fullmatch(form, value) or (form == _DATE and not _is_day(value)):
            setattr(copy, keyword, None)
    for keyword in _IDENTIFIERS:
        if not re.fullmatch(_IDENTIFIER, str(copy[keyword].value)):
            raise ValueError(keyword)
    return copy


def _is_day(digits: str) -> bool:
    try:
        datetime.strptime(digits, "%Y%m%d")
    except ValueError:
        return False
    return True


def common_arguments(
    source: "Dataset", manifest: ModelManifest, what: str, modality: str, of_series: str
) -> dict[str, Any]:
    """Return highdicom's arguments that say who made an object: series, equipment, time, character set.

    The device's serial number is the digest of the model file: it is what tells one device from another.
    """
    when = made_at(source, manifest)
    return {
        "series_instance_uid": of_series,
        "series_number": _SERIES_NUMBERS[modality],
        "series_description": description(what, manifest),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": manifest.name,
        "software_versions": (software_version(), manifest.version),
        "device_serial_number": manifest.sha256,
        "content_qualification": "RESEARCH",
        "content_date": when.date(),
        "content_time": when.time(),
        "specific_character_set": _UTF_8,
    }


def make_reproducible(dataset: "Dataset", source: "Dataset", manifest: ModelManifest) -> None:
    """Replace what highdicom took from the clock or from chance: creation times, dimension organization.

    Also take away what it tells of where the source's scanner stands, add the time zone that the source states, and
    have all texts written in the object's own character set.
    """
    from pydicom.valuerep import DA, DT, TM  # noqa: PLC0415

    when = made_at(source, manifest)
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = DA(when.date()), TM(when.time())
    dataset.ContributingEquipmentSequence[-1].ContributionDateTime = DT(when)
    for equipment in dataset.ContributingEquipmentSequence:
        for keyword in _OF_A_PLACE:
            equipment.pop(keyword, None)
    offset = str(source.get("TimezoneOffsetFromUTC") or "")
    if re.fullmatch(_OFFSET, offset):
        dataset.TimezoneOffsetFromUTC = offset
    organization = derived_uid("dimensions", dataset.SOPInstanceUID)
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(keyword, ()):
            item.DimensionOrganizationUID = organization
    for element in dataset:
        if element.VR == "SQ" and element.keyword != "PerFrameFunctionalGroupsSequence":  # its own, and may be long
            for item in element.value:
                _parse(item)


def _parse(item: "Dataset") -> None:
    """Have pydicom parse an item of a source's sequence, and so write its texts in the object's character set.

    What it has not parsed it would write as the bytes that the source has. What it cannot parse stays so.
    """
    from pydicom.errors import BytesLengthException  # noqa: PLC0415

    for tag in list(item.keys()):
        with suppress(BytesLengthException, NotImplementedError):
            element = item[tag]
            for nested in element.value if element.VR == "SQ" else ():
                _parse(nested)


@contextmanager
def repeating_the_source() -> Iterator[None]:
    """Say in one line that a source cannot be repeated; what exactly is wrong with it may name a patient."""
    from pydicom.errors import BytesLengthException  # noqa: PLC0415

    try:
        yield
    except TesseraError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        BytesLengthException,
        LookupError,
        NotImplementedError,
        OSError,  # pydicom's, of a number that its representation does not hold
        TypeError,
        ValueError,
        struct.error,
    ):
        raise UnsupportedImage(
            "the DICOM image lacks, or has malformed, what a result repeats of its source: identifiers, patient and"
            " study, and for a slide its frame of reference, orientation, origin and pixel spacing"
        ) from None
