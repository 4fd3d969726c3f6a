"""What the service's log never holds."""

import logging
import os
import socket
import subprocess
import sys

import pytest

from app.telemetry.unread import UnreadHandler
from tests.pictures import SHORT, tiff_of

DECODED = """
import sys
from app.telemetry import logging
logging.configure("info", "json")
from app.imaging.decode import decode
decode(sys.stdin.buffer.read(), 8)
import warnings
warnings.warn("something else")
"""


def test_an_upload_cannot_fill_it_through_pillows_warnings():
    """Pillow warns of each tag that lies outside the file; the service's own warnings are logged as before."""
    data = tiff_of({40_000 + number: (SHORT, 100, 2**20 + number) for number in range(900)})
    done = subprocess.run([sys.executable, "-c", DECODED], input=data, capture_output=True, check=True, env=os.environ)
    [line] = done.stderr.splitlines()
    assert b"something else" in line


def through_a_pipe() -> tuple[int, int]:
    return os.pipe()


def through_a_socket() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


@pytest.mark.parametrize("way", [through_a_pipe, through_a_socket])
def test_a_log_that_nobody_reads_holds_nobody_up_and_says_later_what_is_lost(way):
    heard, spoken = way()
    with os.fdopen(spoken, "w") as stream:
        handler = UnreadHandler(stream)
        for number in range(5000):
            handler.emit(logging.makeLogRecord({"msg": f"{number} " + "x" * 1000}))
        assert os.get_blocking(spoken)  # as whoever has it too expects
        said = b""
        while b"were lost" not in said:
            said += os.read(heard, 2**16)
            handler.flush()
        handler.close()
    lines = said.decode().splitlines()
    kept = [line for line in lines if line.endswith("x" * 1000)]
    assert [line.split()[0] for line in kept] == [str(number) for number in range(len(kept))]
    assert lines[-1] == f"{5000 - len(kept)} lines of the log were lost: it was not read"
    os.close(heard)


def test_what_waits_to_be_written_is_its_own_processs_alone():
    heard, spoken = os.pipe()
    with os.fdopen(spoken, "w") as stream:
        handler = UnreadHandler(stream)
        for _ in range(200):
            handler.emit(logging.makeLogRecord({"msg": "x" * 1000}))
        child = os.fork()
        if not child:
            os._exit(len(handler._waiting))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert handler._waiting
        os.close(heard)
        handler.close()
