"""A DICOMweb archive (PS3.18): what it holds, by QIDO-RS, and storing in it, by STOW-RS. Needs the extra `slides`.

Reading a slide's pixels by WADO-RS is in `app/slides/dicomweb.py`, over the client of this one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset

from app.errors import ArchiveRefused, ArchiveUnavailable, SeriesNotFound
from app.interop.archive_http import ArchiveSession
from app.interop.dicom_file import to_bytes

_READ_OF_RESULTS = ("00080018", "00200013")
"""SOP Instance UID and Instance Number."""
_FIRST = 1
_JSON = ("application/dicom+json", "application/json")
_PROCESSING_FAILURE, _OUT_OF_RESOURCES = 0x0110, 0xA7
"""Failure reasons that may pass (PS3.18, I.2.2): the second is the first byte of several."""
_NOT_STORED = "the archive does not store the result (failure reason {:04X}H, PS3.18 I.2.2)"


class Archive:
    """A DICOMweb service. Methods block, several threads may call them, and all raise what `ArchiveSession` does.

    Args:
        url: The root of its services, as in https://archive.example/dicom-web.
        session: Reaches it.

    Attributes:
        client: For what is not here.
        session: What it uses.
    """

    def __init__(self, url: str, session: ArchiveSession) -> None:
        self.session = session
        self.client = DICOMwebClient(url.rstrip("/"), session=session, timeout=session.timeout)
        self.client.host = urlsplit(url).netloc  # it becomes the Host header, where a port belongs (RFC 9110, 7.2)
        self.client.set_http_retry_params(retry=False)  # the session knows better which requests to repeat

    def modality(self, study_uid: str, series_uid: str) -> str:
        """Return the Modality of a series.

        Raises:
            SeriesNotFound: The archive does not hold it.
            ArchiveRefused: The archive does not answer the query.
        """
        with naming_archive_errors("the search for the series"):
            found = self.client.search_for_series(study_uid, search_filters={"SeriesInstanceUID": series_uid})
            if not found:
                raise SeriesNotFound("the archive holds no such series in that study")
            return str(Dataset.from_json(found[0]).get("Modality", ""))

    def result_of(self, study_uid: str, results_uid: str) -> str | None:
        """Return the SOP Instance UID of the first instance in the series `results_uid`, or None.

        That is a result's finest level, whose Instance Number is 1; see `dicom_pyramid`. An archive that matches no
        Instance Number gives the others too.

        Raises:
            ArchiveRefused: The archive does not answer the query.
        """
        with naming_archive_errors("the search for an earlier result"):
            if not self.client.search_for_series(study_uid, search_filters={"SeriesInstanceUID": results_uid}):
                return None
            found = self.client.search_for_instances(
                study_uid, results_uid, search_filters={"InstanceNumber": str(_FIRST)}
            )
            results = [Dataset.from_json({tag: one[tag] for tag in _READ_OF_RESULTS if tag in one}) for one in found]
            return next((str(one.SOPInstanceUID) for one in results if one.get("InstanceNumber") == _FIRST), None)

    def store(self, instances: Sequence[Dataset]) -> None:
        """Store instances of one study, in this order and in one request, so that none is sent without the others.

        Raises:
            UnsupportedImage: They repeat what their source has malformed, and cannot be written.
            ArchiveUnavailable: The archive fails at one of them, or is full.
            ArchiveRefused: It does not take them all, or does not say so (PS3.18, section 10.5.3): whatever
                answers instead of it, as a page to log in does, may well answer with success. One that it does not
                take because it has it counts as stored.
        """
        for instance in instances:
            to_bytes(instance)  # a trial: what the client fails to write would pass for an answer of the archive's
        with naming_archive_errors("the result"):
            outcome = self._outcome(instances)
            failed = [
                (int(one.get("FailureReason", 0)), str(one.get("ReferencedSOPInstanceUID", "")))
                for one in outcome.get("FailedSOPSequence") or ()
            ]
            stored = {str(one.ReferencedSOPInstanceUID) for one in outcome.get("ReferencedSOPSequence", ())}
        if passing := [reason for reason, _ in failed if _may_pass(reason)]:
            raise ArchiveUnavailable(_NOT_STORED.format(passing[0]))
        sent = {str(instance.SOPInstanceUID) for instance in instances}
        for reason, uid in failed:
            # Archives say "already there" in reasons of their own. UIDs follow from content: what is there is the same.
            if uid not in sent or not self._holds(str(instances[0].StudyInstanceUID), uid):
                raise ArchiveRefused(_NOT_STORED.format(reason))
            stored.add(uid)
        if not stored.issuperset(sent):
            raise ArchiveRefused("the archive does not say that it has stored the result; is --url the right one?")

    def _holds(self, study_uid: str, instance_uid: str) -> bool:
        with naming_archive_errors("the search for what it has of the result"):
            found = self.client.search_for_instances(study_uid, search_filters={"SOPInstanceUID": instance_uid})
            return any(one["00080018"]["Value"] == [instance_uid] for one in found)

    def _outcome(self, instances: Sequence[Dataset]) -> Dataset:
        """Return what the archive says of instances to store, also where it stored none of them.

        It then answers with the status 409 and says why in the same words as of some (PS3.18, section 10.5.3).
        """
        try:
            return self.client.store_instances(instances, instances[0].StudyInstanceUID)
        except requests.HTTPError as error:
            answer = error.response
            if answer is None or answer.status_code != HTTPStatus.CONFLICT or not _is_json(answer):
                raise
            outcome = Dataset.from_json(answer.json())
            if not outcome.get("FailedSOPSequence"):
                raise
            return outcome


def _may_pass(reason: int) -> bool:
    return reason == _PROCESSING_FAILURE or reason >> 8 == _OUT_OF_RESOURCES


def _is_json(answer: requests.Response) -> bool:
    return answer.headers.get("Content-Type", "") in _JSON


@contextmanager
def naming_archive_errors(what: str) -> Iterator[None]:
    """Raise what goes wrong with an archive's answer as an error of this project, which names `what` was asked for."""
    try:
        yield
    except requests.HTTPError as error:
        status = 0 if error.response is None else error.response.status_code
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # its own fault, which may pass (RFC 9110, section 15.6)
            raise ArchiveUnavailable(f"the archive fails at {what} (HTTP status {status})") from error
        raise ArchiveRefused(f"the archive refuses {what}" + (f" (HTTP status {status})" if status else "")) from error
    except (
        requests.RequestException,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # of the JSON's reader
        raise ArchiveRefused(f"the archive's answer to {what} cannot be understood") from error
