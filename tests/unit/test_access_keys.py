import errno
import logging
import os
import re
from hashlib import sha256
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from app.access.callers import Caller, Scope
from app.access.keys import KeyFile, line_of, new_key
from app.cli import main
from app.errors import AccessUnusable, KeysUnavailable
from tests.fakes import Clock
from tests.full_disk import full_at

SEGMENT = frozenset({Scope.SEGMENT})
DIGEST = "0" * 64


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def write(path, *lines, mode=0o600):
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)


def test_a_key_is_random_and_told_by_its_prefix():
    assert re.fullmatch("tessera_[0-9a-f]{64}", new_key())
    assert new_key() != new_key()


def test_the_file_says_whose_a_key_is_and_never_holds_it(path):
    west, east = new_key(), new_key()
    callers = [Caller("west", SEGMENT, 600), Caller("east", frozenset({Scope.METRICS, Scope.ADMIN}))]
    write(path, "# keys", line_of(west, callers[0]), "", line_of(east, callers[1]) + "  # of Anna's")
    assert west not in path.read_text()
    assert sha256(west.encode()).hexdigest() in path.read_text()
    keys = KeyFile(path)
    assert [keys.caller_of(key) for key in (west, east, new_key())] == [*callers, None]


@pytest.mark.parametrize("shown", ["", "tessera_", "x" * 72, "tessera_" + "0" * 63, "tessera_" + "é" * 64])
def test_what_is_no_key_is_nobodys_even_where_the_file_has_its_digest(path, shown):
    write(path, line_of(shown, Caller("weak", SEGMENT)))
    assert KeyFile(path).caller_of(shown) is None


def test_a_changed_file_is_read_again_at_most_once_a_second(path, caplog):
    caplog.set_level(logging.INFO)
    first, second, clock = new_key(), new_key(), Clock()
    write(path, line_of(first, Caller("first", SEGMENT)))
    keys = KeyFile(path, clock)
    write(path, line_of(second, Caller("second-name", SEGMENT)))
    clock.now = 0.9
    assert keys.caller_of(first)
    clock.now = 1.0
    assert keys.caller_of(first) is None
    assert keys.caller_of(second)
    clock.now = 2.0
    assert keys.caller_of(second)
    assert [record.getMessage() for record in caplog.records] == ["API keys read again"]


def test_as_long_as_a_file_is_gone_or_others_may_write_to_it_no_key_is_told_right_from_wrong(path, caplog):
    key, clock = new_key(), Clock()
    line = line_of(key, Caller("west", SEGMENT))
    write(path, line)
    keys = KeyFile(path, clock)

    def spoils():
        yield path.unlink()
        yield write(path, line, mode=0o666)
        yield path.chmod(0o620)

    for round_, _ in enumerate(spoils()):
        caplog.clear()
        for clock.now in (10 * round_ + 1, 10 * round_ + 2):
            for shown in (key, new_key()):
                with pytest.raises(KeysUnavailable):
                    keys.caller_of(shown)
            assert keys.caller_of("no.key.atall") is None  # it may be a token
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        assert keys.trouble == caplog.records[0].getMessage()
        write(path, line)
        clock.now += 1
        assert keys.trouble is None
        assert keys.caller_of(key)
        assert keys.caller_of(new_key()) is None


def test_a_file_that_is_read_again_for_a_reload_is_no_trouble_any_more(path):
    clock = Clock()
    line = line_of(new_key(), Caller("west", SEGMENT))
    write(path, line)
    keys = KeyFile(path, clock)
    path.unlink()
    clock.now = 1.0
    assert "no such file" in keys.trouble
    write(path, line)
    keys.read()
    assert keys.trouble is None


