"""Slides in an archive whose label contradicts their frames, against a real Orthanc."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from app.interop.archive_http import ArchiveAccess, ArchiveSession
from app.interop.dicomweb import Archive
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides.dicomweb import DicomwebSlide
from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import ADOBE_RGB, ADOBE_YCC, jpeg_of
from tests.orthanc import Orthanc, running_orthanc
from tests.slides import TILE_PX, cmu1, write_slide

WIDTH, HEIGHT = 300, TILE_PX


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Orthanc:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def labelled(folder: Path, image: RgbImage, label: str, name: str, *, is_rgb: bool, states: bytes | None) -> Path:
    """Write a slide of one level, of two frames that say of their colours what they are told to."""
    [path] = write_slide(folder, image, name=name, downsamples=(1,))
    slide = dcmread(path)
    tiles = np.zeros((2, TILE_PX, TILE_PX, 3), np.uint8)
    tiles[0], tiles[1, :, : WIDTH - TILE_PX] = image[:, :TILE_PX], image[:, TILE_PX:]
    slide.PixelData = encapsulate([jpeg_of(tile, is_rgb=is_rgb, states=states) for tile in tiles])
    slide.PhotometricInterpretation = label
    slide.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("label", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize(
    ("name", "is_rgb", "states"),
    [("jfif", False, None), ("adobe-ycc", False, ADOBE_YCC), ("adobe-rgb", True, ADOBE_RGB)],
)
def test_a_slide_has_the_colours_that_its_frames_state_as_the_same_file_has_as_a_patch(
    archive, tmp_path, label, name, is_rgb, states
):
    """Before, wsidicom painted YCbCr as if it were RGB, where the label says that it is."""
    image = cmu1(WIDTH, HEIGHT)
    path = labelled(tmp_path, image, label, f"{name}-{label}", is_rgb=is_rgb, states=states)
    archive.put([path])
    of_slide = dcmread(path, stop_before_pixels=True)
    assert of_slide.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    with ArchiveSession(archive.dicomweb_url, ArchiveAccess(frozenset({"127.0.0.1"}))) as session:
        where = Archive(archive.dicomweb_url, session).client, session
        with DicomwebSlide(*where, of_slide.StudyInstanceUID, of_slide.SeriesInstanceUID) as slide:
            read = slide.areas[0].read(0, Region(0, 0, Size(WIDTH, HEIGHT)))
    assert np.abs(read.astype(int) - image).mean() < 2
    assert np.array_equal(read, decode_dicom(path.read_bytes(), WIDTH))
