"""A slide in a DICOMweb archive: its levels by WADO-RS, through wsidicom. Needs the extra `slides`."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import numpy as np
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from pydicom.uid import JPEGBaseline8Bit
from wsidicom import WsiDicom, WsiDicomWebClient
from wsidicom.config import Settings
from wsidicom.errors import WsiDicomNoResolutionError, WsiDicomNotFoundError
from wsidicom.instance import WsiDataset

from app.errors import ArchiveUnavailable, NotASlide, SlideUnreadable, TesseraError
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size, of_square_pixels
from app.slides.dicom_frames import states_ycc
from app.slides.dicom_header import check_single, is_part
from app.slides.dicom_place import begins_with, not_shown_finer
from app.slides.slide import Level

_RGB_SAMPLES = 3
_VOLUME = "VOLUME"
"""Image Type value 3 of a level (PS3.3, section C.8.12.4.1.1)."""
_PASSED_OVER = "it would be passed over"
_SCALE_TOLERANCE = 0.05
"""Of the base-2 logarithm of a level's spacing by the finest's: at 20 px, half a px more or less makes 0.036."""
_SETTINGS = Settings(
    strict_tile_size_check=False,  # PS3.3, section A.32.8, asks for no tile size that levels share
    level_scale_tolerance=_SCALE_TOLERANCE,
    # In mm. Scanners shift a coarse level's origin by a part of its pixels; one that is shifted by more is read, and
    # gets no result (`ScannedArea.begins_with`). Scanned areas are further apart.
    pyramids_origin_threshold=0.1,
)
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

    def get_wsi_instances(
        self, study_uid: str, series_uids: Iterable[str]
    ) -> Iterator[tuple[str, str, set[str] | None]]:
        for series_uid, instance_uid, syntaxes in super().get_wsi_instances(study_uid, series_uids):
            known = syntaxes or self._stored_syntax(study_uid, series_uid, instance_uid)
            self._listed.append(str(instance_uid))
            self._syntaxes[str(instance_uid)] = known
            yield series_uid, instance_uid, known

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


class ScannedArea:
    """One pyramid of a series, a `Slide`; frames are fetched as regions are read.

    Args:
        slide: As wsidicom opened it.
        number: The pyramid's, in it.

    Raises:
        SlideUnreadable: It is not in colour.
    """

    def __init__(self, slide: WsiDicom, number: int) -> None:
        self._slide = slide
        self._number = number
        self._levels = list(slide.pyramids[number].levels)
        if self._levels[0].default_instance.dataset.samples_per_pixel != _RGB_SAMPLES:
            raise SlideUnreadable("the slide is not in colour; the model takes brightfield images")
        finest = self._levels[0].size.width
        self.levels = tuple(_level(level, finest) for level in self._levels)

    def read(self, level: int, region: Region) -> RgbImage:
        """Return (H, W, 3) uint8 pixels of a region of a level; see `Slide.read`."""
        place, size = (region.x_px, region.y_px), (region.size.width_px, region.size.height_px)
        with _foreign_errors():
            index = self._levels[level].level
            pixels = self._slide.read_region(place, index, size, pyramid=self._number, as_array=True)
        return np.ascontiguousarray(pixels, np.uint8)

    def begins_with(self, level: int, other: int) -> bool:
        """Return whether a level begins where another does, within a pixel of its own."""
        return begins_with(self.header(level), self.header(other))

    def header(self, level: int) -> Dataset:
        """Return the data set, without bulk data, of an instance of a level."""
        dataset: Dataset = self._levels[level].datasets[0].as_dataset()
        return dataset

    def headers(self, level: int) -> tuple[Dataset, ...]:
        """Return the data set, without bulk data, of the instance that holds the pixels of a level.

        Raises:
            SlideUnreadable: There are several, or it has several focal planes or optical paths: the archive's order, or
                that of frames, would decide which is segmented.
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
        check_single(datasets[0])
        return tuple(datasets)


class DicomwebSlide:
    """The pyramids of one series (PS3.3, section A.32.8).

    Args:
        client: Of the archive. What it raises as an error of this project's passes through.
        session: What the client uses; it has a timeout of its own.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID.

    Attributes:
        areas: The scanned areas, at least one, each with a pyramid of its own; the widest first. Levels that lie apart
            from a pyramid and show what it shows are none.

    Raises:
        ArchiveUnavailable: The archive fails at it.
        NotASlide: The series holds no level of a pyramid, as a label or an overview does not.
        SlideUnreadable: It holds what wsidicom does not read, or is not in colour.
    """

    areas: tuple[ScannedArea, ...]

    def __init__(self, client: DICOMwebClient, session: requests.Session, study_uid: str, series_uid: str) -> None:
        with _foreign_errors():
            client_as_stored = _AsStored(client, session)
            try:
                self._slide = WsiDicom.open_web(client_as_stored, study_uid, series_uid, settings=_SETTINGS)
            except WsiDicomNotFoundError as error:
                client_as_stored.check_all_of(set())
                raise NotASlide("the series holds no pyramid of a slide") from error
            except NotImplementedError as error:
                raise SlideUnreadable(
                    "a level of the slide has a Pixel Spacing that is not the finest level's times a power of two,"
                    f" within {2**_SCALE_TOLERANCE - 1:.1%}; levels in other steps are not read"
                ) from error
            opened = {str(each.uids.instance) for pyramid in self._slide.pyramids for each in _datasets(pyramid)}
            client_as_stored.check_all_of(opened)
            areas = [ScannedArea(self._slide, number) for number in range(len(self._slide.pyramids))]
            self.areas = tuple(areas[number] for number in not_shown_finer([area.header(0) for area in areas]))

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
        um_per_px=of_square_pixels(spacing.height, spacing.width),
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
