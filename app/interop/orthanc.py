"""What only Orthanc has: its log of changes. https://orthanc.uclouvain.be/book/users/rest.html#tracking-changes."""

from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, Field

from app.errors import ArchiveRefused
from app.interop.archive_http import ArchiveSession
from app.interop.dicomweb import naming_archive_errors

NEW_SERIES = "NewSeries"
"""The first instance of a series has arrived."""
STABLE_SERIES = "StableSeries"
"""No instance of a series has arrived for a while, Orthanc's StableAge; where Orthanc ended in it, this is missing."""


class Change(BaseModel):
    """Something that happened in the archive.

    Attributes:
        sequence: Its number, which grows.
        kind: What happened, as in `NEW_SERIES` and `STABLE_SERIES`.
        resource: Orthanc's identifier of what it happened to.
    """

    sequence: int = Field(alias="Seq", ge=0)
    kind: str = Field(alias="ChangeType")
    resource: str = Field(alias="ID")


class Changes(BaseModel):
    """A page of the log.

    Attributes:
        changes: In order; may be empty.
        last: The number of the last change of the page, or of the log where the page is empty.
        done: Whether the log ends here for now.
    """

    changes: tuple[Change, ...] = Field(alias="Changes")
    last: int = Field(alias="Last", ge=0)
    done: bool = Field(alias="Done")


class SeriesOfStudy(BaseModel):
    """A series, as DICOM names it.

    Attributes:
        modality: As in "SM".
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.
        is_stable: Whether no instance is expected any more: none has arrived for a while, or since Orthanc started.
    """

    modality: str
    study_uid: str
    series_uid: str
    is_stable: bool


class _Tags(BaseModel):
    modality: str = Field(default="", alias="Modality")
    series_uid: str = Field(default="", alias="SeriesInstanceUID")
    study_uid: str = Field(default="", alias="StudyInstanceUID")


class _Resource(BaseModel):
    tags: _Tags = Field(alias="MainDicomTags")
    is_stable: bool = Field(alias="IsStable")


_T = TypeVar("_T", bound=BaseModel)


class Orthanc:
    """Orthanc's own REST interface. Methods block and raise what `ArchiveSession` does.

    Args:
        url: Its root, above `dicom-web`.
        session: Reaches it.
    """

    def __init__(self, url: str, session: ArchiveSession) -> None:
        self._url = url.rstrip("/")
        self._session = session

    def changes(self, since: int, limit: int) -> Changes:
        """Return up to `limit` changes after number `since`.

        Raises:
            ArchiveRefused: There is no such log, as in an archive that is not Orthanc.
        """
        return self._changes(f"since={since}&limit={limit}")

    def last_change(self) -> int:
        """Return the number of the last change so far; 0 in an archive where nothing has happened.

        Raises:
            ArchiveRefused: There is no such log.
        """
        return self._changes("last").last

    def series(self, resource: str) -> SeriesOfStudy | None:
        """Return a series, or None if it is not there any more.

        Raises:
            ArchiveRefused: The answer is none.
        """
        place, what = f"/series/{quote(resource, safe='')}", "the question for a series"
        series, study = self._get(place, what, _Resource), self._get(f"{place}/study", what, _Resource)
        if series is None or study is None:
            return None
        return SeriesOfStudy(
            modality=series.tags.modality,
            study_uid=study.tags.study_uid,
            series_uid=series.tags.series_uid,
            is_stable=series.is_stable,
        )

    def _changes(self, query: str) -> Changes:
        found = self._get(f"/changes?{query}", "the question for changes", Changes)
        if found is None:
            raise ArchiveRefused("the archive has no log of changes; --url must be the root of an Orthanc")
        return found

    def _get(self, place: str, what: str, kind: type[_T]) -> _T | None:
        with naming_archive_errors(what):
            response = self._session.get(self._url + place)
            if response.status_code == HTTPStatus.NOT_FOUND:
                return None
            response.raise_for_status()
            return kind.model_validate_json(response.content)
