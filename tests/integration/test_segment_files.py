"""`tessera segment`: the same without a server."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from errno import EACCES, ENOLCK, ENOSPC
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from click.testing import CliRunner

from app.cli import main
from app.segmentation import files, results_table
from app.segmentation.folder import locked, replace
from tests.conftest import ROOT
from tests.faulty_bundle import STUCK, image_that, write_faulty_bundle
from tests.pictures import WHITE, encoded, noise, opened, plain

PATCHES = ROOT / "examples" / "patches"


def run(*arguments: object):
    return CliRunner().invoke(main, ["segment", *map(str, arguments), "--device", "cpu"])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_masks_overlays_and_a_table(tmp_path):
    result = run(PATCHES, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = table(tmp_path / "out")
    assert [Path(row["file"]).stem for row in rows] == sorted(path.stem for path in PATCHES.glob("*.png"))
    for row in rows:
        name = Path(row["file"]).stem
        mask = opened((tmp_path / "out" / f"{name}_mask.png").read_bytes())
        overlay = opened((tmp_path / "out" / f"{name}_overlay.png").read_bytes())
        assert mask.size == overlay.size == (int(row["width_px"]), int(row["height_px"]))
        fractions = [float(row[f"{tissue}_fraction"]) for tissue in ("tumor", "stroma", "normal", "background")]
        counts = np.bincount(np.asarray(mask).ravel(), minlength=4) / np.asarray(mask).size
        assert np.allclose(fractions, counts, atol=1e-6)
        assert row["problem"] == ""
    assert not list((tmp_path / "out").glob(".*"))


def test_files_and_service_say_the_same(tmp_path, service):
    path = PATCHES / "cmu1-skin-1.png"
    run(path, "--out", tmp_path)
    answer = httpx.post(
        f"{service.url}/segment",
        content=path.read_bytes(),
        headers={"Content-Type": "image/png", "Accept": "image/png"},
    )
    assert (tmp_path / "cmu1-skin-1_mask.png").read_bytes() == answer.content
    assert table(tmp_path)[0]["code"] == answer.headers["tessera-code"]


def test_warnings_are_printed_and_stand_in_the_table(tmp_path):
    (tmp_path / "blank.png").write_bytes(encoded(plain(WHITE, 40, 40)))
    result = run(tmp_path / "blank.png", PATCHES / "cmu1-skin-2.png", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [row["warnings"] for row in table(tmp_path / "out")] == ["low_tissue", ""]
    said = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'blank.png'}: warning: Only 0.0% of the patch is stained")


def test_a_bad_file_is_named_and_spares_the_others(tmp_path):
    (tmp_path / "broken.png").write_bytes(encoded(noise(30, 30))[:500])
    (tmp_path / "good.png").write_bytes(encoded(noise(30, 30)))
    result = run(tmp_path / "broken.png", tmp_path / "good.png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "broken.png: the image is truncated or damaged" in result.output
    assert "1 of 2 images segmented" in result.output
    broken, good = table(tmp_path / "out")
    assert "truncated" in broken["problem"]
    assert good["problem"] == ""
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "good_mask.png",
        "good_overlay.png",
        "labels.csv",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [folder], "no images in these folders"),
        (lambda folder: [folder / "missing.png"], "does not exist"),
        (
            lambda folder: [_image(folder / "a" / "x.png"), _image(folder / "b" / "x.tif")],
            "would have results of one name",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, make, message):
    result = run(*make(tmp_path), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_result_never_replaces_an_input(tmp_path):
    image, truth = tmp_path / "x.png", tmp_path / "x_mask.png"
    for path in (image, truth):
        path.write_bytes(encoded(noise(8, 8)))
    before = truth.read_bytes()
    result = run(tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert "x.png lies in the folder of --out; choose another --out" in result.output
    assert truth.read_bytes() == before


def test_a_result_that_cannot_be_written_is_said_and_spares_the_others(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encoded(noise(8, 8)))

    def write(path: Path, content: bytes, *, lasting: bool) -> None:
        if path.name == "a_overlay.png":
            raise OSError(ENOSPC, "No space left on device", str(path))
        replace(path, content, lasting=lasting)

    monkeypatch.setattr(files, "replace", write)
    out = tmp_path / "out"
    result = run(tmp_path / "a.png", tmp_path / "b.png", "--out", out)
    assert result.exit_code == 1
    bad, good = table(out)
    assert bad["problem"] == f"{out / 'a_overlay.png'}: No space left on device"
    assert good["problem"] == ""
    assert sorted(entry.name for entry in out.iterdir()) == ["b_mask.png", "b_overlay.png", "labels.csv"]


def test_a_table_that_cannot_be_written_is_said_before_an_image_is_segmented(tmp_path):
    (tmp_path / "out" / "labels.csv").mkdir(parents=True)
    result = run(PATCHES / "cmu1-skin-1.png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"Error: {tmp_path / 'out' / 'labels.csv'}: Is a directory"
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["labels.csv"]


def test_a_table_that_cannot_be_written_any_more_is_said_after_what_else_there_is_to_say(tmp_path, monkeypatch):
    """Once the work is done, as on a disk that it filled."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    real = results_table.replace

    def write(path: Path, content: bytes) -> None:
        if b"not an image" in content:
            raise OSError(ENOSPC, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(results_table, "replace", write)
    result = run(tmp_path / "broken.png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    problem, said = result.stderr.splitlines()[-2:]
    assert "broken.png: not an image in a known format" in problem
    assert said == f"Error: {tmp_path / 'out' / 'labels.csv'}: No space left on device"
    assert table(tmp_path / "out")[0]["problem"] == "not finished: the run ended before"


@pytest.mark.parametrize("ending", ["_mask.png", "_overlay.png"])
def test_a_result_replaces_no_file_that_is_none(tmp_path, ending):
    own = tmp_path / "out" / f"cmu1-skin-1{ending}"
    own.parent.mkdir()
    own.write_text("drawn by hand")
    result = run(PATCHES, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{own} would be replaced by a result, and labels.csv names no file" in result.stderr
    assert own.read_text() == "drawn by hand"
    assert [entry.name for entry in own.parent.iterdir()] == [own.name]


def test_a_second_run_adds_to_the_table_and_replaces_its_own_results(tmp_path):
    out, one, two = tmp_path / "out", tmp_path / "one.png", tmp_path / "two.png"
    one.write_bytes(encoded(noise(8, 8)))
    two.write_bytes(encoded(noise(8, 8)))
    assert run(one, two, "--out", out).exit_code == 0
    first = table(out)[0]
    two.write_bytes(b"no image any more")
    assert run(two, "--out", out).exit_code == 1
    kept, failed = table(out)
    assert kept == first
    assert "not an image" in failed["problem"]
    assert sorted(entry.name for entry in out.iterdir()) == ["labels.csv", "one_mask.png", "one_overlay.png"]


def test_results_of_another_image_of_the_same_name_are_not_replaced(tmp_path):
    one, other = _image(tmp_path / "a" / "x.png"), _image(tmp_path / "b" / "x.png")
    assert run(one, "--out", tmp_path / "out").exit_code == 0
    before = {entry: entry.read_bytes() for entry in (tmp_path / "out").iterdir()}
    result = run(other, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"has results of {one}, which those of {other} would replace" in result.stderr
    assert {entry: entry.read_bytes() for entry in (tmp_path / "out").iterdir()} == before


def test_a_relative_path_is_that_of_the_folder_where_it_was_given(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        _image(tmp_path / folder / "x.png")
    monkeypatch.chdir(tmp_path / "a")
    assert run("x.png", "--out", tmp_path / "out").exit_code == 0
    assert [row["file"] for row in table(tmp_path / "out")] == [str(tmp_path / "a" / "x.png")]
    monkeypatch.chdir(tmp_path / "b")
    refused = run("x.png", "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert f"has results of {tmp_path / 'a' / 'x.png'}, which those of x.png would replace" in refused.stderr
    for same in ("../a/x.png", tmp_path / "a" / "x.png"):
        assert run(same, "--out", tmp_path / "out").exit_code == 0


def test_a_second_run_at_the_same_time_is_refused_before_it_writes(tmp_path):
    image, out = _image(tmp_path / "a" / "x.png"), tmp_path / "out"
    out.mkdir()
    with locked(out / ".tessera.lock"):
        before = sorted(out.iterdir())
        refused = run(image, "--out", out)
        assert sorted(out.iterdir()) == before
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        f"Error: another run writes to {out}; wait until it ends, or choose another --out"
    ]
    assert run(image, "--out", out).exit_code == 0
    assert not list(out.glob(".*"))


def test_results_that_differ_in_case_alone_are_refused_where_a_disk_takes_their_names_for_one(tmp_path):
    """Where it does, the lock is there under another name too."""
    images, out = [_image(tmp_path / "a" / "X.png"), _image(tmp_path / "b" / "x.png")], tmp_path / "out"
    assert run(*images, "--out", out).exit_code == 0
    (out / ".TESSERA.LOCK").touch()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    refused = run(*images, "--out", out)
    assert refused.exit_code == 2
    assert f"{images[0]} and {images[1]} would have results of one name" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_where_a_disk_knows_no_locks_it_goes_on_without(tmp_path, monkeypatch):
    def unknown(*_: object) -> None:
        raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert run(_image(tmp_path / "a" / "x.png"), "--out", tmp_path / "out").exit_code == 0


def test_rows_say_which_model_answered(tmp_path):
    assert run(PATCHES / "cmu1-skin-1.png", "--out", tmp_path).exit_code == 0
    card = json.loads((ROOT / "app" / "bundle" / "int8" / "manifest.json").read_text(encoding="utf-8"))
    [row] = table(tmp_path)
    assert (row["model"], row["model_version"]) == (card["name"], card["version"])
    assert len(row["model_sha256"]) == 64


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_second_run_keeps_the_rows_of_what_it_did_not_reach(tmp_path, number):
    """Of eight images the first is at work, and with it as many as the cores allow."""
    out, images = tmp_path / "out", [_image(tmp_path / f"{each}" / f"{each}.png") for each in range(8)]
    assert run(*images, "--out", out).exit_code == 0
    first = table(out)
    program = f"""if True:
        import os
        from app.cli import main
        from app.segmentation import files

        files._write = lambda *_: os.kill(os.getpid(), {int(number)})
        main()
    """
    command = [sys.executable, "-c", program, "segment", *images, "--out", out, "--device", "cpu", "--cores", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode != 0
    rows = {row["file"]: row for row in table(out)}
    assert len(rows) == 8
    kept = [row for row in first if rows[row["file"]] == row]
    unfinished = [row for row in rows.values() if row["problem"].startswith("not finished")]
    assert len(kept) + len(unfinished) == 8
    assert len(kept) >= 4
    assert run(*images, "--out", out).exit_code == 0
    assert [row["problem"] for row in table(out)] == [""] * 8


def test_odd_entries_of_a_folder(tmp_path):
    """A name that is not in UTF-8 costs no table, a pipe holds nothing up, and who is named twice is one."""
    os.mkfifo(tmp_path / "pipe.png")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    odd.write_bytes(encoded(noise(8, 8)))
    (tmp_path / "a.png").write_bytes(encoded(noise(8, 8)))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    result = run(tmp_path, tmp_path / ".." / tmp_path.name / "a.png", "--out", tmp_path / "out")
    assert "2 of 3 images segmented" in result.output
    assert f"{tmp_path / 'gone.png'}: No such file or directory" in result.stderr.splitlines()
    assert [Path(row["file"]).name for row in table(tmp_path / "out")] == ["a.png", "gone.png", r"\udcff.png"]


def _image(path: Path) -> Path:
    path.parent.mkdir()
    path.write_bytes(encoded(noise(8, 8), "TIFF" if path.suffix == ".tif" else "PNG"))
    return path


def test_a_file_that_is_too_large_for_a_patch_is_refused_before_it_is_read(tmp_path):
    """The most is what such a patch has without compression; these files are sparse."""
    most = 8 * 2048**2 + 2**20
    for name, size in (("at.tif", most), ("over.tif", most + 1), ("picture.png", most + 1)):
        with (tmp_path / name).open("wb") as file:
            file.write(b"II*\0")
            file.truncate(size)
    result = run(*tmp_path.iterdir(), "--out", tmp_path / "out", "--max-side-px", 2048)
    assert result.exit_code == 1
    problems = {Path(row["file"]).name: row["problem"] for row in table(tmp_path / "out")}
    too_large = "the file has 35 MB, over the 35 MB that an image with sides of at most 2048 px may have"
    assert problems["picture.png"] == too_large
    assert problems["over.tif"] == f"{too_large}; a whole slide is segmented by `tessera slide`"
    assert "MB" not in problems["at.tif"]


def test_a_folder_that_may_be_listed_but_not_entered_is_said(tmp_path, monkeypatch):
    """As root every folder may be entered."""

    def denied(path: Path) -> bool:
        raise PermissionError(EACCES, "Permission denied", str(path))

    (tmp_path / "x.png").write_bytes(encoded(noise(8, 8)))
    monkeypatch.setattr(Path, "is_fifo", denied)
    result = run(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.output.splitlines() == [f"Error: {tmp_path / 'x.png'}: Permission denied"]


def test_where_memory_does_not_suffice_it_costs_that_image_alone(tmp_path, monkeypatch):
    def full(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(files, "paint_overlay", full)
    result = run(PATCHES / "cmu1-skin-1.png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert table(tmp_path / "out")[0]["problem"] == "there is no memory to segment this image now; try again later"


def test_sigterm_ends_it_and_leaves_no_file_half_written(tmp_path):
    """However often it comes; here while a mask is being written, and again while the model is being ended."""
    program = """if True:
        import asyncio, os, signal, time
        from app.cli import main
        from app.inference.model import BatchedSegmenter
        from app.segmentation import files, folder

        def replace(path, content, *, lasting):
            with folder.replacing(path, lasting=lasting) as partial:
                partial.write_bytes(content)
                if path.name == "two_mask.png":
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(1)  # it is taken on another thread

        real = BatchedSegmenter.close

        async def close(self):
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await asyncio.sleep(60)  # until that is taken
            finally:
                await real(self)

        files.replace = replace
        BatchedSegmenter.close = close
        main()
    """
    out = tmp_path / "out"
    images = [_image(tmp_path / name / f"{name}.png") for name in ("one", "two")]
    command = [sys.executable, "-c", program, "segment", images[0], "--out", out, "--device", "cpu"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=False).returncode == 1
    assert [row["problem"] for row in table(out)] == [""]
    command[4] = images[1]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Aborted!")
    assert "Traceback" not in done.stderr
    assert sorted(entry.name for entry in out.iterdir()) == ["labels.csv", "one_mask.png", "one_overlay.png"]
    assert [row["problem"] for row in table(out)] == ["", "not finished: the run ended before"]
    assert run(images[1], "--out", out).exit_code == 0


def test_a_pipe_that_is_named_is_a_problem_of_its_own(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    result = run(tmp_path / "x.png", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert table(tmp_path / "out")[0]["problem"] == "not a regular file"


def test_a_second_signal_ends_it_though_a_thread_is_stuck(tmp_path):
    program = """if True:
        import os, signal, threading
        from app.cli import main
        from app.segmentation import files

        def stuck(*_):
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            threading.Event().wait()

        files._read = stuck
        main()
    """
    image, out = _image(tmp_path / "one" / "one.png"), tmp_path / "out"
    command = [sys.executable, "-c", program, "segment", image, "--out", out, "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Aborted!")
    assert [row["problem"] for row in table(out)] == ["not finished: the run ended before"]


def test_a_second_signal_ends_it_though_the_model_is_stuck(tmp_path):
    program = """if True:
        import os, signal
        from app.cli import main
        from app.inference.model import BatchedSegmenter

        start, close = BatchedSegmenter.start, BatchedSegmenter.close

        async def started(self, *arguments):
            run = self._session.run

            def told(batch):
                os.kill(os.getpid(), signal.SIGTERM)
                return run(batch)

            self._session.run = told
            await start(self, *arguments)

        async def closed(self):
            os.kill(os.getpid(), signal.SIGINT)
            await close(self)

        BatchedSegmenter.start, BatchedSegmenter.close = started, closed
        main()
    """
    bundle, image, out = tmp_path / "faulty", tmp_path / "x.png", tmp_path / "out"
    write_faulty_bundle(bundle)
    image.write_bytes(encoded(image_that(STUCK)))
    command = [sys.executable, "-c", program, "segment", image, "--out", out, "--device", "cpu", "--bundle", bundle]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Aborted!")
    assert [row["problem"] for row in table(out)] == ["not finished: the run ended before"]


def test_where_standard_output_takes_nothing_that_is_said_in_a_line(tmp_path):
    image, out = _image(tmp_path / "one" / "one.png"), tmp_path / "out"
    command = [sys.executable, "-m", "app.cli", "segment", image, "--out", out, "--device", "cpu"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "Error: standard output: No space left on device")
    assert "Traceback" not in done.stderr


def test_a_folder_whose_name_is_no_utf8_takes_results(tmp_path):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    result = run(PATCHES / "cmu1-skin-1.png", "--out", out)
    assert result.exit_code == 0, result.output
    assert "1 of 1 images segmented" in result.output


def test_larger_patches_can_be_allowed(tmp_path):
    (tmp_path / "wide.png").write_bytes(encoded(noise(9000, 2)))
    arguments = [tmp_path / "wide.png", "--out", tmp_path / "out", "--max-side-px", 9000]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--max-pixels-at-once" in refused.output
    assert run(*arguments, "--max-pixels-at-once", 9000**2).exit_code == 0


def test_a_bundle_that_is_none_is_said(tmp_path):
    result = run(PATCHES, "--out", tmp_path / "out", "--bundle", tmp_path)
    assert result.exit_code == 1
    assert "manifest.json: cannot be read" in result.output
