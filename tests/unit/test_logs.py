"""What the service's log never holds."""

import os
import subprocess
import sys

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
