"""`tessera slide`: whole-slide files without a server."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
from click.testing import CliRunner
from PIL import Image

from app.cli import main
from app.inference.model import BatchedSegmenter
from app.inference.result import BatchResult
from app.pathology.arrays import RgbBatch
from app.pathology.classes import WSSS4LUAD
from tests.conftest import ROOT
from tests.pictures import encoded, noise
from tests.slides import CMU1_UM_PER_PX, brown, cmu1
from tests.whole_slides import PATIENT, with_a_hole, write_svs, write_tiff

COLOURS = np.array([tissue.color for tissue in WSSS4LUAD], np.uint8)


def run(*arguments: object):
    return CliRunner().invoke(main, ["slide", *map(str, arguments), "--device", "cpu"])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "slides.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_masks_polygons_overlays_and_a_table(tmp_path):
    folder, out = tmp_path / "slides", tmp_path / "out"
    folder.mkdir()
    image = cmu1(1536, 1152)
    write_svs(folder / "a.svs", image, CMU1_UM_PER_PX)
    write_tiff(folder / "b.tif", [brown(image)], (0.5, 0.5))
    (folder / "notes.txt").write_text("no slide")
    result = run(folder, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"2 of 2 slides segmented; table: {out / 'slides.csv'}" in result.output
    assert [Path(row["file"]).name for row in table(out)] == ["a.svs", "b.tif"]
    assert [row["warnings"] for row in table(out)] == ["", "out_of_distribution"]
    said = [line for line in result.stderr.splitlines() if "warning" in line]
    assert [line.split(": ")[0] for line in said] == [str(folder / "b.tif")]
    endings = ("_mask.tif", ".geojson", "_overlay.png")
    assert sorted(entry.name for entry in out.iterdir()) == sorted(
        ["slides.csv", *(name + ending for name in "ab" for ending in endings)]
    )
    for row in table(out):
        name = Path(row["file"]).stem
        with Image.open(out / f"{name}_mask.tif") as mask, openslide.OpenSlide(out / f"{name}_mask.tif") as slide:
            class_map = np.asarray(mask)
            seen = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.0, rel=0.01)
        assert (seen[..., :3] == COLOURS[class_map]).all()
        assert class_map.shape == (576, 768)
        fractions = [float(row[f"{tissue.name}_fraction"]) for tissue in WSSS4LUAD]
        assert np.allclose(fractions, np.bincount(class_map.ravel(), minlength=4) / class_map.size, atol=1e-6)
        mm2 = sum(float(row[f"{tissue.name}_mm2"]) for tissue in WSSS4LUAD)
        assert mm2 == pytest.approx(1536 * 1152 * float(row["um_per_px"]) ** 2 / 1e6, abs=3e-4)
        features = json.loads((out / f"{name}.geojson").read_text())["features"]
        for tissue, fraction in zip(WSSS4LUAD[:3], fractions, strict=False):
            drawn = [
                shapely.geometry.shape(each["geometry"])
                for each in features
                if each["properties"]["name"] == tissue.name
            ]
            assert sum(each.area for each in drawn) / (1536 * 1152) == pytest.approx(fraction, abs=0.02)
            assert all(shapely.box(0, 0, 1536, 1152).covers(each) for each in drawn)
    assert PATIENT not in result.output
    assert not any(PATIENT.encode() in entry.read_bytes() for entry in out.iterdir())


def test_broken_files_are_named_and_spare_the_others(tmp_path):
    good = write_svs(tmp_path / "good.svs", cmu1(512, 512))
    half = write_svs(tmp_path / "half.svs", noise(512, 512))
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    holed = with_a_hole(write_svs(tmp_path / "holed.svs", noise(512, 512)))
    (tmp_path / "picture.tif").write_bytes(encoded(noise(30, 30), "TIFF"))
    result = run(half, tmp_path / "picture.tif", holed, good, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "1 of 4 slides segmented" in result.output
    rows = table(tmp_path / "out")
    assert "or one whose end is missing" in rows[0]["problem"]
    assert "pictures are segmented by `tessera segment`" in rows[1]["problem"]
    assert "the whole-slide file is damaged" in rows[2]["problem"]
    assert rows[3]["problem"] == ""
    for row in rows[:3]:
        assert f"{row['file']}: {row['problem']}" in result.stderr.splitlines()
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == [
        "good.geojson",
        "good_mask.tif",
        "good_overlay.png",
        "slides.csv",
    ]


def test_a_slide_that_is_too_large_is_refused(tmp_path):
    result = run(write_svs(tmp_path / "x.svs", cmu1(512, 512)), "--out", tmp_path / "out", "--max-pixels", 1000)
    assert result.exit_code == 1
    assert "over the 1000 px allowed; ask for a coarser --um-per-px or allow more --max-pixels" in result.output
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["slides.csv"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [folder], "no whole-slide files in these folders"),
        (lambda folder: [folder / "missing.svs"], "does not exist"),
        (
            lambda folder: [_slide(folder / "a" / "x.svs"), _slide(folder / "b" / "x.tif")],
            "would have results of one name",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, make, message):
    result = run(*make(tmp_path), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_results_do_not_go_where_slides_lie(tmp_path):
    write_svs(tmp_path / "x.svs", noise(64, 64))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "y.svs").symlink_to(tmp_path / "x.svs")
    for given, out in (
        (tmp_path, tmp_path),
        (tmp_path / "x.svs", tmp_path / "links" / ".."),
        (tmp_path / "links", tmp_path),
        (tmp_path / "links", tmp_path / "links"),
    ):
        result = run(given, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].endswith(".svs lies in the folder of --out; choose another --out")
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["links", "x.svs", "y.svs"]


@pytest.mark.parametrize("ending", ["_mask.tif", ".geojson", "_overlay.png"])
def test_a_result_replaces_no_file_that_is_none(tmp_path, ending):
    own, slide = tmp_path / "out" / f"x{ending}", write_svs(tmp_path / "x.svs", noise(64, 64))
    own.parent.mkdir()
    own.write_text("drawn by hand")
    result = run(slide, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"Error: {own} would be replaced by a result, and slides.csv names no file that it is the result of; move or"
        " delete it, or choose another --out"
    )
    assert own.read_text() == "drawn by hand"
    assert [entry.name for entry in own.parent.iterdir()] == [own.name]


def test_a_second_run_adds_to_the_table_and_replaces_its_own_results(tmp_path):
    out = tmp_path / "out"
    one, two, three = (write_svs(tmp_path / f"{name}.svs", noise(64, 64)) for name in ("one", "two", "three"))
    assert run(one, two, "--out", out).exit_code == 0
    first, second = table(out)
    two.write_bytes(b"no slide any more")
    assert run(two, three, "--out", out).exit_code == 1
    rows = table(out)
    assert [Path(row["file"]).name for row in rows] == ["one.svs", "two.svs", "three.svs"]
    assert rows[0] == first
    assert rows[1]["code"] == ""
    assert "not a whole-slide file" in rows[1]["problem"]
    assert not second["problem"]
    assert not list(out.glob("two*"))
    assert len(list(out.glob("one*"))) == len(list(out.glob("three*"))) == 3
    assert run(one, "--out", out).exit_code == 0
    assert [Path(row["file"]).name for row in table(out)] == ["two.svs", "three.svs", "one.svs"]


def test_a_table_of_other_columns_is_refused(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    slide = write_svs(tmp_path / "x.svs", noise(64, 64))
    for content in (b"file,code,problem\r\nx.svs,T,\r\n", b"", b"\xff\xd8"):
        (out / "slides.csv").write_bytes(content)
        result = run(slide, "--out", out)
        assert result.exit_code == 2
        assert result.stderr.splitlines()[-1].startswith(f"Error: {out / 'slides.csv'} has other columns than this")
        assert (out / "slides.csv").read_bytes() == content
    assert [entry.name for entry in out.iterdir()] == ["slides.csv"]


def test_results_of_another_slide_of_the_same_name_are_not_replaced(tmp_path):
    one, other = _slide(tmp_path / "a" / "x.tif"), _slide(tmp_path / "b" / "x.tif")
    assert run(one, "--out", tmp_path / "out").exit_code == 0
    before = {entry: entry.read_bytes() for entry in (tmp_path / "out").iterdir()}
    result = run(other, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"has results of {one}, which those of {other} would replace" in result.stderr
    assert {entry: entry.read_bytes() for entry in (tmp_path / "out").iterdir()} == before


def test_a_file_under_two_names_is_segmented_once_and_that_is_said(tmp_path):
    """Names that begin with a dot are passed over, and what is named twice under one name needs no word."""
    folder = tmp_path / "slides"
    slide = _slide(folder / "a.tif")
    (folder / "b.tif").symlink_to(slide)
    (folder / "._a.tif").write_bytes(b"what macOS makes")
    result = run(folder, slide, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    left_out = [line for line in result.stderr.splitlines() if "left out" in line]
    assert left_out == [f"{folder / 'b.tif'}: left out, for it is the same file as {slide}"]
    assert [row["file"] for row in table(tmp_path / "out")] == [str(slide)]


def test_a_problem_names_its_file_once(tmp_path):
    gone = tmp_path / "folder" / "gone.tif"
    gone.parent.mkdir()
    gone.symlink_to(tmp_path / "nowhere")
    result = run(gone.parent, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{gone}: No such file or directory" in result.stderr.splitlines()
    assert table(tmp_path / "out")[0]["problem"] == "No such file or directory"


def test_a_folder_whose_name_is_no_utf8_takes_results(tmp_path):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    result = run(_slide(tmp_path / "a" / "x.tif"), "--out", out)
    assert result.exit_code == 0, result.output
    assert "1 of 1 slides segmented" in result.output
    assert run(tmp_path / "a" / "x.tif", "--out", out).exit_code == 0


@pytest.mark.parametrize("command", ["segment", "slide"])
def test_a_batch_may_take_any_time_in_a_command_that_nobody_waits_for(tmp_path, monkeypatch, command):
    """Before, its file failed and so did all that were left, whose earlier results were removed."""
    start = BatchedSegmenter.start

    async def start_slow(self: BatchedSegmenter, *arguments: Any) -> None:
        run = self._session.run

        def slow(batch: RgbBatch) -> BatchResult:
            getLogger("app.inference.session").warning("a GPU is present but not used")
            time.sleep(1)
            return run(batch)

        monkeypatch.setattr(self._session, "run", slow)
        await start(self, *arguments)

    monkeypatch.setattr(BatchedSegmenter, "start", start_slow)
    monkeypatch.setenv("TESSERA_STALL_TIMEOUT", "0.25")
    arguments = [_slide(tmp_path / "a" / "x.tif"), "--out", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(main, [command, *map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "a GPU is present" in result.stderr
    assert "a batch has run" not in result.stderr


def test_sigterm_ends_it_and_leaves_nothing_half_done(tmp_path):
    """The signal comes while a slide's first result is being written, and after another one's are."""
    out = tmp_path / "out"
    slides = [write_svs(tmp_path / f"{name}.svs", noise(64, 64)) for name in ("one", "two")]
    program = """if True:
        import os, signal
        from app.cli import main
        from app.segmentation import slide_files

        real = slide_files.write_mask_tiff

        def write(path, *arguments):
            real(path, *arguments)
            if "two" in path.name:
                os.kill(os.getpid(), signal.SIGTERM)

        slide_files.write_mask_tiff = write
        main()
    """
    command = [sys.executable, "-c", program, "slide", *slides, "--out", out, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Aborted!")
    assert "Traceback" not in done.stderr
    assert sorted(entry.name for entry in out.iterdir()) == [
        "one.geojson",
        "one_mask.tif",
        "one_overlay.png",
        "slides.csv",
    ]
    rows = {Path(row["file"]).name: row["problem"] for row in table(out)}
    assert rows == {"one.svs": "", "two.svs": "not finished: the run ended before"}


def test_a_run_that_was_killed_hinders_no_other(tmp_path):
    """Results whose row was never written are those of the slide that the table calls not finished."""
    out = tmp_path / "out"
    slide = write_svs(tmp_path / "x.svs", noise(64, 64))
    program = """if True:
        import os, signal
        from app.cli import main
        from app.segmentation import slide_files

        real = slide_files.replace

        def write(path, content):
            real(path, content)
            if path.name.endswith("_overlay.png"):
                os.kill(os.getpid(), signal.SIGKILL)

        slide_files.replace = write
        main()
    """
    command = [sys.executable, "-c", program, "slide", slide, "--out", out, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(out.glob("x*"))) == 3
    assert [row["problem"] for row in table(out)] == ["not finished: the run ended before"]
    assert run(slide, "--out", out).exit_code == 0
    assert [row["problem"] for row in table(out)] == [""]


def test_what_a_killed_run_left_half_written_goes_when_the_folder_is_used_again(tmp_path):
    out = tmp_path / "out"
    slide, other = write_svs(tmp_path / "x.svs", noise(64, 64)), write_svs(tmp_path / "y.svs", noise(64, 64))
    program = """if True:
        import os, signal
        from app.cli import main
        from app.segmentation import slide_files

        def write(path, *_):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        slide_files.write_mask_tiff = write
        main()
    """
    command = [sys.executable, "-c", program, "slide", slide, "--out", out, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (out / ".x_mask.tif.part").read_bytes() == b"half"
    (out / ".drawn.part").write_bytes(b"somebody else's")
    assert run(other, "--out", out).exit_code == 0
    hidden = sorted(entry.name for entry in out.iterdir() if entry.name.startswith("."))
    assert hidden == [".drawn.part"]
    assert [row["problem"] for row in table(out)] == ["not finished: the run ended before", ""]


def test_a_table_that_cannot_be_written_is_said_before_a_slide_is_segmented(tmp_path):
    (tmp_path / "out" / "slides.csv").mkdir(parents=True)
    result = run(write_svs(tmp_path / "x.svs", noise(64, 64)), "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {tmp_path / 'out' / 'slides.csv'}: Is a directory"
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["slides.csv"]


def test_without_its_packages_it_says_which_extra_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("app.libraries.find_spec", lambda name: None if name == "tifffile" else find_spec(name))
    result = run(_slide(tmp_path / "a" / "x.svs"), "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "Error: a whole-slide file needs the extra 'wsi'" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x.svs", "x.NDPI", "x.mrxs"])
def test_the_command_for_pictures_names_this_one(tmp_path, name):
    """An MRXS is a JPEG of the glass: without its suffix it would be read as a patch."""
    (tmp_path / name).write_bytes(encoded(noise(64, 64), "JPEG"))
    given = [tmp_path / name, "--out", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(main, ["segment", *map(str, given)])
    assert result.exit_code == 1
    assert f"{tmp_path / name}: a whole slide is segmented by `tessera slide`" in result.stderr.splitlines()
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["labels.csv"]


def test_the_command_for_pictures_names_this_one_for_a_tiff_of_several_levels(tmp_path):
    path = write_tiff(tmp_path / "x.tif", [noise(64, 64), noise(32, 32)])
    given = [path, "--out", tmp_path / "out", "--device", "cpu"]
    result = CliRunner().invoke(main, ["segment", *map(str, given)])
    assert result.exit_code == 1
    [problem] = [line for line in result.stderr.splitlines() if str(path) in line]
    assert problem.endswith("; a whole slide is segmented by `tessera slide`")


def _slide(path: Path) -> Path:
    path.parent.mkdir()
    return write_tiff(path, [noise(64, 64)])
