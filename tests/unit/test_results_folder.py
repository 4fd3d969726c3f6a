"""Results in a folder: whole, or not there."""

import pytest

from app.segmentation.folder import FileResult, replacing, write_table


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


def test_a_row_without_result_is_as_wide_as_the_others(tmp_path):
    results = [FileResult(tmp_path / "a", ("1", "2")), FileResult(tmp_path / "b", problem="damaged, or not a slide")]
    write_table(results, ["one", "two"], tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines() == [
        "file,one,two,problem",
        f"{tmp_path / 'a'},1,2,",
        f'{tmp_path / "b"},,,"damaged, or not a slide"',
    ]
