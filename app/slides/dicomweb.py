"""A slide in a DICOMweb archive: its levels by WADO-RS, through wsidicom. Needs the extra `slides`."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from logging import getLogger
from types import TracebackType
from typing import Any, Self

import numpy as np
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from wsidicom import WsiDicom, WsiDicomWebClient
from wsidicom.errors import WsiDicomNoResolutionError, WsiDicomNotFoundError

from app.errors import ArchiveUnavailable, NotASlide, SlideUnreadable, TesseraError
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides.dicom_header import is_part
from app.slides.slide import Level

_RGB_SAMPLES = 3
_VOLUME = "VOLUME"
"""Image Type value 3 of a level (PS3.3, section C.8.12.4.1.1)."""
_LEVEL_UNREADABLE = (
    "a level of the slide lacks attributes of its class, or is encoded as is not read; it would be passed over"
)
_log = getLogger(__name__)
_ANY_SYNTAX = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}


class _AsStored(WsiDicomWebClient):  # type: ignore[misc]  # wsidicom has no types
    """wsidicom's client, which takes frames as the archive stores them and leaves other bulk data where it is.

    Wsidicom alone asks for JPEG first. Orthanc then compresses lossless frames with loss, and without its GDCM plug-in
    fails on JPEG 2000.
    """

    def __init__(self, client: DICOMwebClient, session: requests.Session) -> None:
        super().__init__(client)
        self._session = session
        self._listed: list[str] = []
        self._images: dict[str, str] = {}

    def lacks_any_of(self, opened: set[str]) -> bool:
        """Return whether wsidicom, which says nothing of what it does not take, left out a level."""
        return any(self._images.get(uid) == _VOLUME for uid in self._listed if uid not in opened)

    def get_wsi_instances(
        self, study_uid: str, series_uids: Iterable[str]
    ) -> Iterator[tuple[str, str, set[str] | None]]:
        for series_uid, instance_uid, syntaxes in super().get_wsi_instances(study_uid, series_uids):
            self._listed.append(str(instance_uid))
            yield series_uid, instance_uid, syntaxes or self._stored_syntax(study_uid, series_uid, instance_uid)

    def get_frames(self, *which: Any, **options: Any) -> Iterator[bytes]:
        # The client gives bytearrays, which pydicom takes for lists of numbers when it decodes uncompressed frames.
        return map(bytes, super().get_frames(*which, **options))

    def _stored_syntax(self, study_uid: str, series_uid: str, instance_uid: str) -> set[str] | None:
        """Return the transfer syntax of a frame asked for in any (PS3.18, section 8.7.3.5), None if not told."""
        instance = f"{self._client.base_url}/studies/{study_uid}/series/{series_uid}/instances/{instance_uid}"
        with self._session.get(f"{instance}/frames/1", headers=_ANY_SYNTAX, stream=True) as response:
            if not response.ok:  # an archive that does not know the question: wsidicom then tries what it can decode
                return None
            head = response.headers.get("Content-Type", "") + next(response.iter_content(1024), b"").decode("latin-1")
        found = re.search(r"transfer-syntax=\"?([0-9.]+)", head)
        return {found[1]} if found else None

    def get_instance(self, study_uid: str, series_uid: str, instance_uid: str) -> Dataset:
        header = self._client.retrieve_instance_metadata(study_uid, series_uid, instance_uid)
        dataset = Dataset.from_json(header, bulk_data_uri_handler=_leave)
        self._images[str(instance_uid)] = "".join(list(dataset.get("ImageType") or ())[2:3])
        return dataset


def _leave(_tag: str, _vr: str, _uri: str) -> None:
    """Give a bulk data element no value."""


class DicomwebSlide:
    """The pyramid of one series (PS3.3, section A.32.8), a `Slide`; frames are fetched as regions are read.

    Args:
        client: Of the archive. What it raises as an error of this project's passes through.
        session: What the client uses; it has a timeout of its own.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.

    Raises:
        ArchiveUnavailable: The archive fails at it.
        NotASlide: The series holds no level of a pyramid, as a label or an overview does not.
        SlideUnreadable: It holds what wsidicom does not read, or is not in colour.
    """

    def __init__(self, client: DICOMwebClient, session: requests.Session, study_uid: str, series_uid: str) -> None:
        with _foreign_errors():
            try:
                client_as_stored = _AsStored(client, session)
                self._slide = WsiDicom.open_web(client_as_stored, study_uid, series_uid)
            except WsiDicomNotFoundError as error:
                if client_as_stored.lacks_any_of(set()):
                    raise SlideUnreadable(_LEVEL_UNREADABLE) from error
                raise NotASlide("the series holds no pyramid of a slide") from error
            opened = {str(each.uids.instance) for pyramid in self._slide.pyramids for each in _datasets(pyramid)}
            if client_as_stored.lacks_any_of(opened):
                raise SlideUnreadable(_LEVEL_UNREADABLE)
            if len(self._slide.pyramids) > 1:
                _log.warning("a slide of several scanned areas: one of them is segmented")
            self._levels = list(self._slide.levels)
            if self._levels[0].default_instance.dataset.samples_per_pixel != _RGB_SAMPLES:
                raise SlideUnreadable("the slide is not in colour; the model takes brightfield images")
            finest = self._levels[0].size.width
            self.levels = tuple(_level(level, finest) for level in self._levels)

    def read(self, level: int, region: Region) -> RgbImage:
        """Return (H, W, 3) uint8 pixels of a region of a level; see `Slide.read`."""
        place, size = (region.x_px, region.y_px), (region.size.width_px, region.size.height_px)
        with _foreign_errors():
            pixels = self._slide.read_region(place, self._levels[level].level, size, as_array=True)
        return np.ascontiguousarray(pixels, np.uint8)

    def headers(self, level: int) -> tuple[Dataset, ...]:
        """Return the data set, without bulk data, of the instance that holds the pixels of a level.

        Raises:
            SlideUnreadable: There are several, and the archive's order would decide which is segmented.
        """
        datasets = [dataset.as_dataset() for dataset in self._levels[level].datasets]
        if any(map(is_part, datasets)):
            raise SlideUnreadable(
                "a level of the slide is a concatenation, which is not read; store it as one instance"
            )
        if len(datasets) > 1:
            raise SlideUnreadable(
                f"a level of the slide is there {len(datasets)} times (focal planes, optical paths or scans);"
                " store those to be segmented in series of their own"
            )
        return tuple(datasets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._slide.close()


def _datasets(pyramid: Any) -> Iterator[Any]:
    return (dataset for level in pyramid for dataset in level.datasets)


def _level(level: Any, finest_width_px: int) -> Level:
    spacing = level.mpp
    return Level(
        size=Size(level.size.width, level.size.height),
        um_per_px=(spacing.width + spacing.height) / 2,
        downsample=finest_width_px / level.size.width,
    )


@contextmanager
def _foreign_errors() -> Iterator[None]:
    """Name what wsidicom fails with, whose errors share no base and whose messages hold UIDs."""
    try:
        yield
    except TesseraError:
        raise
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        kind = ArchiveUnavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else SlideUnreadable
        raise kind(f"the archive does not give the slide's pixels (HTTP status {status})") from error
    except WsiDicomNoResolutionError as error:
        raise SlideUnreadable("the slide states no Pixel Spacing, without which its levels cannot be told") from error
    except Exception as error:
        raise SlideUnreadable(f"the archive's slide does not give its pixels ({type(error).__name__})") from error
