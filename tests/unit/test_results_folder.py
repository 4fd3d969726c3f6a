"""Results in a folder: whole, or not there."""

import fcntl
import os
import re
from errno import ENOENT, ENOSPC
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from app.cli.dicomweb import _write
from app.segmentation import results_table
from app.segmentation.folder import FileResult, all_or_none, locked, problem_of, replace, replacing
from app.segmentation.results_table import ResultsTable, read_table, unfinished, without, write_table
from tests.full_disk import full_at

UNFINISHED = "not finished: the run ended before"


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text("before")
    with replacing(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "after"


def test_what_a_file_holds_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """Else a machine that loses its power may leave an empty file in the place of one that was whole."""
    path, events = tmp_path / "x", []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append(os.fstat(file)), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *given: (events.append(given[0].stat()), rename(*given)))
    replace(path, b"after")
    assert [(event.st_ino, event.st_size) for event in events] == [(path.stat().st_ino, 5)] * 2
    events.clear()
    replace(path, b"again", lasting=False)
    assert len(events) == 1, "the disk is asked for nothing"


def test_what_a_killed_run_left_half_written_goes_with_a_files_results(tmp_path):
    slide = tmp_path / "x.svs"
    for name in ("x_a", ".x_a.part", ".x_b.part", ".x_c.part", ".y_a.part"):
        (tmp_path / name).write_bytes(b"left")
    with all_or_none(tmp_path, slide, ("_a", "_b")):
        assert sorted(entry.name for entry in tmp_path.iterdir()) == [".x_c.part", ".y_a.part"]


def test_the_files_whose_run_ended_before_are_known_from_their_rows(tmp_path):
    rows = [["/a.svs", "1", ""], ["/b.svs", "", "damaged"], ["/c.svs", "", UNFINISHED]]
    assert unfinished(rows) == [Path("/c.svs")]


