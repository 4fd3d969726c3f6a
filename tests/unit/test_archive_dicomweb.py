"""What an archive may answer besides what is asked for. A real one is in tests/integration/test_dicomweb_segment.py."""

import json
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

import pytest
from pydicom import DataElement, Dataset, dcmread

from app.errors import ArchiveRefused, ArchiveUnavailable, SeriesNotFound, UnsupportedImage
from app.interop.archive_http import ArchiveAccess, ArchiveSession
from app.interop.dicomweb import Archive
from app.interop.orthanc import Orthanc
from tests.dicom_sources import file_of, whole_slide
from tests.pictures import WHITE, plain
from tests.web import sends, serving

LOCAL = ArchiveAccess(frozenset({"127.0.0.1"}), timeout_seconds=5)
DICOM_JSON = {"Content_Type": "application/dicom+json"}
UID = "1.2.840.99.7"


def with_archive(answer: Callable[[BaseHTTPRequestHandler], None], do: Callable[[Archive], Any]) -> Any:
    with serving(answer) as server, ArchiveSession(server.url, LOCAL) as session:
        return do(Archive(server.url, session))


def with_orthanc(answer: Callable[[BaseHTTPRequestHandler], None], do: Callable[[Orthanc], Any]) -> Any:
    with serving(answer) as server, ArchiveSession(server.url, LOCAL) as session:
        return do(Orthanc(server.url, session))


def result() -> Dataset:
    return dcmread(BytesIO(file_of(whole_slide(plain(WHITE, 64, 64)))))


@pytest.mark.parametrize("status", [500, 507])
def test_an_archive_that_fails_may_do_better_later(status):
    with pytest.raises(ArchiveUnavailable, match=f"fails at the result .HTTP status {status}."):
        with_archive(sends(status), lambda archive: archive.store([result()]))


@pytest.mark.parametrize("status", [400, 409, 413])
def test_a_refused_result_is_told_with_its_status(status):
    with pytest.raises(ArchiveRefused, match=f"refuses the result .HTTP status {status}.") as refused:
        with_archive(sends(status), lambda archive: archive.store([result()]))
    assert UID not in str(refused.value)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [(0x0122, ArchiveRefused), (0xC000, ArchiveRefused), (0x0110, ArchiveUnavailable), (0xA700, ArchiveUnavailable)],
)
@pytest.mark.parametrize("status", [200, 202, 409])
@pytest.mark.parametrize("content_type", ["application/dicom+json", "application/json"])
def test_why_a_result_is_not_stored_decides_whether_it_is_tried_again_whatever_the_status(
    reason, kind, status, content_type
):
    """Before, an archive that was full and stored none of them, which is 409, was believed to want none ever."""
    failed = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}
    answer = sends(status, json.dumps(failed).encode(), Content_Type=content_type)
    with pytest.raises(kind, match=f"failure reason {reason:04X}H"):
        with_archive(answer, lambda archive: archive.store([result()]))


COARSE, FINE = f"{UID}.9.1", f"{UID}.9.2"
DUPLICATE, OF_AZURE, FULL, NOT_SUPPORTED = 0x0111, 0xB00E, 0xA700, 0x0122


def two_levels() -> list[Dataset]:
    levels = [result(), result()]
    for dataset, uid in zip(levels, (COARSE, FINE), strict=True):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    return levels


