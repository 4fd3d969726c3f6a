"""Slides in an archive whose frames are in other colours than RGB, or than their label says; a real Orthanc."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from app.errors import SlideUnreadable
from app.interop.archive_http import ArchiveAccess, ArchiveSession
from app.interop.dicomweb import Archive
from app.pathology.arrays import RgbImage
from app.pathology.geometry import Region, Size
from app.slides.dicomweb import DicomwebSlide
from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import ADOBE_RGB, ADOBE_YCC, in_ycc, jpeg_2000_of, jpeg_of, rle_of
from tests.orthanc import Orthanc, running_orthanc
from tests.slides import TILE_PX, cmu1, write_slide

WIDTH, HEIGHT = 300, TILE_PX
Encode = Callable[[RgbImage], bytes]
"""Makes a frame of a tile."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Orthanc:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def labelled(folder: Path, image: RgbImage, label: str, name: str, syntax: UID, encode: Encode) -> Path:
    """Write a slide of one level, of two frames in whatever colours, which its header calls `label`."""
    [path] = write_slide(folder, image, name=name, downsamples=(1,))
    slide = dcmread(path)
    tiles = np.zeros((2, TILE_PX, TILE_PX, 3), np.uint8)
    tiles[0], tiles[1, :, : WIDTH - TILE_PX] = image[:, :TILE_PX], image[:, TILE_PX:]
    slide.PixelData = encapsulate([encode(tile) for tile in tiles])
    slide.PhotometricInterpretation, slide.file_meta.TransferSyntaxUID = label, syntax
    slide.save_as(path, enforce_file_format=True)
    return path


def read_from(archive: Orthanc, path: Path) -> RgbImage:
    """Put a slide's file into an archive, and return its pixels as they are read there."""
    archive.put([path])
    header = dcmread(path, stop_before_pixels=True)
    with ArchiveSession(archive.dicomweb_url, ArchiveAccess(frozenset({"127.0.0.1"}))) as session:
        where = Archive(archive.dicomweb_url, session).client, session
        with DicomwebSlide(*where, header.StudyInstanceUID, header.SeriesInstanceUID) as slide:
            return slide.areas[0].read(0, Region(0, 0, Size(WIDTH, HEIGHT)))


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
    encode = partial(jpeg_of, is_rgb=is_rgb, states=states)
    path = labelled(tmp_path, image, label, f"{name}-{label}", JPEGBaseline8Bit, encode)
    read = read_from(archive, path)
    assert np.abs(read.astype(int) - image).mean() < 2
    assert np.array_equal(read, decode_dicom(path.read_bytes(), WIDTH))


TRANSFORMED = partial(jpeg_2000_of, transforms=True)
NOT_TRANSFORMED = partial(jpeg_2000_of, transforms=False)


@pytest.mark.parametrize(
    ("name", "syntax", "encode", "label"),
    [
        ("rle", RLELossless, rle_of, "RGB"),
        ("j2k-rgb", JPEG2000Lossless, NOT_TRANSFORMED, "RGB"),
        ("j2k-rct-rgb", JPEG2000Lossless, TRANSFORMED, "RGB"),
        ("j2k-rct", JPEG2000Lossless, TRANSFORMED, "YBR_RCT"),
        ("j2k-rct-full", JPEG2000Lossless, TRANSFORMED, "YBR_FULL"),
        ("j2k-rct-422", JPEG2000Lossless, TRANSFORMED, "YBR_FULL_422"),
        ("j2k-ict", JPEG2000, partial(TRANSFORMED, is_lossy=True), "YBR_ICT"),
        ("j2k-ict-422", JPEG2000, partial(TRANSFORMED, is_lossy=True), "YBR_FULL_422"),
    ],
)
def test_frames_of_other_encodings_have_the_colours_that_the_same_file_has_as_a_patch(
    archive, tmp_path, name, syntax, encode, label
):
    image = cmu1(WIDTH, HEIGHT)
    path = labelled(tmp_path, image, label, name, syntax, encode)
    read = read_from(archive, path)
    assert np.abs(read.astype(int) - image).max() <= (2 if syntax == JPEG2000 else 0)
    assert np.array_equal(read, decode_dicom(path.read_bytes(), WIDTH))


@pytest.mark.parametrize("label", ["YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize(
    ("name", "syntax", "encode"), [("rle", RLELossless, rle_of), ("j2k", JPEG2000Lossless, NOT_TRANSFORMED)]
)
def test_a_slide_whose_colours_are_not_converted_is_refused_though_its_file_is_read_as_a_patch(
    archive, tmp_path, name, syntax, encode, label
):
    """Before, it was painted as if its YCbCr were RGB."""
    image = cmu1(WIDTH, HEIGHT)
    path = labelled(tmp_path, image, label, f"{name}-{label}-ycc", syntax, lambda tile: encode(in_ycc(tile)))
    with pytest.raises(SlideUnreadable, match=f"a level of the slide is in {label}, .* store it as RGB"):
        read_from(archive, path)
    assert np.abs(decode_dicom(path.read_bytes(), WIDTH).astype(int) - image).mean() < 2