@pytest.mark.parametrize("error", [OSError, ZeroDivisionError, KeyboardInterrupt])
def test_what_fails_half_way_leaves_nothing_and_what_was_there(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(error), replacing(path) as partial:
        partial.write_text("half")
        raise error
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "before"


@pytest.mark.parametrize("error", [OSError(ENOSPC, "No space left on device"), OSError("no such codec")])
def test_what_cannot_be_written_is_named_and_not_the_file_beside_it(tmp_path, error):
    """As where a library writes, which does not say where to."""
    with pytest.raises(OSError, match=re.escape(error.strerror or str(error))) as raised, replacing(tmp_path / "x"):
        raise error
    assert problem_of(raised.value, tmp_path / "x.svs") == f"{tmp_path / 'x'}: {error.strerror or error}"
    assert problem_of(error, tmp_path / "x.svs") == (error.strerror or str(error))


def test_a_segmentation_for_which_the_disk_has_no_room_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("app.interop.dicom_file.to_bytes", lambda _: bytes(10_000))
    file = tmp_path / "seg.dcm"
    file.write_bytes(b"before")
    with full_at(5000), pytest.raises(click.ClickException, match=re.escape(f"{file}: File too large")):
        _write(SimpleNamespace(pyramid=[None]), file)
    assert file.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["seg.dcm"]


def test_a_segmentation_goes_into_a_pipe_and_not_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr("app.interop.dicom_file.to_bytes", lambda _: b"a result")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        _write(SimpleNamespace(pyramid=[None]), pipe)
        assert reader.read() == b"a result"
    assert pipe.is_fifo()


def test_a_segmentation_goes_where_a_link_leads(tmp_path, monkeypatch):
    monkeypatch.setattr("app.interop.dicom_file.to_bytes", lambda _: b"a result")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    _write(SimpleNamespace(pyramid=[None]), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"a result"


def test_a_problem_with_the_file_itself_does_not_name_it_again(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "x").read_bytes()
    assert problem_of(raised.value, tmp_path / "x") == "No such file or directory"


def test_a_problem_can_be_printed_whatever_its_file_is_called(tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    assert problem_of(FileNotFoundError(ENOENT, "gone", str(odd)), tmp_path) == f"{tmp_path}/\ufffd: gone"


def test_a_table_is_read_as_it_was_written(tmp_path):
    odd = tmp_path / os.fsdecode(b"a\xff,\n.svs")
    written = [FileResult(odd, ("1", "2")), FileResult(tmp_path / "b.svs", problem="damaged,\r\nor not a slide")]
    write_table(written, ["one", "two"], tmp_path / "x.csv")
    rows = read_table(["one", "two"], tmp_path / "x.csv")
    assert rows == [
        [f"{tmp_path}/a\\udcff,\n.svs", "1", "2", ""],
        [str(tmp_path / "b.svs"), "", "", "damaged,\r\nor not a slide"],
    ]
    assert without(rows, [odd]) == rows[1:]
    assert without(rows, [Path("elsewhere/b.tif")]) == rows[:1]
    write_table([], ["one", "two"], tmp_path / "y.csv", rows)
    assert (tmp_path / "y.csv").read_bytes() == (tmp_path / "x.csv").read_bytes()
    assert read_table(["one"], tmp_path / "x.csv") is None
    assert read_table(["one"], tmp_path / "none.csv") == []


def test_a_row_without_result_is_as_wide_as_the_others(tmp_path):
    results = [FileResult(tmp_path / "a", ("1", "2")), FileResult(tmp_path / "b", problem="damaged, or not a slide")]
    write_table(results, ["one", "two"], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text("utf-8").splitlines() == [
        "file,one,two,problem",
        f"{tmp_path / 'a'},1,2,",
        f'{tmp_path / "b"},,,"damaged, or not a slide"',
    ]


@pytest.fixture
def earlier(tmp_path) -> ResultsTable:
    """The table of a second run over ten files, all of which have rows of the first."""
    files, path = [tmp_path / f"{number}.png" for number in range(10)], tmp_path / "x.csv"
    write_table([FileResult(file, ("old",)) for file in files], ["one"], path)
    rows = read_table(["one"], path)
    assert rows is not None
    return ResultsTable(path, ["one"], files, rows)


def said(table: ResultsTable) -> dict[str, str]:
    """Return what the table on disk says of each file."""
    return {Path(name).stem: value or problem for name, value, problem in read_table(["one"], table.path) or []}


def test_a_row_of_an_earlier_run_stays_until_its_files_turn_comes(earlier):
    assert set(said(earlier).values()) == {"old"}
    turns = earlier.turns()
    first, second = next(turns), next(turns)
    now = said(earlier)
    assert now.pop("0") == now.pop("1") == UNFINISHED
    assert set(now.values()) == {"old"}
    earlier.add(FileResult(second, ("new",)))
    earlier.write()
    assert said(earlier) == {"0": UNFINISHED, "1": "new"} | dict.fromkeys("23456789", "old")
    assert earlier.results == [FileResult(second, ("new",))]
    assert first.stem == "0"


def test_the_table_is_written_less_often_than_files_are_done_and_is_never_behind_their_results(earlier, monkeypatch):
    """However long they take: it tells of some turns before they come, and at the end of none that did not."""
    monkeypatch.setattr(results_table, "_SECONDS_BETWEEN", 3600.0)
    real, written = results_table.replace, []
    monkeypatch.setattr(results_table, "replace", lambda path, data: (written.append(path), real(path, data)))
    earlier.write()
    for number, path in enumerate(earlier.turns()):
        assert said(earlier)[path.stem] == UNFINISHED
        if number == 8:
            break
        earlier.add(FileResult(path, ("new",)))
    assert len(written) < 6
    earlier.write()
    assert said(earlier) == {**dict.fromkeys("01234567", "new"), "8": UNFINISHED, "9": "old"}


def test_the_table_is_written_with_each_file_that_takes_long(earlier, monkeypatch):
    monkeypatch.setattr(results_table, "_SECONDS_BETWEEN", 1e-9)
    for path in earlier.turns():
        assert list(said(earlier).values()).count(UNFINISHED) == 1
        earlier.add(FileResult(path, ("new",)))
        assert said(earlier)[path.stem] == "new"


def test_a_lock_lets_in_one_at_a_time_and_leaves_nothing(tmp_path):
    path = tmp_path / ".lock"
    with locked(path), pytest.raises(BlockingIOError), locked(path):
        pass
    with locked(path):
        assert path.exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_was_removed_meanwhile_is_not_had(tmp_path, monkeypatch):
    """Its holder ended between this one's opening it and locking it; a third may have another by now."""
    path = tmp_path / ".lock"
    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *given: (path.unlink(), real(*given)))
    with pytest.raises(BlockingIOError), locked(path):
        pass