def answers(
    failed: dict[str, int], *stored: str, holds: tuple[str, ...] = (), status: int = 202
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return an archive that says so of what it is to store, and finds by its UID what it holds."""
    outcome = {
        "00081198": [
            {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
            for uid, reason in failed.items()
        ],
        "00081199": [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in stored],
    }
    said = {tag: {"vr": "SQ", "Value": items} for tag, items in outcome.items() if items}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.command == "POST":
            sends(status, json.dumps(said).encode(), **DICOM_JSON)(handler)
            return
        path, _, asked = handler.path.partition("?SOPInstanceUID=")
        assert path.endswith("/instances")
        found = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in holds if uid == asked]
        sends(200 if found else 204, json.dumps(found).encode() if found else b"", **DICOM_JSON)(handler)

    return answer


@pytest.mark.parametrize("already", [DUPLICATE, OF_AZURE])
def test_a_result_whose_rest_fails_for_now_is_tried_again_though_a_part_is_there_already(already):
    """Before, the first reason alone was looked at, and the second try of a half-stored result was the last."""
    answer = answers({COARSE: already, FINE: FULL}, holds=(COARSE,))
    with pytest.raises(ArchiveUnavailable, match="failure reason A700H"):
        with_archive(answer, lambda archive: archive.store(two_levels()))


@pytest.mark.parametrize("already", [DUPLICATE, OF_AZURE])
def test_a_half_stored_result_is_completed_with_the_same_instances(already):
    answer = answers({COARSE: already}, FINE, holds=(COARSE,))
    with_archive(answer, lambda archive: archive.store(two_levels()))


def test_a_result_that_is_there_already_is_stored():
    answer = answers({COARSE: DUPLICATE, FINE: OF_AZURE}, holds=(COARSE, FINE), status=409)
    with_archive(answer, lambda archive: archive.store(two_levels()))


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        ({COARSE: DUPLICATE}, DUPLICATE),
        ({COARSE: NOT_SUPPORTED}, NOT_SUPPORTED),
        ({FINE: NOT_SUPPORTED, COARSE: OF_AZURE}, NOT_SUPPORTED),
        ({"1.2.3": DUPLICATE}, DUPLICATE),
    ],
)
def test_what_the_archive_neither_takes_nor_holds_is_refused(failed, reason):
    answer = answers(failed, FINE, holds=("1.2.3",))
    with pytest.raises(ArchiveRefused, match=f"failure reason {reason:04X}H") as refused:
        with_archive(answer, lambda archive: archive.store(two_levels()))
    assert UID not in str(refused.value)


@pytest.mark.parametrize("body", [b"<html>", b"[{}]", b'"text"'])
def test_an_answer_to_what_is_there_already_that_cannot_be_read_is_refused(body):
    said = answers({COARSE: DUPLICATE}, FINE)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (said if handler.command == "POST" else sends(200, body, **DICOM_JSON))(handler)

    with pytest.raises(ArchiveRefused, match="search for what it has of the result cannot be understood"):
        with_archive(answer, lambda archive: archive.store(two_levels()))


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"00081198": {"vr": "SQ", "Value": []}}'])
def test_a_conflict_that_gives_no_reason_is_a_refusal(body):
    with pytest.raises(ArchiveRefused, match=r"refuses the result|cannot be understood"):
        with_archive(sends(409, body, **DICOM_JSON), lambda archive: archive.store([result()]))


def test_a_result_that_cannot_be_written_is_the_sources_fault_and_quotes_nothing():
    wrong = result()
    wrong.add(DataElement(0x00280010, "US", 70000))
    with pytest.raises(UnsupportedImage, match="repeats of its source") as refused:
        with_archive(sends(500), lambda archive: archive.store([wrong]))
    assert "70000" not in "".join(traceback.format_exception(refused.value))


def names(*uids: str) -> bytes:
    """Return the answer that these instances are stored (PS3.18, section 10.5.3)."""
    stored = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in uids]
    return json.dumps({"00081199": {"vr": "SQ", "Value": stored}}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        sends(202),
        sends(200, b"<html>Log in</html>", Content_Type="text/html"),
        sends(200, b"{}", **DICOM_JSON),
        sends(200, names("1.2.3"), **DICOM_JSON),
        sends(200, names(), **DICOM_JSON),
    ],
)
def test_a_result_that_is_not_said_to_be_stored_is_not(answer):
    with pytest.raises(ArchiveRefused, match="does not say that it has stored") as refused:
        with_archive(answer, lambda archive: archive.store([result()]))
    assert UID not in str(refused.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"00081199": {"vr": "SQ", "Value": [{}]}}', b""])
def test_an_answer_to_a_result_that_cannot_be_read_is_refused(body):
    with pytest.raises(ArchiveRefused):
        with_archive(sends(200, body, **DICOM_JSON), lambda archive: archive.store([result()]))


def test_a_result_that_the_archive_stored_in_part_is_refused():
    levels = [result(), result()]
    levels[1].SOPInstanceUID = levels[1].file_meta.MediaStorageSOPInstanceUID = f"{UID}.9.2"
    answer = sends(200, names(levels[0].SOPInstanceUID), **DICOM_JSON)
    with pytest.raises(ArchiveRefused, match="does not say"):
        with_archive(answer, lambda archive: archive.store(levels))


@pytest.mark.parametrize("status", [302, 303, 307])
def test_a_page_to_log_in_has_not_stored_a_result(status):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/login":
            sends(200, b"{}", **DICOM_JSON)(handler)
        else:
            sends(status, Location="/login")(handler)

    with pytest.raises(ArchiveRefused, match="redirects"):
        with_archive(answer, lambda archive: archive.store([result()]))


def test_all_instances_go_in_one_request_in_their_order():
    bodies: list[bytes] = []
    levels = [result(), result()]
    for dataset, uid in zip(levels, (f"{UID}.9.1", f"{UID}.9.2"), strict=True):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    stored = names(f"{UID}.9.2", f"{UID}.9.1", "1.2.3")
    with serving(sends(200, stored, **DICOM_JSON)) as server, ArchiveSession(server.url, LOCAL) as session:
        session.hooks["response"].append(lambda response, **_: bodies.append(response.request.body))
        Archive(server.url, session).store(levels)
    [body] = bodies
    assert body.count(b"DICM") == 2
    assert 0 < body.index(f"{UID}.9.1".encode()) < body.index(f"{UID}.9.2".encode())


@pytest.mark.parametrize(
    "content_type",
    ["application/dicom+json", "application/dicom+json; charset=utf-8", "Application/JSON;charset=UTF-8"],
)
def test_a_result_is_stored_where_the_archive_says_so_in_json_of_any_parameters(content_type):
    stored = sends(200, names(result().SOPInstanceUID), Content_Type=content_type)
    with serving(stored) as server, ArchiveSession(server.url, LOCAL) as session:
        Archive(server.url, session).store([result()])
        [(_, headers)] = server.seen
    assert headers["Accept"] == "application/dicom+json"


def test_a_result_is_stored_where_the_archive_says_so_in_xml():
    body = (
        '<NativeDicomModel><DicomAttribute tag="00081199" vr="SQ" keyword="ReferencedSOPSequence"><Item number="1">'
        '<DicomAttribute tag="00081155" vr="UI" keyword="ReferencedSOPInstanceUID">'
        f'<Value number="1">{result().SOPInstanceUID}</Value></DicomAttribute></Item></DicomAttribute>'
        "</NativeDicomModel>"
    )
    stored = sends(200, body.encode(), Content_Type="application/dicom+xml; charset=utf-8")
    with_archive(stored, lambda archive: archive.store([result()]))


def test_an_archive_that_goes_away_while_it_stores_has_not_stored(monkeypatch):
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    with pytest.raises(ArchiveUnavailable):
        with_archive(answer, lambda archive: archive.store([result()]))


@pytest.mark.parametrize("body", [b"", b"[]"])
def test_a_series_that_is_not_found_is_none(body):
    with pytest.raises(SeriesNotFound):
        with_archive(sends(200, body, **DICOM_JSON), lambda archive: archive.modality(UID, UID))


@pytest.mark.parametrize("body", [b"<html>", b'"text"', b"[1]", b'[{"00080060": {"vr": "CS", "Value": 5}}]'])
def test_an_answer_that_is_none_is_refused(body):
    with pytest.raises(ArchiveRefused, match="answer to the search for the series cannot be understood") as refused:
        with_archive(sends(200, body, **DICOM_JSON), lambda archive: archive.modality(UID, UID))
    assert UID not in str(refused.value)


@pytest.mark.parametrize(
    ("numbers", "expected"), [([1], "1.2.1"), ([3, 1, 2], "1.2.1"), ([2, 3], None), ([None], None), ([], None)]
)
def test_an_earlier_result_is_there_if_its_finest_level_is(numbers, expected):
    """An archive that stopped in the middle has the others alone; one that matches no number gives them all."""
    found = [
        {
            "00080018": {"vr": "UI", "Value": [f"1.2.{number}"]},
            "00100010": {"vr": "PN", "Value": "malformed, and not looked at"},
        }
        | ({} if number is None else {"00200013": {"vr": "IS", "Value": [number]}})
        for number in numbers
    ]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        body = found if "/instances" in handler.path else [{"0020000E": {"vr": "UI", "Value": ["1.2"]}}]
        sends(200, json.dumps(body).encode(), **DICOM_JSON)(handler)

    with serving(answer) as server, ArchiveSession(server.url, LOCAL) as session:
        assert Archive(server.url, session).result_of(UID, "1.2") == expected
        asked = [path for path, _ in server.seen if "/instances" in path]
    assert asked == [f"/studies/{UID}/series/1.2/instances?InstanceNumber=1"]


def test_of_a_series_that_is_not_there_no_instance_is_asked_for():
    with serving(sends(200, b"[]", **DICOM_JSON)) as server, ArchiveSession(server.url, LOCAL) as session:
        assert Archive(server.url, session).result_of(UID, "1.2") is None
        assert len(server.seen) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"Changes": []}', b'{"Changes": [{}], "Last": 1, "Done": true}'])
def test_what_is_no_log_of_changes_is_refused(body):
    with pytest.raises(ArchiveRefused, match="the question for changes cannot be understood"):
        with_orthanc(sends(200, body), lambda orthanc: orthanc.changes(0, 10))
    with pytest.raises(ArchiveRefused, match="the question for changes cannot be understood"):
        with_orthanc(sends(200, body), lambda orthanc: orthanc.last_change())


def test_an_archive_that_is_no_orthanc_is_told():
    with pytest.raises(ArchiveRefused, match="must be the root of an Orthanc"):
        with_orthanc(sends(404), lambda orthanc: orthanc.changes(0, 10))


def test_an_identifier_cannot_lead_to_another_place():
    with serving(sends(404)) as server, ArchiveSession(server.url, LOCAL) as session:
        assert Orthanc(server.url, session).series("../../tools/shutdown?x#y") is None
        assert {path for path, _ in server.seen} == {
            "/series/..%2F..%2Ftools%2Fshutdown%3Fx%23y",
            "/series/..%2F..%2Ftools%2Fshutdown%3Fx%23y/study",
        }
