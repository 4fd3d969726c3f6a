"""Wsidicom's client of a DICOMweb archive: it takes frames as they are stored, and knows which levels were left out."""

import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGBaseline8Bit
from wsidicom import WsiDicomWebClient
from wsidicom.instance import WsiDataset

from app.errors import SlideUnreadable
from app.imaging.jpeg import states_ycc
from app.imaging.jpeg2000 import states_rgb

_VOLUME = "VOLUME"
"""Image Type value 3 of a level (PS3.3, section C.8.12.4.1.1)."""
_YBR = ("YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422")
"""Colours that no decoder converts but JPEG's."""
_PASSED_OVER = "it would be passed over"
_ANY_SYNTAX = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}


class AsStored(WsiDicomWebClient):  # type: ignore[misc]  # wsidicom has no types
    """wsidicom's client, which takes frames as the archive stores them and leaves other bulk data where it is.

    Wsidicom alone asks for JPEG first. Orthanc then compresses lossless frames with loss, and without its GDCM plug-in
    fails on JPEG 2000.
    """

    def __init__(self, client: DICOMwebClient, session: requests.Session) -> None:
        super().__init__(client)
        self._session = session
        self._listed: list[str] = []
        self._levels: dict[str, bool] = {}
        self._syntaxes: dict[str, set[str] | None] = {}

    def check_all_of(self, opened: set[str]) -> None:
        """Make sure that wsidicom, which says nothing of what it does not take, left out no level.

        Raises:
            SlideUnreadable: It did; the message says why.
        """
        left_out = [self._levels[uid] for uid in self._listed if uid in self._levels and uid not in opened]
        if not left_out:
            return
        if all(left_out):
            raise SlideUnreadable(
                f"a level of the slide is encoded as is not read, or has the Pixel Spacing of another; {_PASSED_OVER}"
            )
        raise SlideUnreadable(
            "a level of the slide lacks attributes of its class, or its pixels are of a kind that is not read (8 bits a"
            f" sample, unsigned, by pixel, RGB or YBR are); {_PASSED_OVER}"
        )

    def check_colours(self, level: Dataset, syntax: UID) -> None:
        """Make sure that wsidicom, which converts no colours itself, gives RGB of a level's frames.

        Those of JPEG its decoder converts; those of JPEG 2000 too where they were transformed from RGB, which the first
        frame says of all.

        Args:
            level: Header of an instance, as `get_instance` gave it.
            syntax: In which wsidicom takes its frames.

        Raises:
            SlideUnreadable: It would paint YCbCr as if it were RGB.
        """
        label = level.get("PhotometricInterpretation")
        if label not in _YBR or syntax == JPEGBaseline8Bit:
            return
        if syntax in JPEG2000TransferSyntaxes:
            which = level.StudyInstanceUID, level.SeriesInstanceUID, level.SOPInstanceUID
            if states_rgb(next(self.get_frames(*which, [1], syntax), b"")):
                return
        raise SlideUnreadable(
            f"a level of the slide is in {label}, which is converted to RGB of JPEG frames alone; store it as RGB"
        )

    def get_wsi_instances(
        self, study_uid: str, series_uids: Iterable[str]
    ) -> Iterator[tuple[str, str, set[str] | None]]:
        """Give the series, the UID and the stored transfer syntaxes of each instance of a slide; None if not told."""
        for series_uid, instance_uid, syntaxes in super().get_wsi_instances(study_uid, series_uids):
            known = syntaxes or self._stored_syntax(study_uid, series_uid, instance_uid)
            self._listed.append(str(instance_uid))
            self._syntaxes[str(instance_uid)] = known
            yield series_uid, instance_uid, known

    def get_frames(self, *which: Any, **options: Any) -> Iterator[bytes]:
        """Give frames as bytes: pydicom takes the bytearrays that come for lists of numbers when it decodes them."""
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
        """Return an instance's attributes without bulk data, its colours named as its frames have them."""
        header = self._client.retrieve_instance_metadata(study_uid, series_uid, instance_uid)
        dataset = Dataset.from_json(header, bulk_data_uri_handler=_leave)
        if "".join(list(dataset.get("ImageType") or ())[2:3]) == _VOLUME:
            self._levels[str(instance_uid)] = WsiDataset.is_supported(dataset)
            if dataset.get("PhotometricInterpretation") == "RGB" and self._is_ycc(study_uid, series_uid, instance_uid):
                dataset.PhotometricInterpretation = "YBR_FULL_422"
        return dataset

    def _is_ycc(self, study_uid: str, series_uid: str, instance_uid: str) -> bool:
        """Return whether the frames of an instance that is labelled RGB say of themselves that they are not.

        Wsidicom believes the label, and would paint YCbCr as if it were RGB. The first frame is asked, which is there
        for certain, and whole: a colour profile of any length may precede what it says.
        """
        known = self._syntaxes.get(str(instance_uid))
        if known is not None and JPEGBaseline8Bit not in known:
            return False
        try:
            return states_ycc(next(self.get_frames(study_uid, series_uid, instance_uid, [1], JPEGBaseline8Bit), b""))
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            return False  # it has none in JPEG


def _leave(_tag: str, _vr: str, _uri: str) -> None:
    """Give a bulk data element no value."""
