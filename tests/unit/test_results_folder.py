"""Results in a folder: whole, or not there."""

import os
import re
from errno import ENOENT, ENOSPC
from pathlib import Path

import pytest

from app.segmentation.folder import FileResult, problem_of, replacing
from app.segmentation.results_table import read_table, without, write_table


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text("before")
    with replacing(path) as partial:
        partial.write_text("after")
        assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "after"


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