def test_a_mended_file_is_taken_although_nothing_of_it_changed(path, monkeypatch):
    key, clock = new_key(), Clock()
    write(path, line_of(key, Caller("west", SEGMENT)))
    keys = KeyFile(path, clock)
    os.utime(path)
    clock.now = 1.0
    with monkeypatch.context() as broken:
        broken.setattr(Path, "open", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
        with pytest.raises(KeysUnavailable):
            keys.caller_of(key)
    clock.now = 2.0
    assert keys.caller_of(key)


def test_a_mark_of_its_encoding_before_the_first_line_locks_nobody_out(path):
    key = new_key()
    write(path, f"\ufeff{line_of(key, Caller('first', SEGMENT))}")
    assert KeyFile(path).caller_of(key)


def test_how_many_lines_do_not_count_is_known_until_they_are_mended(path):
    """A reload refuses such a file and so does the next start: by a restart, hours later, all would be down."""
    line, clock = line_of(new_key(), Caller("west", SEGMENT)), Clock()
    write(path, line)
    keys = KeyFile(path, clock)
    seen = []
    for number, lines in enumerate(((line,), (line, "a slip", line), (line,), (line, "another"), None, (line, "it"))):
        path.unlink() if lines is None else write(path, *lines)
        clock.now = number + 1.0
        seen.append(keys.faulty_lines)
    assert seen == [0, 2, 0, 1, 0, 1]
    with pytest.raises(AccessUnusable):
        keys.read()
    assert keys.faulty_lines == 1
    write(path, line)
    keys.read()
    assert keys.faulty_lines == 0


def test_a_slip_locks_out_nobody_else_and_lets_nobody_in_again(path, caplog):
    """The process missed the version in which the key was taken out and all else was right."""
    caplog.set_level(logging.WARNING)  # whatever a test before set
    stays, revoked, less, clock = new_key(), new_key(), new_key(), Clock()
    lines = [line_of(stays, Caller("stays", SEGMENT)), line_of(revoked, Caller("revoked", SEGMENT))]
    write(path, *lines, line_of(less, Caller("less", SEGMENT | {Scope.ADMIN})))
    keys = KeyFile(path, clock)
    write(path, lines[0], f"# {lines[1]}", line_of(less, Caller("less", SEGMENT)), "a slip")
    for clock.now in (1.0, 2.0, 3.0):
        assert keys.caller_of(stays)
        assert keys.caller_of(revoked) is None
        assert keys.caller_of(less) == Caller("less", SEGMENT)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "line 4" in caplog.text


def test_a_process_forked_later_cannot_believe_a_revoked_key_while_the_file_is_broken(path):
    write(path)
    keys = KeyFile(path)
    write(path, "broken")
    with pytest.raises(AccessUnusable, match="line 1"):
        keys.read()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["west"], "line 1: a key is a name"),
        (["", f"a/b {DIGEST} segment"], "line 2: a name has"),
        ([f"anonymous {DIGEST} segment"], "is not anonymous"),
        ([f"west {DIGEST[1:]} segment"], "64 small hexadecimal digits"),
        ([f"west {'A' * 64} segment"], "64 small hexadecimal digits"),
        ([f"west {DIGEST} segment,root"], "scopes are segment, metrics, admin"),
        ([f"west {DIGEST} segment rate=0"], "rate=IMAGES_A_MINUTE"),
        ([f"west {DIGEST} segment rate=1000001"], "a million at most"),
        ([f"west {DIGEST} segment 600"], "rate=IMAGES_A_MINUTE"),
        ([f"west {DIGEST} segment rate=6 x"], "a key is a name"),
        ([f"west {DIGEST} segment", f"west {'1' * 64} segment"], "line 2: this name or key is there already"),
        ([f"west {DIGEST} segment", f"east {DIGEST} segment"], "line 2: this name or key is there already"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_alone(path, lines, words):
    write(path, *lines)
    with pytest.raises(AccessUnusable) as caught:
        KeyFile(path)
    assert words in str(caught.value)
    assert DIGEST[1:] not in str(caught.value)


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(path, mode):
    write(path, mode=mode)
    with pytest.raises(AccessUnusable, match="chmod go-w"):
        KeyFile(path)


def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(AccessUnusable, match="no such file"):
        KeyFile(path)


def run(*arguments):
    return CliRunner().invoke(main, ["keys", "new", *map(str, arguments)])


def test_the_command_prints_the_key_alone_and_the_line_beside_it(path):
    result = run("west", "--scope", "segment", "--scope", "metrics", "--rate", "60")
    assert result.exit_code == 0
    key = result.stdout.removesuffix("\n")
    write(path, result.stderr.splitlines()[-1])
    assert KeyFile(path).caller_of(key) == Caller("west", frozenset({Scope.SEGMENT, Scope.METRICS}), 60)


def test_the_command_appends_to_a_file_and_makes_it_for_its_owner_alone(path):
    first = run("first", "--file", path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(path.read_text().rstrip("\n"))  # an editor that leaves the last newline out
    second = run("second", "--file", path)
    keys = KeyFile(path)
    for name, result in (("first", first), ("second", second)):
        caller = keys.caller_of(result.stdout.strip())
        assert caller is not None
        assert caller.name == name


def test_the_command_leaves_a_file_that_it_would_break_and_prints_no_key(path):
    run("west", "--file", path)
    before = path.read_text()
    again = run("west", "--file", path)
    path.with_name("broken").write_text("broken\n")
    for result in (again, run("east", "--file", path.with_name("broken")), run("a b"), run("x", "--file", path / "y")):
        assert (result.exit_code, result.stdout) == (1, "")
        assert len(result.stderr.splitlines()) == 1
    assert path.read_text() == before


@pytest.mark.parametrize("fits", [0, 40])  # bytes of the next line
def test_a_full_disk_leaves_the_file_as_it_was_and_prints_no_key(path, fits):
    west = run("west", "--file", path).stdout.strip()
    before = path.read_bytes()
    with full_at(len(before) + fits):
        refused = run("east", "--file", path)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr == f"Error: {path}: file too large\n"
    assert path.read_bytes() == before
    assert KeyFile(path).caller_of(west)
    assert run("east", "--file", path).exit_code == 0
