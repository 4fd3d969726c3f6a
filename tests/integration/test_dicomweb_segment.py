"""`tessera dicomweb segment` against a real Orthanc: slide in, Segmentation out, compared pixel by pixel."""

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from highdicom.seg import Segmentation
from PIL import Image
from prometheus_client import CollectorRegistry
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from app.errors import SlideUnreadable
from app.inference.bundle import load_bundle
from app.inference.model import load_segmenter
from app.inference.segmenter import ModelChoice
from app.inference.session import open_session
from app.interop.archive_http import ArchiveAccess, ArchiveSession
from app.interop.dicom_pyramid import reduced
from app.interop.dicomweb import Archive
from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.geometry import Region, Size
from app.segmentation.windows import segment_windows
from app.settings import DEFAULT_BUNDLE
from app.slides.dicomweb import DicomwebSlide
from app.telemetry.metrics import Metrics
from tests.conftest import ROOT, SERVED_BUNDLE
from tests.dicom_sources import CANARY
from tests.orthanc import Orthanc, free_port, running_orthanc
from tests.slides import TILE_PX, cmu1, write_slide

RUN_SECONDS = 300
FINEST = ("--um-per-px", "0.5")
"""The spacing of the slides' finest level, where the model's own would be a coarser one."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def segment(
    url: str, slide: pydicom.Dataset, *flags: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    where = ["--url", url, "--study", slide.StudyInstanceUID, "--series", slide.SeriesInstanceUID]
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "dicomweb", "segment", *where, "--device", "cpu", *flags],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=RUN_SECONDS,
        env={**os.environ, **(env or {"TESSERA_DICOMWEB_HOSTS": "127.0.0.1"})},
    )


def header(path: Path) -> pydicom.Dataset:
    return pydicom.dcmread(path, stop_before_pixels=True)


def pixels(path: Path) -> RgbImage:
    """Return a level's pixels, decoded by Pillow from the file that was sent."""
    slide = pydicom.dcmread(path)
    frames = generate_frames(slide.PixelData, number_of_frames=slide.NumberOfFrames)
    across = -(-slide.TotalPixelMatrixColumns // TILE_PX)
    tiles = [np.asarray(Image.open(BytesIO(frame))) for frame in frames]
    rows = [np.hstack(tiles[first : first + across]) for first in range(0, len(tiles), across)]
    return np.vstack(rows)[: slide.TotalPixelMatrixRows, : slide.TotalPixelMatrixColumns]


def fetched(archive: Orthanc, slide: pydicom.Dataset, uid: str) -> Segmentation:
    """Return a result, fetched from the archive over WADO-RS."""
    client = DICOMwebClient(archive.dicomweb_url)
    [found] = client.search_for_instances(slide.StudyInstanceUID, search_filters={"SOPInstanceUID": uid})
    series = found["0020000E"]["Value"][0]
    return Segmentation.from_dataset(client.retrieve_instance(slide.StudyInstanceUID, series, uid))


def results(archive: Orthanc, slide: pydicom.Dataset) -> list[Segmentation]:
    """Return the Segmentations in a slide's study, finest level first."""
    client = DICOMwebClient(archive.dicomweb_url)
    found = client.search_for_instances(slide.StudyInstanceUID, search_filters={"Modality": "SEG"})
    segs = [fetched(archive, slide, one["00080018"]["Value"][0]) for one in found]
    return sorted(segs, key=lambda seg: -int(seg.TotalPixelMatrixColumns))


def class_map_of(seg: Segmentation) -> ClassMap:
    """Return the class map of the shipped model that a Segmentation tells: 3 is background, where no segment is."""
    numbers = seg.get_total_pixel_matrix(combine_segments=True)
    return np.where(numbers == 0, 3, numbers - 1).astype(np.uint8)


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return the UID of the result that the command names."""
    assert done.returncode == 0, done.stderr
    found = re.search(r"SEG ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return found[1]


def test_a_level_of_one_window_comes_back_as_the_graph_itself_answers(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(), name="one-window")
    archive.send(paths)
    uid = told(segment(archive.dicomweb_url, header(paths[0]), "--um-per-px", "1"))
    image = pixels(paths[1])
    assert image.shape == (576, 768, 3)
    session = open_session(load_bundle(SERVED_BUNDLE).model, "cpu")
    seg = fetched(archive, header(paths[0]), uid)
    assert np.array_equal(class_map_of(seg), session.run(image[None]).class_maps[0])


def test_the_finest_level_comes_back_pixel_by_pixel_and_only_once(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(1300, 1100), name="finest")
    archive.send(paths)
    slide = header(paths[0])
    first = segment(archive.dicomweb_url, slide, *FINEST)
    second = segment(archive.dicomweb_url, slide, *FINEST)
    assert first.stdout.startswith("stored: SEG ")
    assert second.stdout == f"already stored: SEG {told(first)}\n"

    seg = fetched(archive, slide, told(first))
    image = pixels(paths[0])

    async def expected() -> ClassMap:
        metrics = Metrics(CollectorRegistry())
        model = load_segmenter(ModelChoice(DEFAULT_BUNDLE, "cpu"), metrics)

        async def read(region: Region) -> RgbImage:
            return image[region.slices]

        await model.start()
        area = await segment_windows(model, Size(1300, 1100), read, metrics)
        await model.close()
        return area.class_map

    class_map = asyncio.run(expected())
    assert len(np.unique(class_map)) == 4
    assert np.array_equal(class_map_of(seg), class_map)
    assert str(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID) == (
        slide.SOPInstanceUID
    )
    assert seg.PatientName == CANARY
    shares = [float(share) for share in re.findall(r"([0-9.]+)%", first.stdout)]
    assert np.allclose(shares, 100 * np.bincount(class_map.ravel(), minlength=4) / class_map.size, atol=0.05)

    pyramid = results(archive, slide)
    assert "and 2 coarser" in first.stdout
    assert [level.TotalPixelMatrixColumns for level in pyramid] == [1300, 650, 325]
    assert len({level.SeriesInstanceUID for level in pyramid}) == 1
    assert pyramid[0].SOPInstanceUID == seg.SOPInstanceUID
    for level, path in zip(pyramid, paths, strict=True):
        shape = (level.TotalPixelMatrixRows, level.TotalPixelMatrixColumns)
        assert np.array_equal(class_map_of(level), reduced(class_map, shape))
        assert level.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == (
            header(path).SOPInstanceUID
        )


def test_a_result_that_lacks_its_finest_level_is_completed(archive, tmp_path):
    """As an archive may leave it that ends while it stores: the finest level goes last."""
    paths = write_slide(tmp_path, cmu1(600, 500), name="completed")
    archive.send(paths)
    slide = header(paths[0])
    told(segment(archive.dicomweb_url, slide, *FINEST))
    complete = results(archive, slide)
    archive.delete(complete[0].SOPInstanceUID)
    assert len(results(archive, slide)) == 2
    again = segment(archive.dicomweb_url, slide, *FINEST)
    assert again.stdout.startswith(f"stored: SEG {complete[0].SOPInstanceUID} and 2 coarser: ")
    assert results(archive, slide) == complete
    assert segment(archive.dicomweb_url, slide, *FINEST).stdout.startswith("already stored")


def test_the_level_at_the_models_spacing_is_segmented_unless_another_is_named(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(600, 500), name="spacing")
    archive.send(paths)
    assert load_bundle(DEFAULT_BUNDLE).manifest.um_per_px == 1.0
    told(segment(archive.dicomweb_url, header(paths[0])))
    assert [level.TotalPixelMatrixColumns for level in results(archive, header(paths[0]))] == [300, 150]


def test_another_level_of_the_same_slide_is_another_result(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(600, 500), name="levels")
    archive.send(paths)
    slide = header(paths[0])
    uids = [told(segment(archive.dicomweb_url, slide, "--um-per-px", spacing)) for spacing in ("1", "2", "1")]
    assert uids[0] == uids[2] != uids[1]
    assert fetched(archive, slide, uids[1]).TotalPixelMatrixColumns == 150
    series = Counter(seg.SeriesInstanceUID for seg in results(archive, slide))
    assert sorted(series.values()) == [1, 2], "a series holds one level of each size"


def test_a_file_holds_what_would_have_been_stored(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(600, 500), name="file")
    archive.send(paths)
    slide, out = header(paths[0]), tmp_path / "seg.dcm"
    done = segment(archive.dicomweb_url, slide, "--out", str(out))
    assert done.returncode == 0, done.stderr
    studies = DICOMwebClient(archive.dicomweb_url).search_for_series(slide.StudyInstanceUID)
    assert len(studies) == 1
    written = pydicom.dcmread(out)
    stored = fetched(archive, slide, told(segment(archive.dicomweb_url, slide)))
    assert written.SOPInstanceUID == stored.SOPInstanceUID
    assert written.PixelData == stored.PixelData


@pytest.mark.parametrize(
    "syntax", [JPEGBaseline8Bit, JPEG2000Lossless, ExplicitVRLittleEndian], ids=lambda uid: uid.name
)
def test_a_slide_is_read_as_it_is_stored_whatever_its_compression(archive, tmp_path, syntax):
    """Orthanc would compress lossless frames with loss where it is asked for JPEG."""
    image = cmu1(700, 600)
    name = f"syntax-{syntax}"
    paths = write_slide(tmp_path, image, name=name, syntax=syntax)
    archive.put(paths)
    access = ArchiveAccess(frozenset({"127.0.0.1"}))
    with ArchiveSession(archive.dicomweb_url, access) as session:
        client = Archive(archive.dicomweb_url, session).client
        slide = header(paths[0])
        with DicomwebSlide(client, session, slide.StudyInstanceUID, slide.SeriesInstanceUID) as opened:
            assert [level.size for level in opened.levels] == [Size(700, 600), Size(350, 300), Size(175, 150)]
            assert [level.um_per_px for level in opened.levels] == pytest.approx([0.499, 0.998, 1.996])
            assert [level.downsample for level in opened.levels] == [1, 2, 4]
            read = opened.read(0, Region(100, 50, Size(500, 530)))
            assert opened.headers(1)[0].SOPInstanceUID == header(paths[1]).SOPInstanceUID
    expected = pixels(paths[0]) if syntax == JPEGBaseline8Bit else image
    assert np.array_equal(read, expected[50:580, 100:600])


def changed(path: Path, **attributes: Any) -> Path:
    """Write an instance anew, with other attributes, under another UID; None takes one away."""
    slide = pydicom.dcmread(path)
    slide.SOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[slide.SOPInstanceUID, repr(attributes)])
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID
    for keyword, value in attributes.items():
        if value is None:
            delattr(slide, keyword)
        else:
            setattr(slide, keyword, value)
    other = path.with_name(f"{path.stem}-changed.dcm")
    slide.save_as(other, enforce_file_format=True)
    return other


PART = {"ConcatenationUID": "2.25.7", "InConcatenationNumber": 1, "InConcatenationTotalNumber": 2}


@pytest.mark.parametrize(
    ("name", "keeps", "attributes", "words"),
    [
        ("twice", True, {}, "there 2 times"),
        ("part", False, PART, "is a concatenation"),
        ("lacking", False, {"BitsStored": None}, "lacks attributes of its class"),
    ],
)
def test_a_level_that_is_not_one_whole_instance_is_refused_and_not_passed_over(
    archive, tmp_path, name, keeps, attributes, words
):
    paths = write_slide(tmp_path, cmu1(700, 600), name=name)
    other = changed(paths[1], **attributes)
    archive.send([paths[0], *([paths[1]] if keeps else []), paths[2], other])
    of_slide = header(paths[0])
    access = ArchiveAccess(frozenset({"127.0.0.1"}))
    with ArchiveSession(archive.dicomweb_url, access) as session, pytest.raises(SlideUnreadable, match=words):
        where = Archive(archive.dicomweb_url, session).client, session
        with DicomwebSlide(*where, of_slide.StudyInstanceUID, of_slide.SeriesInstanceUID) as opened:
            assert opened.headers(0)[0].SOPInstanceUID == of_slide.SOPInstanceUID
            opened.headers(1)


def test_a_slide_whose_only_level_cannot_be_read_is_not_taken_for_none(archive, tmp_path):
    [path] = write_slide(tmp_path, cmu1(300, 300), name="unread", downsamples=(1,))
    archive.send([changed(path, BitsStored=None)])
    of_slide, access = header(path), ArchiveAccess(frozenset({"127.0.0.1"}))
    with ArchiveSession(archive.dicomweb_url, access) as session, pytest.raises(SlideUnreadable, match="lacks attr"):
        where = Archive(archive.dicomweb_url, session).client, session
        DicomwebSlide(*where, of_slide.StudyInstanceUID, of_slide.SeriesInstanceUID)


def test_what_scanners_put_beside_a_slide_is_no_level(archive, tmp_path):
    """As 3DHISTECH's do, which wsidicom leaves out."""
    paths = write_slide(tmp_path, cmu1(700, 600), name="beside")
    archive.send([*paths, changed(paths[2], ImageType=["DERIVED", "PRIMARY", "REGIONLOCALIZER", "RESAMPLED"])])
    of_slide, access = header(paths[0]), ArchiveAccess(frozenset({"127.0.0.1"}))
    with ArchiveSession(archive.dicomweb_url, access) as session:
        where = Archive(archive.dicomweb_url, session).client, session
        with DicomwebSlide(*where, of_slide.StudyInstanceUID, of_slide.SeriesInstanceUID) as opened:
            assert [len(opened.headers(level)) for level in range(3)] == [1, 1, 1]


def test_what_is_no_slide_or_not_there_is_said_in_one_line(archive, tmp_path):
    label = write_slide(tmp_path, cmu1(300, 300), name="label", flavor="LABEL", downsamples=(1,))
    slide = write_slide(tmp_path, cmu1(600, 500), name="refused")
    archive.send([*label, *slide])
    of_label, of_slide = header(label[0]), header(slide[0])
    elsewhere, result, missing = (pydicom.Dataset() for _ in range(3))
    for one in (elsewhere, result, missing):
        one.StudyInstanceUID = of_slide.StudyInstanceUID
    elsewhere.SeriesInstanceUID, missing.SeriesInstanceUID = of_label.SeriesInstanceUID, "1.2.3"
    told(segment(archive.dicomweb_url, of_slide))
    results = DICOMwebClient(archive.dicomweb_url).search_for_series(
        of_slide.StudyInstanceUID, search_filters={"Modality": "SEG"}
    )
    result.SeriesInstanceUID = results[0]["0020000E"]["Value"][0]
    for dataset, flags, message in [
        (of_label, (), "the series holds no pyramid of a slide"),
        (result, (), "the series is of modality SEG"),
        (missing, (), "the archive holds no such series"),
        (elsewhere, (), "the archive holds no such series"),
        (of_slide, ("--max-pixels", "1000"), "over the 1000 px allowed"),
    ]:
        done = segment(archive.dicomweb_url, dataset, *flags)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(rf"Error: .*{message}.*\n", done.stderr), done.stderr
        assert "1.2.826" not in done.stderr


@pytest.mark.parametrize(
    ("url", "env", "status", "message"),
    [
        ("http://127.0.0.1:{port}", {"TESSERA_DICOMWEB_HOSTS": "archive.example"}, 1, "127.0.0.1 is not an allowed"),
        ("http://archive.example", {"TESSERA_DICOMWEB_HOSTS": "archive.example"}, 1, "plain HTTP"),
        ("http://127.0.0.1:{port}", {}, 1, "cannot be reached"),
        ("http://127.0.0.1:{port}", {"TESSERA_DICOMWEB_USERNAME": "x"}, 2, "come together"),
        ("http://127.0.0.1:{port}", {"TESSERA_DICOMWEB_CA_BUNDLE": "/missing"}, 2, "is no file of certificates"),
        ("http://127.0.0.1:{port}", {"TESSERA_DICOMWEB_TIMEOUT": "soon"}, 2, "TESSERA_DICOMWEB_TIMEOUT"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(url, env, status, message):
    nowhere = pydicom.Dataset()
    nowhere.StudyInstanceUID = nowhere.SeriesInstanceUID = "1.2.3"
    done = segment(url.format(port=free_port()), nowhere, env={"TESSERA_DICOMWEB_HOSTS": "127.0.0.1", **env})
    assert done.returncode == status
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_credentials_of_the_environment_open_a_closed_archive(tmp_path):
    users: dict[str, Any] = {"AuthenticationEnabled": True, "RegisteredUsers": {"reader": "word-of-the-reader"}}
    paths = write_slide(tmp_path, cmu1(300, 300), name="closed", downsamples=(1,))
    with running_orthanc(tmp_path / "orthanc", **users) as closed:
        closed.send(paths)
        hosts = {"TESSERA_DICOMWEB_HOSTS": "127.0.0.1"}
        denied = segment(closed.dicomweb_url, header(paths[0]), env=hosts)
        assert denied.returncode == 1
        assert "denies access (401)" in denied.stderr
        known = {"TESSERA_DICOMWEB_USERNAME": "reader", "TESSERA_DICOMWEB_PASSWORD": "word-of-the-reader"}
        assert told(segment(closed.dicomweb_url, header(paths[0]), env={**hosts, **known}))
