"""`tessera dicomweb segment` against a real Orthanc: slide in, Segmentation out, compared pixel by pixel."""

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from dicomweb_client.api import DICOMwebClient
from highdicom.seg import Segmentation
from highdicom.sr import MeasurementReport
from PIL import Image
from prometheus_client import CollectorRegistry
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from app.cli import main
from app.errors import SlideUnreadable
from app.inference.bundle import load_bundle
from app.inference.model import load_segmenter
from app.inference.segmenter import ModelChoice
from app.inference.session import open_session
from app.interop.archive_http import ArchiveAccess, ArchiveSession
from app.interop.dicomweb import Archive
from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.geometry import Region, Size
from app.segmentation.windows import segment_windows
from app.settings import DEFAULT_BUNDLE
from app.slides.dicomweb import DicomwebSlide
from app.telemetry.metrics import Metrics
from tests.conftest import ROOT, SERVED_BUNDLE
from tests.dicom_results import reduced
from tests.dicom_sources import CANARY
from tests.orthanc import Orthanc, free_port, running_orthanc
from tests.slides import CMU1_UM_PER_PX, TILE_PX, brown, changed, cmu1, stained_with_pas, write_slide

RUN_SECONDS = 300
FINEST = ("--um-per-px", "0.5")
"""The spacing of the slides' finest level, where the model's own would be a coarser one."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


class Done(NamedTuple):
    """What a command said, and its status."""

    returncode: int
    stdout: str
    stderr: str


def as_process(
    url: str, slide: pydicom.Dataset, *flags: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command as users do."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments(url, slide), *flags],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=RUN_SECONDS,
        env={**os.environ, "TESSERA_STALL_TIMEOUT": "20", **(env or {"TESSERA_DICOMWEB_HOSTS": "127.0.0.1"})},
    )


def segment(url: str, slide: pydicom.Dataset, *flags: str) -> Done:
    """Run the command in this process, which spares it the start."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        runner = CliRunner(env={"TESSERA_DICOMWEB_HOSTS": "127.0.0.1"})
        done = runner.invoke(main, [*arguments(url, slide), *flags])
    finally:
        root.handlers[:], root.level = handlers, level  # the tests' log stays theirs
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return Done(done.exit_code, done.stdout, done.stderr)


