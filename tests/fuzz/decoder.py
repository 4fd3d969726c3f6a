"""A coverage-guided fuzz of the decoder, of DICOM too: python -m tests.fuzz.decoder --seconds 600 --corpus FOLDER

It needs the extra `fuzz`. What it finds is a file on which the decoder does something else than to give pixels or to
refuse: it raises another error, runs out of memory or of time, quotes the file, or disagrees with Pillow.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app.imaging", "app.slides", "PIL", "pydicom"]):
    # What is imported on demand elsewhere: only what is imported here is watched.
    import numpy as np
    import pydicom.encaps
    import pydicom.filereader
    import pydicom.pixels.decoders.rle
    import pydicom.pixels.processing
    import pydicom.pixels.utils
    from PIL import BmpImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    from app.errors import ImageRejected
    from app.imaging.decode import decode, decode_by_pillow
    from app.imaging.structure import glance
    from app.slides import dicom

from tests.dicom_pixels import decode_dicom
from tests.dicom_sources import CANARY
from tests.fuzz.mutations import with_checksums
from tests.fuzz.seeds import seeds

_WATCHED = (pydicom, BmpImagePlugin, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
MOST_SIDE_PX = 256
_MOST_SECONDS_A_FILE = 60
_MOST_MIB = 2048


def check(data: bytes) -> None:
    """Decode `data` as the service would, and fail where it does what it must not do."""
    _outcome(lambda data, _: glance(data), data)
    if dicom.is_dicom(data):
        _outcome(lambda data, side_px: dicom.opened(data, side_px).um_per_px(), data)
        _outcome(decode_dicom, data)
        return
    by_service, by_pillow = _outcome(decode, data), _outcome(decode_by_pillow, data)
    if isinstance(by_service, str) or isinstance(by_pillow, str):
        assert by_service == by_pillow, (by_service, by_pillow)
    else:
        assert np.array_equal(by_service, by_pillow), "not Pillow's pixels"


def _outcome(step, data: bytes):
    """Return what `step` makes of `data`, or what it says in refusing it."""
    try:
        found = step(data, MOST_SIDE_PX)
    except ImageRejected as refused:
        message = str(refused)
        assert "\n" not in message, message
        assert len(message) < 300, message
        assert CANARY.split("^")[0] not in message, message
        return message
    if isinstance(found, np.ndarray):
        assert (found.dtype, found.ndim, found.shape[-1]) == (np.uint8, 3, 3), (found.dtype, found.shape)
        assert max(found.shape[:2]) <= MOST_SIDE_PX, found.shape
    return found


def _mutated(data: bytes, most_bytes: int, seed: int) -> bytes:
    changed = atheris.Mutate(data, most_bytes)
    return with_checksums(changed)[:most_bytes] if seed % 4 else changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, help="folder that keeps what was found worth trying; else none does")
    given = parser.parse_args()
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix="tessera-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (corpus / name).write_bytes(data)
    flags = [
        f"-max_total_time={given.seconds}",
        f"-timeout={_MOST_SECONDS_A_FILE}",
        f"-rss_limit_mb={_MOST_MIB}",
        f"-artifact_prefix={corpus}-found-",
        "-max_len=16384",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], check, custom_mutator=_mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
