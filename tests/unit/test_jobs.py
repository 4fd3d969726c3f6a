import os
import signal
import sys
import threading

import pytest

from model_export.errors import JobFailed
from model_export.jobs import run_side_by_side


def python(code):
    return [sys.executable, "-c", code]


def test_each_line_stands_under_its_name():
    lines = []
    commands = {
        "one": python("print('first'); print('second')"),
        "two": python("import sys; print('said', file=sys.stderr)"),
    }

    run_side_by_side(commands, 2, lines.append)

    assert sorted(lines) == ["one  first", "one  second", "two  said"]


def test_no_more_run_at_a_time_than_asked(tmp_path):
    # A folder can be made once: a second command that runs beside the first one fails.
    alone = python(f"from pathlib import Path; p = Path({str(tmp_path / 'here')!r}); p.mkdir(); print('in'); p.rmdir()")
    lines = []

    run_side_by_side({str(index): alone for index in range(3)}, 1, lines.append)

    assert lines == ["0  in", "1  in", "2  in"]


WAITING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    print("waits", flush=True)
    signal.pause()
except KeyboardInterrupt:
    open(sys.argv[1], "w").close()
    sys.exit(130)
"""


def test_one_that_fails_ends_the_others_as_the_keyboard_would(tmp_path):
    lines = []
    waiting = [*python(WAITING), str(tmp_path / "interrupted")]
    os.mkfifo(tmp_path / "gate")  # opened for reading, it waits for a writer
    failing = python(f"import sys; open({str(tmp_path / 'gate')!r}).readline(); sys.exit(3)")

    def opened(line):
        lines.append(line)
        if line == "waits  waits":
            threading.Thread(target=(tmp_path / "gate").write_text, args=("\n",)).start()

    with pytest.raises(JobFailed, match=r"^fails ended with status 3; "):
        run_side_by_side({"waits": waiting, "fails": failing}, 2, opened)

    assert (tmp_path / "interrupted").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_keyboard_a_stop_and_a_closed_terminal_end_all(tmp_path, number):
    names = ["one", "two"]
    commands = {name: [*python(WAITING), str(tmp_path / name)] for name in names}
    waiting = []

    def interrupt(line):
        waiting.append(line)
        if len(waiting) == 2:
            signal.raise_signal(number)

    before = {one: signal.getsignal(one) for one in (signal.SIGINT, number)}
    if before[number] is signal.SIG_IGN:  # by nohup, say
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script has ignored by what it starts with &
    try:
        with pytest.raises(KeyboardInterrupt):
            run_side_by_side(commands, 2, interrupt)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

    assert all((tmp_path / name).exists() for name in names)


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    lines = []

    def hang_up(line):
        lines.append(line)
        signal.raise_signal(signal.SIGHUP)

    try:
        run_side_by_side({"one": python("print('first'); print('second')")}, 1, hang_up)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert lines == ["one  first", "one  second"]


def test_a_stop_ends_all_where_the_keyboard_is_ignored():
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script has it by what it starts with &
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_side_by_side(
                {"waits": python("import signal; print('waits', flush=True); signal.pause()")},
                1,
                lambda _: signal.raise_signal(signal.SIGTERM),
            )
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
