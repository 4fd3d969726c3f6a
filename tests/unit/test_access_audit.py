import copy
import json
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.access.audit import AuditLog
from app.errors import AccessUnusable, AuditUnavailable
from tests.full_disk import full_at


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path):
    opened = AuditLog(path)
    yield opened
    opened.close()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_for_the_owner_alone(path):
    for number in range(2):
        log = AuditLog(path)
        log.write({"number": number, "name": "é\n"})
        log.close()
    assert lines(path) == [{"number": 0, "name": "é\n"}, {"number": 1, "name": "é\n"}]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_moved_away_is_followed_by_a_new_one(path, log):
    log.write({"number": 0})
    path.rename(path.with_suffix(".1"))
    log.write({"number": 1})
    path.unlink()
    path.touch(mode=0o640)  # as logrotate makes it
    log.write({"number": 2})
    assert lines(path.with_suffix(".1")) == [{"number": 0}]
    assert lines(path) == [{"number": 2}]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_emptied_in_its_place_is_written_from_its_start(path, log):
    log.write({"number": 0})
    os.truncate(path, 0)
    log.write({"number": 1})
    assert lines(path) == [{"number": 1}]


def test_processes_tear_no_line_of_each_other(path, log):
    def write() -> None:
        for number in range(200):
            log.write({"pid": os.getpid(), "number": number, "filling": "x" * 5000})

    processes = [multiprocessing.get_context("fork").Process(target=write) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(lines(path)) == 400


def test_a_full_disk_is_an_error():
    log = AuditLog(Path("/dev/full"))
    with pytest.raises(AuditUnavailable, match="cannot be written"):
        log.write({})
    log.close()


def test_a_device_that_takes_nothing_is_known_before_it_is_written_to():
    log = AuditLog(Path("/dev/full"))
    assert log.trouble
    log.close()


def test_a_pipe_is_usable_while_somebody_reads_it_and_is_never_waited_for():
    """As standard output is in a container: a file system that is asked for a pipe's free space says none."""
    heard, spoken = os.pipe()
    log = AuditLog(Path(f"/dev/fd/{spoken}"))
    assert log.trouble is None
    log.write({"number": 0})
    assert json.loads(os.read(heard, 2**16)) == {"number": 0}
    with pytest.raises(AuditUnavailable):
        for _ in range(2**16):
            log.write({"filling": "x" * 1000})
    assert log.trouble
    os.read(heard, 2**16)
    log.write({"number": 1})
    assert log.trouble is None
    os.close(heard)
    assert log.trouble
    log.close()
    os.close(spoken)


def test_after_a_line_that_could_not_be_written_the_next_one_is_in_doubt_until_one_is_or_for_some_seconds(path):
    now = 100 * 10**9
    log = AuditLog(path, lambda: now)
    assert log.trouble is None
    with full_at(0), pytest.raises(AuditUnavailable):  # a quota, of which the free space of the disk says nothing
        log.write({"number": 0})
    assert log.trouble
    now += 11 * 10**9
    assert log.trouble is None
    with full_at(0), pytest.raises(AuditUnavailable):
        log.write({"number": 1})
    assert log.trouble
    log.write({"number": 2})
    assert log.trouble is None
    assert lines(path) == [{"number": 2}]
    log.close()


def test_what_keeps_a_line_from_being_written_is_named_also_where_another_process_met_it(path, log, monkeypatch):
    def fail() -> None:
        with full_at(0), pytest.raises(AuditUnavailable):
            log.write({"number": 0})

    other = multiprocessing.get_context("fork").Process(target=fail)
    other.start()
    other.join()
    refused = "; images are refused until a line can be appended to it"
    assert log.trouble == f"the audit log {path} cannot be written: file too large{refused}"
    log.write({"number": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=0))
        assert log.trouble == f"the audit log {path} cannot be written: no space left on device{refused}"
    path.unlink()
    path.mkdir()
    assert log.trouble == f"the audit log {path} cannot be written: is a directory{refused}"


def test_a_line_cut_short_is_an_error_and_the_next_begins_on_its_own(path, log, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:5]))
    with pytest.raises(AuditUnavailable):
        log.write({"number": 0})
    monkeypatch.undo()
    log.write({"number": 1})
    log.write({"number": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [{"number": 1}, {"number": 2}]


def test_a_process_that_follows_late_begins_a_line_of_its_own_too(path, log, monkeypatch):
    """Of two that share what is known of the file, one wrote to the new one long before."""
    late = copy.copy(log)
    late._handle = os.dup(log._handle)
    path.rename(path.with_suffix(".1"))
    log.write({"number": 0})
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:5]))
    with pytest.raises(AuditUnavailable):
        log.write({"number": 1})
    monkeypatch.undo()
    assert late.trouble
    late.write({"number": 2})
    late.close()
    first, _cut_off, last = path.read_text().splitlines()
    assert [json.loads(first), json.loads(last)] == [{"number": 0}, {"number": 2}]


def test_whoever_comes_after_a_line_cut_short_begins_a_new_one(path, log, monkeypatch):
    def cut_short() -> None:
        write = os.write
        monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:5]))
        with pytest.raises(AuditUnavailable):
            log.write({"number": 0})

    other = multiprocessing.get_context("fork").Process(target=cut_short)  # another front, and a full disk
    other.start()
    other.join()
    log.write({"number": 1})
    log.write({"number": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [{"number": 1}, {"number": 2}]


@pytest.mark.parametrize("left", ["", '{"number": 0}\n', '{"numb'])
def test_a_file_that_was_left_within_a_line_goes_on_with_another(path, left):
    path.write_text(left)
    log = AuditLog(path)
    log.write({"number": 1})
    log.close()
    assert path.read_text() == (left + "\n" if left.endswith("b") else left) + '{"number": 1}\n'


def test_a_folder_that_is_gone_is_an_error(path, log):
    path.unlink()
    path.parent.rmdir()
    with pytest.raises(AuditUnavailable):
        log.write({})


def test_what_cannot_be_opened_is_refused_at_once(tmp_path):
    for path, words in ((tmp_path, "is a directory"), (tmp_path / "none" / "log", "no such file")):
        with pytest.raises(AccessUnusable, match=words):
            AuditLog(path)
