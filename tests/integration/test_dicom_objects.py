"""DICOM objects before a judge that is not ours: dciodvfy of dicom3tools, and other processes."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid

from app.interop.dicom_file import to_bytes
from app.interop.provenance import Conditions
from app.pathology.classes import TissueClass
from app.pathology.manifest import ModelManifest
from app.slides import dicom
from tests.conftest import ROOT
from tests.dicom_pixels import decode_dicom
from tests.dicom_results import measurement_report, segmentation_object, segmentation_pyramid
from tests.dicom_sources import as_metadata, file_of, header_of, microscopic, secondary_capture, whole_slide
from tests.fakes import classes_of, manifest
from tests.pictures import quarters
from tests.programs import program
from tests.slides import write_slide

IMAGE = quarters(150, 110)
MAPS = {
    "whole": classes_of(IMAGE),
    "without_stroma": np.where(classes_of(IMAGE) == 1, 3, classes_of(IMAGE)).astype(np.uint8),
    "empty": np.full((110, 150), 3, np.uint8),
}
FRACTIONS = (0.25, 0.0, 1 / 3, 0.416667)
SEEN = Conditions(0.5, 0.5, ("too_small", "out_of_focus"))
SOURCES = {
    "full": whole_slide(IMAGE),
    "sparse": whole_slide(IMAGE, sparse=True),
    "jpeg": whole_slide(IMAGE, syntax=uid.JPEGBaseline8Bit),
    "field": microscopic(IMAGE),
    "on_slide": microscopic(IMAGE, on_slide=True),
    "capture": secondary_capture(IMAGE),
}
PRIVATE = "Unrecognized defined term = <99TESSERA>"
"""What dciodvfy says of any private code: it is a warning, and nothing is wrong."""


@pytest.fixture
def complaints(tmp_path) -> Callable[[bytes], list[str]]:
    """What dciodvfy finds wrong with a file: errors and warnings alike."""
    dciodvfy = program("dciodvfy")

    def judge(data: bytes) -> list[str]:
        path = tmp_path / "object.dcm"
        path.write_bytes(data)
        done = subprocess.run([dciodvfy, "-new", str(path)], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        assert lines, "dciodvfy names at least the kind of object"
        return [line for line in lines[1:] if PRIVATE not in line]

    return judge


@pytest.mark.parametrize("kind", SOURCES)
def test_the_sources_of_these_tests_are_valid(kind, complaints):
    assert complaints(file_of(SOURCES[kind])) == []


@pytest.mark.parametrize("form", [header_of, as_metadata], ids=["file", "metadata"])
@pytest.mark.parametrize("classes", MAPS)
@pytest.mark.parametrize("kind", SOURCES)
def test_segmentations_and_reports_are_valid(kind, classes, form, complaints):
    source = form(SOURCES[kind])
    source.TimezoneOffsetFromUTC = "+0100"
    seg = segmentation_object(source, MAPS[classes], manifest(), SEEN)
    assert complaints(to_bytes(seg)) == []
    assert complaints(to_bytes(measurement_report(source, seg, FRACTIONS, manifest(), SEEN))) == []


def test_objects_of_a_model_without_codes_are_valid(complaints):
    classes = (TissueClass(name="gland", letter="G", color=(1, 2, 3)), manifest().classes[3])
    model = ModelManifest(**{**manifest().model_dump(), "classes": classes, "label_thresholds": (0.5,)})
    source = header_of(SOURCES["full"])
    seg = segmentation_object(source, np.zeros((110, 150), np.uint8), model)
    assert complaints(to_bytes(seg)) == []
    assert complaints(to_bytes(measurement_report(source, seg, (1.0, 0.0), model))) == []


def test_an_upload_becomes_objects_that_are_valid(complaints):
    data = file_of(SOURCES["jpeg"])
    class_map = classes_of(decode_dicom(data, 4096))
    seg = segmentation_object(dicom.header(data), class_map, manifest())
    assert complaints(to_bytes(seg)) == []


@pytest.mark.parametrize("form", [header_of, as_metadata], ids=["file", "metadata"])
@pytest.mark.parametrize("is_empty", [False, True], ids=["whole", "empty"])
def test_every_level_of_a_pyramid_is_valid(form, is_empty, complaints, tmp_path):
    image = quarters(1100, 900)
    paths = write_slide(tmp_path / "slide", image, downsamples=(1, 2, 4, 8))
    levels = [form(dcmread(path)) for path in paths]
    class_map = np.full((900, 1100), 3, np.uint8) if is_empty else classes_of(image)
    pyramid = segmentation_pyramid(levels, class_map, manifest())
    assert len(pyramid) == 4
    for seg in pyramid:
        assert complaints(to_bytes(seg)) == []


def digests() -> str:
    """Digests of the objects of every source, in hexadecimal."""
    found = []
    for source in SOURCES.values():
        header = header_of(source)
        seg: Dataset = segmentation_object(header, MAPS["whole"], manifest())
        report = measurement_report(header, seg, FRACTIONS, manifest())
        found.extend(hashlib.sha256(to_bytes(made)).hexdigest() for made in (seg, report))
    [level] = segmentation_pyramid([header_of(SOURCES["full"])], MAPS["whole"], manifest())
    return " ".join([*found, hashlib.sha256(to_bytes(level)).hexdigest()])


def test_other_processes_write_the_same_bytes():
    code = "from tests.integration.test_dicom_objects import digests; print(digests())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        assert done.stdout.split() == digests().split()