def arguments(url: str, slide: pydicom.Dataset) -> list[str]:
    where = ["--url", url, "--study", slide.StudyInstanceUID, "--series", slide.SeriesInstanceUID]
    return ["dicomweb", "segment", *where, "--device", "cpu"]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Returns status and words of the command where it refuses: in this process, which is faster."""
    monkeypatch.setattr("app.telemetry.logging.configure", lambda *_: None)  # the tests' log stays theirs

    def refused_here(
        url: str, slide: pydicom.Dataset, *flags: str, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        runner = CliRunner(env=env or {"TESSERA_DICOMWEB_HOSTS": "127.0.0.1"})
        done = runner.invoke(main, [*arguments(url, slide), *flags])
        assert done.stdout == ""
        return done.exit_code, done.stderr

    return refused_here


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


def told(done: Done | subprocess.CompletedProcess[str]) -> str:
    """Return the UID of the result that the command names."""
    assert done.returncode == 0, done.stderr
    found = re.search(r"SEG ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return found[1]


def test_a_level_of_one_window_comes_back_as_the_graph_itself_answers(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(), name="one-window")
    archive.send(paths)
    uid = told(as_process(archive.dicomweb_url, header(paths[0]), "--um-per-px", "1"))
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
        model = load_segmenter(ModelChoice(DEFAULT_BUNDLE, "cpu"))

        async def read(region: Region) -> RgbImage:
            return image[region.slices]

        await model.start(metrics)
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
    [algorithm] = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmParameters.endswith(",warnings=none")
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
            [area] = opened.areas
            assert [level.size for level in area.levels] == [Size(700, 600), Size(350, 300), Size(175, 150)]
            assert [level.um_per_px for level in area.levels] == pytest.approx([0.499, 0.998, 1.996])
            assert [level.downsample for level in area.levels] == [1, 2, 4]
            read = area.read(0, Region(100, 50, Size(500, 530)))
            assert area.checked_header(1).SOPInstanceUID == header(paths[1]).SOPInstanceUID
    expected = pixels(paths[0]) if syntax == JPEGBaseline8Bit else image
    assert np.array_equal(read, expected[50:580, 100:600])


def spaced(*mm: float) -> pydicom.Sequence:
    """Return shared functional groups of a Pixel Spacing, given once or for rows and columns."""
    shared, measures = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing = [mm[0], mm[-1]]
    shared.PixelMeasuresSequence = [measures]
    return pydicom.Sequence([shared])


PART = {"ConcatenationUID": "2.25.7", "InConcatenationNumber": 1, "InConcatenationTotalNumber": 2}


@pytest.mark.parametrize(
    ("name", "keeps", "attributes", "words"),
    [
        ("twice", True, {}, "there 2 times"),
        ("part", False, PART, "is a concatenation"),
        ("lacking", False, {"BitsStored": None}, "lacks attributes of its class"),
        ("planes", False, {"times": 2, "TotalPixelMatrixFocalPlanes": 2}, "has 2 focal planes"),
        ("paths", False, {"times": 3, "NumberOfOpticalPaths": 3}, "has 3 optical paths"),
        ("spacing", False, {"SharedFunctionalGroupsSequence": spaced(0.0012)}, "times a power of two, within 3.5%"),
        ("other", False, {"SharedFunctionalGroupsSequence": spaced(0.0005)}, "has the Pixel Spacing of another"),
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
            assert opened.areas[0].checked_header(0).SOPInstanceUID == of_slide.SOPInstanceUID
            opened.areas[0].checked_header(1)


@contextmanager
def opened(archive: Orthanc, slide: pydicom.Dataset) -> Iterator[DicomwebSlide]:
    """Give a slide of the archive."""
    with ArchiveSession(archive.dicomweb_url, ArchiveAccess(frozenset({"127.0.0.1"}))) as session:
        client = Archive(archive.dicomweb_url, session).client
        with DicomwebSlide(client, session, slide.StudyInstanceUID, slide.SeriesInstanceUID) as found:
            yield found


def origin(x_mm: float) -> pydicom.Sequence:
    """Return where a level's first pixel lies on the glass, 20 mm being where the others' does."""
    place = pydicom.Dataset()
    place.XOffsetInSlideCoordinateSystem, place.YOffsetInSlideCoordinateSystem = x_mm, 40.0
    return pydicom.Sequence([place])


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("shifted", {"TotalPixelMatrixOriginSequence": origin(20.06)}),
        ("rounded", {"SharedFunctionalGroupsSequence": spaced(0.002052)}),  # of 0.001996: 2.8 %
    ],
)
def test_a_coarse_level_need_not_match_the_others_to_the_micrometre(archive, tmp_path, name, attributes):
    paths = write_slide(tmp_path, cmu1(700, 600), name=name)
    archive.send([paths[0], paths[1], changed(paths[2], **attributes)])
    with opened(archive, header(paths[0])) as slide:
        [area] = slide.areas
        assert [level.size.width_px for level in area.levels] == [700, 350, 175]
        assert area.read(2, Region(0, 0, Size(175, 150))).shape == (150, 175, 3)


def test_a_level_far_off_that_shows_what_a_finer_one_shows_is_no_scanned_area(archive, tmp_path):
    """Before, it got a second result, and a worse one."""
    paths = write_slide(tmp_path, cmu1(700, 600), name="far")
    archive.send([paths[0], paths[1], changed(paths[2], TotalPixelMatrixOriginSequence=origin(20.11))])
    with opened(archive, header(paths[0])) as slide:
        [area] = slide.areas
        assert [level.size.width_px for level in area.levels] == [700, 350]


def test_a_level_that_begins_beside_the_others_gets_no_result(archive, tmp_path):
    """0.06 mm are 30 px of its own; before, it got what belongs 30 px further left."""
    paths = write_slide(tmp_path, cmu1(700, 600), name="beside-the-others")
    archive.send([paths[0], paths[1], changed(paths[2], TotalPixelMatrixOriginSequence=origin(20.06))])
    told(segment(archive.dicomweb_url, header(paths[0])))
    assert [level.TotalPixelMatrixColumns for level in results(archive, header(paths[0]))] == [350]


def test_a_level_may_have_tiles_of_its_own_size(archive, tmp_path):
    """DICOM does not ask for equal tiles; before, such a slide was refused as if it lacked attributes."""
    paths = write_slide(tmp_path, cmu1(700, 600), name="tiles", coarsest_tile_px=96)
    archive.send(paths)
    slide = header(paths[0])
    told(segment(archive.dicomweb_url, slide))
    stored = results(archive, slide)
    assert [(level.TotalPixelMatrixColumns, level.Columns) for level in stored] == [(350, 256), (175, 96)]


def test_pixels_that_are_not_square_have_no_spacing(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(300, 300), name="oblong", downsamples=(1,))
    archive.send([changed(paths[0], SharedFunctionalGroupsSequence=spaced(0.0005, 0.00052))])
    with opened(archive, header(paths[0])) as slide:
        assert slide.areas[0].levels[0].um_per_px is None
    done = segment(archive.dicomweb_url, header(paths[0]), "--out", str(tmp_path / "seg.dcm"))
    assert "um/px: unknown read, unknown seen by the model" in done.stdout
    assert "its pixels are not square" in done.stderr


def test_a_slide_without_a_level_near_the_models_spacing_is_seen_at_that_all_the_same(archive, tmp_path):
    image = cmu1(1500, 1100)
    paths = write_slide(tmp_path, image, name="steps-of-four", downsamples=(1, 4, 16))
    archive.send(paths)
    slide = header(paths[0])
    done = segment(archive.dicomweb_url, slide)
    uid = told(done)
    assert done.stdout.endswith("; um/px: 0.499 read, 0.998 seen by the model, 0.499 in the result\n")
    assert done.stderr.count("segmenting") >= 1
    seen = pixels(paths[0]).shape[1] // 2, pixels(paths[0]).shape[0] // 2
    halved = np.asarray(Image.fromarray(pixels(paths[0])).resize(seen, Image.Resampling.BICUBIC))
    session = open_session(load_bundle(SERVED_BUNDLE).model, "cpu")
    of_model = np.pad(halved, ((0, -halved.shape[0] % 32), (0, -halved.shape[1] % 32), (0, 0)), mode="reflect")
    expected = session.run(of_model[None]).class_maps[0][: seen[1], : seen[0]]
    stored = results(archive, slide)
    assert [level.TotalPixelMatrixColumns for level in stored] == [1500, 375, 93]
    assert stored[0].SOPInstanceUID == uid
    assert np.array_equal(class_map_of(stored[0]), np.repeat(np.repeat(expected, 2, axis=0), 2, axis=1))
    assert np.array_equal(class_map_of(stored[1]), expected[1::2, 1::2][:275, :375])
    again = segment(archive.dicomweb_url, slide)
    assert again.stdout == f"already stored: SEG {uid}\n"
    unscaled = segment(archive.dicomweb_url, slide, *FINEST)
    assert told(unscaled) != uid, "what the model saw otherwise is another result"


def test_a_slide_that_is_coarser_than_the_model_is_enlarged_and_that_is_said(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(400, 300), name="coarse", um_per_px=2.0, downsamples=(1, 2))
    archive.send(paths)
    done = segment(archive.dicomweb_url, header(paths[0]))
    assert told(done)
    assert "um/px: 2 read, 1 seen by the model, 2 in the result" in done.stdout
    assert "the slide's finest level has 2 um/px and is enlarged to the model's 1" in done.stderr
    assert [level.TotalPixelMatrixColumns for level in results(archive, header(paths[0]))] == [400, 200]


def test_each_scanned_area_of_a_series_has_a_result_of_its_own(archive, tmp_path):
    """Before, only the first was segmented, and the other looked as if there were no tumor in it."""
    paths = write_slide(tmp_path, cmu1(700, 600), name="areas")
    other = [changed(path, TotalPixelMatrixOriginSequence=origin(50.0)) for path in paths]
    archive.send([*paths, *other])
    slide = header(paths[0])
    out = tmp_path / "seg.dcm"
    done = segment(archive.dicomweb_url, slide, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [line.split(": SEG")[0] for line in done.stdout.splitlines()] == [str(out), str(tmp_path / "seg-2.dcm")]

    done = segment(archive.dicomweb_url, slide)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stored: SEG") == 2
    stored = results(archive, slide)
    assert sorted(level.TotalPixelMatrixColumns for level in stored) == [175, 175, 350, 350]
    series = Counter(level.SeriesInstanceUID for level in stored)
    assert sorted(series.values()) == [2, 2]
    referenced = {
        str(level.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID)
        for level in stored
    }
    assert referenced == {str(header(path).SOPInstanceUID) for path in (*paths[1:], *other[1:])}
    assert segment(archive.dicomweb_url, slide).stdout.startswith("already stored: SEG ")

    lost = next(level for level in stored if level.TotalPixelMatrixColumns == 350)
    archive.delete(lost.SOPInstanceUID)
    done = segment(archive.dicomweb_url, slide)
    assert done.stdout.count("stored: SEG") == 1, "only the area that has no result is segmented again"
    assert f"SEG {lost.SOPInstanceUID} " in done.stdout


def test_a_scanned_area_that_cannot_be_read_costs_the_others_nothing(archive, tmp_path):
    """Before, one refused all of them."""
    paths = write_slide(tmp_path, cmu1(700, 600), name="one-of-two")
    other = [changed(path, TotalPixelMatrixOriginSequence=origin(50.0)) for path in paths]
    archive.send([*paths, changed(other[1], times=2, TotalPixelMatrixFocalPlanes=2), other[0], other[2]])
    done = segment(archive.dicomweb_url, header(paths[0]))
    assert done.returncode == 1
    assert done.stdout.count("stored: SEG") == 1
    assert "Error: a level of the slide has 2 focal planes" in done.stderr
    assert sorted(level.TotalPixelMatrixColumns for level in results(archive, header(paths[0]))) == [175, 350]


def test_a_scanned_area_that_is_too_large_costs_the_others_nothing(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(700, 600), name="large-and-small")
    small = write_slide(tmp_path / "small", cmu1(300, 200), name="small", downsamples=(1,))
    of_slide = {keyword: header(paths[0])[keyword].value for keyword in ("StudyInstanceUID", "SeriesInstanceUID")}
    archive.send([*paths, changed(small[0], TotalPixelMatrixOriginSequence=origin(50.0), **of_slide)])
    out = tmp_path / "seg.dcm"
    done = segment(archive.dicomweb_url, header(paths[0]), "--max-pixels", "70000", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'seg-2.dcm'}: SEG"), "the second area's, of two"
    assert not out.exists()
    done = segment(archive.dicomweb_url, header(paths[0]), "--max-pixels", "70000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stored: SEG") == 1
    assert "a scanned area of the slide gets no result: the slide is 350x300 px" in done.stderr
    assert [level.TotalPixelMatrixColumns for level in results(archive, header(paths[0]))] == [300]


@pytest.mark.parametrize("name", ["brown", "pas"])
def test_a_slide_that_is_not_he_is_segmented_with_a_warning_if_a_person_asks_for_it(archive, tmp_path, name):
    """The watcher does not answer it: tests/integration/test_dicomweb_watch.py."""
    image = cmu1(700, 600)
    paths = write_slide(tmp_path, brown(image) if name == "brown" else image, name=name)
    if name == "pas":
        paths = [changed(path, SpecimenDescriptionSequence=stained_with_pas()) for path in paths]
    archive.send(paths)
    slide = header(paths[0])
    done = segment(archive.dicomweb_url, slide)
    words = {"brown": "has the colours of haematoxylin and eosin", "pas": "header names other stains"}[name]
    assert words in done.stderr
    assert told(done)
    for level in results(archive, slide):
        [algorithm] = level.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
        assert algorithm.AlgorithmParameters.endswith(",warnings=out_of_distribution")


def test_a_report_is_stored_beside_the_result_where_that_is_asked_for(archive, tmp_path):
    paths = write_slide(tmp_path, cmu1(700, 600), name="report")
    archive.send(paths)
    slide = header(paths[0])
    done = segment(archive.dicomweb_url, slide, "--report")
    client = DICOMwebClient(archive.dicomweb_url)
    [found] = client.search_for_instances(slide.StudyInstanceUID, search_filters={"Modality": "SR"})
    uids = (found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    report = client.retrieve_instance(*uids)
    assert f" and 1 coarser, SR {report.SOPInstanceUID}: " in done.stdout

    seg = fetched(archive, slide, told(done))
    shares = [float(share) for share in re.findall(r"([0-9.]+)%", done.stdout)]
    mm2 = 350 * 300 * (2 * CMU1_UM_PER_PX / 1000) ** 2
    read = MeasurementReport.from_sequence([report])
    groups = read.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(seg.SegmentSequence) == 3
    for number, (group, share) in enumerate(zip(groups, shares, strict=False), start=1):
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        [cited] = group.referenced_segment.referenced_segment_numbers
        assert cited == number
        fraction, area = (measured.value for measured in group.get_measurements())
        assert fraction == pytest.approx(share, abs=0.06)
        assert area == pytest.approx(fraction / 100 * mm2, rel=1e-3, abs=1e-6)
    assert segment(archive.dicomweb_url, slide, "--report").stdout.startswith("already stored")

    archive.delete(seg.SOPInstanceUID)
    again = segment(archive.dicomweb_url, slide, "--report")
    assert again.stdout == done.stdout, "the same UIDs"
    [kept] = client.search_for_instances(slide.StudyInstanceUID, search_filters={"Modality": "SR"})
    assert kept["00080018"]["Value"][0] == report.SOPInstanceUID


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
            found = [opened.areas[0].checked_header(level).SOPInstanceUID for level in range(3)]
            assert found == [header(path).SOPInstanceUID for path in paths]


def test_what_is_no_slide_or_not_there_is_said_in_one_line(archive, tmp_path, refused):
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
        status, said = refused(archive.dicomweb_url, dataset, *flags)
        assert status == 1
        assert re.fullmatch(rf"Error: .*{message}.*\n", said), said
        assert "1.2.826" not in said


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
def test_what_cannot_work_is_said_in_one_line(refused, url, env, status, message):
    nowhere = pydicom.Dataset()
    nowhere.StudyInstanceUID = nowhere.SeriesInstanceUID = "1.2.3"
    found, said = refused(url.format(port=free_port()), nowhere, env={"TESSERA_DICOMWEB_HOSTS": "127.0.0.1", **env})
    assert found == status
    assert message in said
    assert said.count("\n") == 1


def test_credentials_of_the_environment_open_a_closed_archive(tmp_path):
    users: dict[str, Any] = {"AuthenticationEnabled": True, "RegisteredUsers": {"reader": "word-of-the-reader"}}
    paths = write_slide(tmp_path, cmu1(300, 300), name="closed", downsamples=(1,))
    with running_orthanc(tmp_path / "orthanc", **users) as closed:
        closed.send(paths)
        hosts = {"TESSERA_DICOMWEB_HOSTS": "127.0.0.1"}
        denied = as_process(closed.dicomweb_url, header(paths[0]), env=hosts)
        assert denied.returncode == 1
        assert "denies access (401)" in denied.stderr
        known = {"TESSERA_DICOMWEB_USERNAME": "reader", "TESSERA_DICOMWEB_PASSWORD": "word-of-the-reader"}
        assert told(as_process(closed.dicomweb_url, header(paths[0]), env={**hosts, **known}))
