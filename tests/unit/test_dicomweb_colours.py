"""What an archive is asked about the colours of a slide's frames. A real one is in tests/integration."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import requests
from pydicom import Dataset, uid

from app.errors import SlideUnreadable
from app.slides.dicomweb_client import AsStored
from tests.dicom_sources import ADOBE_RGB, ADOBE_YCC, as_metadata, jpeg_2000_of, jpeg_of, rle_of, whole_slide
from tests.slides import cmu1

TISSUE = cmu1(64, 64)
JPEG, JPEG_2000 = str(uid.JPEGBaseline8Bit), str(uid.JPEG2000Lossless)


class _Archive:
    """A client of an archive that holds one instance.

    Args:
        slide: Its attributes.
        frame: Its first frame, or what the archive answers in its place: an HTTP status.
        syntaxes: Those that the archive says it has it in.
    """

    def __init__(self, slide: Dataset, frame: bytes | int, syntaxes: list[str]) -> None:
        self.asked: list[list[int]] = []
        self._slide, self._frame, self._syntaxes = slide, frame, syntaxes

    def search_for_instances(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        values = {"0020000E": "1.2", "00080018": "1.3", "00080016": str(uid.VLWholeSlideMicroscopyImageStorage)}
        found: dict[str, Any] = {tag: {"vr": "UI", "Value": [value]} for tag, value in values.items()}
        return [found | {"00083002": {"vr": "UI", "Value": self._syntaxes}}]

    def retrieve_instance_metadata(self, *_: str) -> dict[str, Any]:
        return dict(as_metadata(self._slide).to_json_dict())

    def iter_instance_frames(self, *_: str, frame_numbers: list[int], **__: Any) -> Iterator[bytes]:
        self.asked.append(frame_numbers)
        if isinstance(self._frame, int):
            response = requests.Response()
            response.status_code = self._frame
            raise requests.HTTPError(response=response)
        return iter([bytearray(self._frame)])


def label(archive: _Archive) -> str:
    """Return the photometric interpretation that wsidicom is given."""
    client = AsStored(archive, requests.Session())
    [(series, instance, _)] = client.get_wsi_instances("1.1", ["1.2"])
    return str(client.get_instance("1.1", series, instance).PhotometricInterpretation)


def slide(stated: str, **attributes: Any) -> Dataset:
    return whole_slide(TISSUE, syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation=stated, **attributes)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (jpeg_of(TISSUE), "YBR_FULL_422"),
        (jpeg_of(TISSUE, states=ADOBE_YCC), "YBR_FULL_422"),
        (jpeg_of(TISSUE, states=b""), "RGB"),
        (jpeg_of(TISSUE, is_rgb=True, states=ADOBE_RGB), "RGB"),
        (jpeg_of(TISSUE, is_rgb=True, states=b""), "RGB"),
        (b"", "RGB"),
        (406, "RGB"),
        (404, "RGB"),
    ],
)
def test_a_label_of_rgb_stands_unless_the_first_frame_contradicts_it(frame, expected):
    archive = _Archive(slide("RGB"), frame, [JPEG])
    assert label(archive) == expected
    assert archive.asked == [[1]]


def test_an_archive_that_fails_at_it_may_do_better_later():
    with pytest.raises(requests.HTTPError):
        label(_Archive(slide("RGB"), 503, [JPEG]))


@pytest.mark.parametrize(
    ("of_archive", "syntaxes"),
    [
        (slide("YBR_FULL_422"), [JPEG]),
        (slide("RGB"), [JPEG_2000]),
        (slide("RGB", ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"]), [JPEG]),
    ],
)
def test_where_there_is_nothing_to_contradict_nothing_is_asked(of_archive, syntaxes):
    archive = _Archive(of_archive, 503, syntaxes)
    assert label(archive) == of_archive.PhotometricInterpretation
    assert archive.asked == []


@pytest.mark.parametrize(
    ("stated", "syntax", "frame", "is_read"),
    [
        ("RGB", uid.RLELossless, rle_of(TISSUE), True),
        ("YBR_FULL", uid.RLELossless, rle_of(TISSUE), False),
        ("YBR_FULL", uid.ExplicitVRLittleEndian, TISSUE.tobytes(), False),
        ("YBR_FULL_422", uid.JPEGLSLossless, b"", False),
        ("YBR_FULL_422", uid.JPEGBaseline8Bit, jpeg_of(TISSUE), True),
        ("YBR_PARTIAL_422", uid.JPEG2000, jpeg_2000_of(TISSUE, transforms=False), False),
        ("YBR_FULL_422", uid.JPEG2000, jpeg_2000_of(TISSUE, transforms=False), False),
        ("YBR_FULL_422", uid.JPEG2000, jpeg_2000_of(TISSUE, transforms=True), True),
        ("YBR_FULL_422", uid.JPEG2000Lossless, b"", False),
        ("YBR_RCT", uid.JPEG2000Lossless, jpeg_2000_of(TISSUE, transforms=True), True),
    ],
)
def test_colours_that_no_decoder_converts_are_refused_and_only_jpeg_2000_is_asked_for_them(
    stated, syntax, frame, is_read
):
    archive = _Archive(slide(stated), frame, [str(syntax)])
    client = AsStored(archive, requests.Session())
    with nullcontext() if is_read else pytest.raises(SlideUnreadable, match=f"is in {stated}, .* store it as RGB"):
        client.check_colours(slide(stated), syntax)
    is_asked = stated != "YBR_RCT" and syntax in uid.JPEG2000TransferSyntaxes
    assert archive.asked == ([[1]] if is_asked else [])
