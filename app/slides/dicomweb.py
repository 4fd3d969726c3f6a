"""A slide in a DICOMweb archive: its levels by WADO-RS, through wsidicom. Needs the extra `slides`."""

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import numpy as np
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from wsidicom import WsiDicom
from wsidicom.config import Settings
from wsidicom.errors import WsiDicomNoResolutionError, WsiDicomNotFoundError

from app.errors import ArchiveUnavailable, NotASlide, OutOfMemory, SlideUnreadable, TesseraError
from app.imaging.decode import NO_MEMORY
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size, of_square_pixels
from app.slides.dicom_matrix import begins_with, check_single, is_part, not_shown_finer
from app.slides.dicomweb_client import AsStored
from app.slides.slide import Level

_RGB_SAMPLES = 3
_SCALE_TOLERANCE = 0.05
"""Of the base-2 logarithm of a level's spacing by the finest's: at 20 px, half a px more or less makes 0.036."""
_SETTINGS = Settings(
    strict_tile_size_check=False,  # PS3.3, section A.32.8, asks for no tile size that levels share
    level_scale_tolerance=_SCALE_TOLERANCE,
    # In mm. Scanners shift a coarse level's origin by a part of its pixels; one that is shifted by more is read, and
    # gets no result (`ScannedArea.begins_with`). Scanned areas are further apart.
    pyramids_origin_threshold=0.1,
)


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
        """Return (H, W, 3) uint8 pixels of a region of a level; see `Slide.read`.

        Raises:
            ArchiveUnavailable: The archive fails at it.
            SlideUnreadable: It does not give them, or they do not decode.
            OutOfMemory: There is no memory for it now.
        """
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

    def checked_header(self, level: int) -> Dataset:
        """Return the data set, without bulk data, of the one instance that holds the pixels of a level.

        Raises:
            SlideUnreadable: There are several, or it has several focal planes or optical paths: the archive's order, or
                that of frames, would decide which is segmented.
        """
        datasets: list[Dataset] = [dataset.as_dataset() for dataset in self._levels[level].datasets]
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
        return datasets[0]


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
        OutOfMemory: There is no memory for it now.
        NotASlide: The series holds no level of a pyramid, as a label or an overview does not.
        SlideUnreadable: It holds what wsidicom does not read, or is not in colour, or in one that is not converted.
    """

    areas: tuple[ScannedArea, ...]

    def __init__(self, client: DICOMwebClient, session: requests.Session, study_uid: str, series_uid: str) -> None:
        with _foreign_errors():
            client_as_stored = AsStored(client, session)
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
            instances = [each for pyramid in self._slide.pyramids for each in pyramid.instances]
            client_as_stored.check_all_of(
                {str(dataset.uids.instance) for each in instances for dataset in each.datasets}
            )
            for each in instances:
                client_as_stored.check_colours(each.dataset.as_dataset(), each.image_data.transfer_syntax)
            areas = [ScannedArea(self._slide, number) for number in range(len(self._slide.pyramids))]
            self.areas = tuple(areas[number] for number in not_shown_finer([area.header(0) for area in areas]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._slide.close()


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
    except MemoryError as error:
        raise OutOfMemory(NO_MEMORY) from error
    except WsiDicomNoResolutionError as error:
        raise SlideUnreadable("the slide states no Pixel Spacing, without which its levels cannot be told") from error
    except Exception as error:
        raise SlideUnreadable(f"the archive's slide does not give its pixels ({type(error).__name__})") from error
