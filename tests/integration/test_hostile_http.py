"""Connections, headers and bodies that no honest client sends: refused in words, in bounded time and memory."""

import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import httpx2 as httpx
import pytest

from app.connections.head import MOST_BYTES
from tests.conftest import RunningService
from tests.fuzz.service import answers, connect, everything_from, exchange, own_bytes, processes_of
from tests.fuzz.uploads import attack, uploads
from tests.pictures import encoded, noise
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and processes are read from /proc")

HEADER_SECONDS, REQUEST_SECONDS, CONNECTIONS = 1, 8, 12
RESERVE = 16
PATCH = encoded(noise(32, 32))
HOST = b"Host: x\r\n"
PNG = b"Content-Type: image/png\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
POST = b"POST /segment HTTP/1.1\r\n" + HOST
LIVE = b"GET /health/live HTTP/1.1\r\n" + HOST + b"\r\n"
GOOD = POST + PNG + b"Content-Length: %d\r\n" % len(PATCH)
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
GROWTH_BYTES = 256 * 2**20
"""Four times the largest body; what a request leaves behind is far less."""


@pytest.fixture(scope="module")
def hostile() -> Iterator[RunningService]:
    """One process, so that what it answers to is known; limits that tests can wait for."""
    running = RunningService(
        *("--device", "cpu", "--cores", "1", "--header-timeout", str(HEADER_SECONDS)),
        *("--request-timeout", str(REQUEST_SECONDS), "--max-connections", str(CONNECTIONS)),
    )
    assert good_upload(running) == 200
    running.pids = processes_of(running.process.pid)
    running.bytes_at_first = own_bytes(running.pids)
    yield running
    running.stop()
    lines = [line for line in running.log if '"level": "error"' in line or "Traceback" in line]
    assert not lines


@pytest.fixture(autouse=True)
def _unharmed(hostile: RunningService) -> Iterator[None]:
    yield
    assert good_upload(hostile) == 200
    assert processes_of(hostile.process.pid) == hostile.pids
    assert own_bytes(hostile.pids) < hostile.bytes_at_first + GROWTH_BYTES


def good_upload(service: RunningService) -> int:
    headers = {"Content-Type": "image/png"}
    return httpx.post(f"{service.url}/segment", content=PATCH, headers=headers, timeout=60).status_code


def refused(service: RunningService, *pieces: bytes, words: str) -> tuple[int, str]:
    """Return status and kind of the one answer, a problem document, after which the connection ended.

    Its detail must hold `words`: many things are wrong with what no client sends, and one is meant.
    """
    [answer] = exchange(service, *pieces)
    assert answer.headers["connection"] == "close"
    problem = answer.problem()
    assert words in problem["detail"]
    return answer.status, problem["type"].rpartition(":")[2]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


BAD_REQUEST = (400, "invalid-request")
TOO_LATE = (408, "request-timeout")
TOO_LARGE = (413, "upload-too-large")
TOO_MANY_BYTES = f"the body has more than {64 * 2**20} bytes"
VERSION = "only HTTP/1.1 and 1.0"
CODINGS = "of the transfer codings only chunked"
NO_HTTP = "not HTTP/1.1 as RFC 9112 has it"
NO_FORM, CUT = "the form cannot be read: it should begin with the boundary", "ends before its closing boundary"
EMPTY = "the upload is empty"


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (VERSION, b"GET /health/live\r\n\r\n"),
        (VERSION, b"GET /health/live HTTP/0.9\r\n" + HOST + b"\r\n"),
        (VERSION, b"GET /health/live HTTP/2.0\r\n" + HOST + b"\r\n"),
        (NO_HTTP, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("needs one Host header", b"GET /health/live HTTP/1.1\r\n\r\n"),
        ("needs one Host header", b"GET /health/live HTTP/1.1\r\n" + 2 * HOST + b"\r\n"),
        (NO_HTTP, b"nonsense\r\n\r\n"),
        (NO_HTTP, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)),
        (NO_HTTP, bytes(1000)),
        (NO_HTTP, b"GET /health/\0live HTTP/1.1\r\n" + HOST + b"\r\n"),
        (NO_HTTP, b"GET /health/live HTTP/1.1\r\n" + HOST + b"X: a\0b\r\n\r\n"),
        (NO_HTTP, b"GET /health/live HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n"),
        (NO_HTTP, b"GET /health/live HTTP/1.1\r\n" + HOST + b"X: a\r\n folded\r\n\r\n"),
        (NO_HTTP, b"GET http:// HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("has no path", b"GET http://x HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("has no path", b"GET http://x?y HTTP/1.1\r\n" + HOST + b"\r\n"),
        (NO_HTTP, b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n"),
        (NO_HTTP, b"CONNECT other.example:443 HTTP/1.1\r\n" + HOST + b"\r\n"),
        (NO_HTTP, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
        (NO_HTTP, POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
        (NO_HTTP, POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n"),
        (NO_HTTP, POST + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\nGET /model HTTP/1.1\r\n" + HOST + b"\r\n"),
        (NO_HTTP, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        (CODINGS, POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (CODINGS, POST + PNG + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (CODINGS, POST + PNG + b"Transfer-Encoding: gzip\r\n" + CHUNKED + b"\r\n0\r\n\r\n"),
        (NO_HTTP, POST + b"Content-Length: -1\r\n\r\n"),
        (NO_HTTP, POST + b"Content-Length: +3\r\n\r\nabc"),
        (NO_HTTP, POST + b"Content-Length: 99999999999999999999999999\r\n\r\n"),
        (NO_HTTP, POST + PNG + CHUNKED + b"\r\nxyz\r\nabc\r\n"),
        (NO_HTTP, POST + PNG + CHUNKED + b"\r\n-1\r\nabc\r\n"),
        (NO_HTTP, POST + PNG + CHUNKED + b"\r\nfffffffffffffffff\r\nabc\r\n"),
        (NO_HTTP, POST + PNG + CHUNKED + b"\r\n3\r\nabcdef\r\n0\r\n\r\n"),
        (
            "another protocol than HTTP/1.1",
            POST + PNG + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (
            "another protocol than HTTP/1.1",
            POST + PNG + b"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\nContent-Length: 3\r\n\r\nabc",
        ),
        (NO_HTTP, POST + OFFER + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n"),
        (NO_HTTP, POST + OFFER + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        (NO_HTTP, POST + PNG + OFFER + CHUNKED + b"\r\nxyz\r\nabc\r\n"),
        (NO_HTTP, b"CONNECT other.example:443 HTTP/1.1\r\n" + HOST + OFFER + b"\r\n"),
    ],
)
def test_what_is_not_http_is_a_bad_request(hostile, words, request_):
    assert refused(hostile, request_, words=words) == BAD_REQUEST


@pytest.mark.parametrize("piece", [1, 2**20])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d\r\n\r\n" % len(PATCH), PATCH),
        (CHUNKED + b"\r\n", chunk(PATCH[:9]) + chunk(PATCH[9:]) + b"0\r\nAccept: image/png\r\n\r\n"),
    ],
    ids=["length", "chunks"],
)
def test_an_offer_of_http2_is_passed_over_and_the_body_is_read(hostile, framing, body, piece):
    """As Java's HttpClient and curl --http2 send it."""
    whole = POST + PNG + OFFER + framing + body + LIVE  # of which the last is not answered: the connection ends
    [answer] = exchange(hostile, *(whole[at : at + piece] for at in range(0, len(whole), piece)))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert json.loads(answer.body)["image"]["width"] == 32


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
def test_another_protocol_is_not_taken_up(hostile, protocol):
    [answer] = exchange(
        hostile, LIVE[:-2] + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert (answer.status, answer.headers["connection"]) == (200, "close")


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"],
        [LIVE[:-2] + b"X: " + b"a" * 70_000 + b"\r\n\r\n"],
        [LIVE[:-2], *[b"X: " + b"a" * 1000 + b"\r\n"] * 10_000],
        [LIVE[:-2] + b"X: ", *[b"a" * 2**16] * 1000],
        [LIVE[:-2], *[b"a:\r\n" * 10_000] * 100],
        [POST + PNG + CHUNKED + b"\r\n1;", *[b"a" * 2**16] * 100],
        [POST + PNG + CHUNKED + b"\r\n1\r\na\r\n0\r\n", *[b"X: " + b"a" * 1000 + b"\r\n"] * 10_000],
    ],
    ids=["target", "header", "headers", "endless header", "many headers", "chunk extension", "trailers"],
)
def test_headers_without_end_are_too_large(hostile, pieces):
    assert refused(hostile, *pieces, words=f"more than {MOST_BYTES} bytes") == (431, "headers-too-large")


def test_headers_may_have_as_many_bytes_as_are_allowed_and_not_one_more(hostile):
    begin, end = LIVE[:-2] + b"Connection: close\r\nX: ", b"\r\n\r\n"
    whole = begin + b"a" * (MOST_BYTES - len(begin) - len(end)) + end
    assert len(whole) == MOST_BYTES
    [answer] = exchange(hostile, whole)
    assert answer.status == 200
    # Of names and values alone, without what is between them: so it is refused even if it comes in one piece.
    counted = len(b"/health/liveHostxConnectioncloseX")
    one_more = begin + b"a" * (MOST_BYTES - counted + 1) + end
    assert refused(hostile, one_more, words=f"more than {MOST_BYTES} bytes") == (431, "headers-too-large")


def test_a_trailer_is_no_header(hostile):
    trailer = b"0\r\nAccept: image/png\r\nContent-Type: text/plain\r\n\r\n"
    [answer] = exchange(hostile, POST + PNG + CHUNKED + b"Connection: close\r\n\r\n" + chunk(PATCH) + trailer)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize("request_", [b"GET", LIVE[:-2], b"\r\n", POST + PNG + b"X: " + b"a" * 2000])
def test_headers_that_do_not_come_in_time(hostile, request_):
    assert refused(hostile, request_, words=f"headers did not come within {HEADER_SECONDS} s") == TOO_LATE


def test_headers_that_drip_have_no_more_time_and_those_of_a_second_request_no_less(hostile):
    with connect(hostile) as connection:
        connection.sendall(LIVE)
        read_until(b'"live"}', connection)
        connection.sendall(LIVE[:-2] + b"X: ")
        connection.settimeout(0.05)
        start = time.monotonic()
        text = b""
        while not text:
            assert time.monotonic() - start < 20
            connection.sendall(b"a")
            with suppress(TimeoutError):
                text = connection.recv(2**16)
        assert time.monotonic() - start > HEADER_SECONDS / 2
        connection.settimeout(20)
        [answer] = answers(text + everything_from(connection))
        assert answer.problem()["type"].endswith(":request-timeout")


def test_a_silent_connection_is_closed_in_silence(hostile):
    assert exchange(hostile) == []


def read_until(end: bytes, connection: socket.socket) -> None:
    """Read an answer whose last bytes are known; it may come in pieces."""
    text = b""
    while not text.endswith(end):
        piece = connection.recv(2**16)
        assert piece
        text += piece


def at_once(*works: Callable[[], None]) -> None:
    """Do what mostly waits at one time."""
    with ThreadPoolExecutor(len(works)) as threads:
        for done in [threads.submit(work) for work in works]:
            done.result()


def test_a_body_that_does_not_come_in_time_is_the_senders_fault(hostile):
    def send(head: bytes) -> None:
        assert refused(hostile, head, words=f"the body did not come within {REQUEST_SECONDS} s") == TOO_LATE

    at_once(
        partial(send, POST + PNG + b"Content-Length: 1000\r\n\r\nabc"),
        partial(send, POST + PNG + CHUNKED + b"\r\n3\r\nabc\r\n"),
        partial(send, POST + FORM + b"Content-Length: 1000\r\n\r\n" + FILE),
    )


def test_a_body_that_does_not_come_within_what_the_request_asks_for_is_the_senders_fault(hostile):
    head = POST + PNG + b"X-Request-Timeout: 0.5\r\nContent-Length: 1000\r\n\r\nabc"
    assert refused(hostile, head, words="the body did not come within 0.5 s") == TOO_LATE


def test_a_body_that_nobody_reads_is_not_read_for_ever(hostile):
    def send(path: bytes, status: int) -> None:
        start = time.monotonic()
        with connect(hostile) as connection:
            connection.sendall(b"POST " + path + b" HTTP/1.1\r\n" + HOST + CHUNKED + b"\r\n")
            with pytest.raises(ConnectionError):
                while time.monotonic() - start < 60:
                    connection.sendall(chunk(b"a" * 2**16))
            [answer] = answers(everything_from(connection))
            assert (answer.status, answer.headers["connection"]) == (status, "close")

    at_once(partial(send, b"/nothing", 404), partial(send, b"/model", 405), partial(send, b"/segment", 415))


def test_an_endless_body_ends_at_its_limit(hostile):
    for begin in (POST + PNG + CHUNKED + b"\r\n", POST + FORM + CHUNKED + b"\r\n" + chunk(FILE)):
        assert refused(hostile, begin, *[chunk(bytes(2**20))] * 70, words=TOO_MANY_BYTES) == TOO_LARGE


@pytest.mark.parametrize("length", [b"67108865", b"9223372036854775807", b"18446744073709551615"])
def test_an_absurd_length_is_too_large_at_once(hostile, length):
    head = POST + PNG + b"Content-Length: " + length + b"\r\n\r\nabc"
    assert refused(hostile, head, words=TOO_MANY_BYTES) == TOO_LARGE


def test_a_refusal_reaches_who_still_sends(hostile):
    """Closed at once, the connection would be reset, and on some systems the answer lost with it."""
    with connect(hostile) as connection:
        connection.sendall(POST + b"Content-Type: text/plain\r\nContent-Length: 3000000\r\n\r\n")
        for _ in range(3):
            connection.sendall(bytes(1_000_000))
        [answer] = answers(everything_from(connection))
        assert answer.status == 415


def test_a_client_that_asks_first_is_refused_before_its_body(hostile):
    expects = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert refused(hostile, POST + PNG + expects % 10**9, words=TOO_MANY_BYTES) == TOO_LARGE
    with connect(hostile) as connection:
        connection.sendall(POST + PNG + expects % len(PATCH))
        assert connection.recv(2**16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(PATCH)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")


def form(*parts: bytes, end: bytes = b"--b--\r\n") -> bytes:
    body = b"".join(parts) + end
    return POST + FORM + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


FIELD = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n'
NESTED = FILE.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n")


@pytest.mark.parametrize(
    ("request_", "expected", "words"),
    [
        (form(FIELD * 1_000_000), BAD_REQUEST, "Too many fields"),
        (form((FILE + b"\r\n") * 900_000), TOO_LARGE, "more than 64 files"),  # in fewer bytes than a body may have
        (form(FILE, b"\r\n--bx" * 1_000_000, b"\r\n"), BAD_REQUEST, "full of what looks like their boundary"),
        (form(b"--b\r\n", b"X: a\r\n" * 1_000_000, FILE[5:], PATCH, b"\r\n"), BAD_REQUEST, NO_FORM),
        (form(FILE.replace(b'"a"', b'"' + b"a" * 1_000_000 + b'"'), PATCH, b"\r\n"), BAD_REQUEST, NO_FORM),
        (form(FILE, b"\r\n"), (422, "unreadable-image"), EMPTY),
        (form(NESTED, b"\r\n"), (415, "unsupported-image"), "not an image in a known format"),
        (form(), BAD_REQUEST, "no file in a part named 'file'"),
        (form(FILE + b"abc"), BAD_REQUEST, CUT),
        (form(FILE.replace(b'name="file"', b"name*=UTF-8''file"), b"\r\n"), BAD_REQUEST, '"name" must be provided'),
        (form(FILE.replace(b'"a"', b'"' + b"a" * 3000 + b'"'), b"\r\n"), (422, "unreadable-image"), EMPTY),
        (form(b"--b\r\n\r\n\r\n"), BAD_REQUEST, '"name" must be provided'),
        (form(FILE.replace(b"--b", b"--wrong"), b"\r\n"), BAD_REQUEST, NO_FORM),
        (form(b"preamble\r\n", FILE, b"\r\n"), BAD_REQUEST, NO_FORM),
        (form(FILE, b"\r\n", end=b"--c--\r\n"), BAD_REQUEST, CUT),
        (form(FILE, b"\r\n").replace(b"; boundary=b", b""), BAD_REQUEST, "Missing boundary"),
        (form(FILE, b"\r\n").replace(b"boundary=b", b"boundary="), BAD_REQUEST, NO_FORM),
        (form(FILE, b"\r\n").replace(b"boundary=b", b"boundary=" + b"b" * 60_000), BAD_REQUEST, NO_FORM),
        (form(FILE, b"\r\n").replace(b"boundary=b", b'boundary="\xff\x80"'), BAD_REQUEST, NO_FORM),
        (form(FILE, b"\r\n").replace(b"form-data;", b"form-data" + b";" * 50_000, 1), (422, "unreadable-image"), EMPTY),
    ],
    ids=[
        *("a million fields", "900,000 files", "a million near boundaries", "a million headers", "a huge header"),
        *("an empty part", "a form in a form", "an empty form", "no line before the end", "an encoded name"),
        *("a long file name", "no name", "a wrong boundary", "a preamble", "a wrong end", "no boundary"),
        *("an empty boundary", "a huge boundary", "a boundary of no text", "many semicolons"),
    ],
)
def test_forms_that_no_client_makes(hostile, request_, expected, words):
    assert refused(hostile, request_, words=words) == expected


def test_requests_without_waiting_are_answered_in_order_and_not_too_many_of_them(hostile):
    got = exchange(hostile, LIVE * 5 + LIVE[:-2] + b"Connection: close\r\n\r\n")
    assert [answer.status for answer in got] == [200] * 6
    got = exchange(hostile, GOOD + b"\r\n" + PATCH + b"nonsense\r\n\r\n")
    assert [answer.status for answer in got] == [200, 400]
    *good, last = exchange(hostile, *[LIVE * 1000] * 300)
    assert {answer.status for answer in good} == {200}
    assert (last.status, last.problem()["detail"][:17]) == (400, "too many requests")


def test_clients_that_leave_in_the_middle_leave_nothing_behind(hostile):
    for cut in (1, 30, len(GOOD), len(GOOD) + 20):
        for _ in range(5):
            exchange(hostile, (GOOD + b"\r\n" + PATCH)[:cut], then_leave=True)
    until(lambda: "tessera_images_in_flight 0.0" in httpx.get(f"{hostile.url}/metrics").text)


def test_a_client_that_does_not_read_is_cut_off(hostile):
    """Of the largest file that the service has, often enough: systems hold some MiB for a client."""
    found = re.search(r'src="([^"]+swagger-ui-bundle.js)"', httpx.get(f"{hostile.url}/docs").text)
    assert found is not None
    with connect(hostile) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall((b"GET /" + found[1].encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n") * 15)
        start = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - start < 60:
                connection.sendall(b"\r\n")
                time.sleep(0.05)
        assert time.monotonic() - start > REQUEST_SECONDS / 2


def test_a_crowd_is_refused_and_probes_are_answered(hostile):
    crowd: list[socket.socket] = []
    try:
        for _ in range(CONNECTIONS):  # one that has said nothing is closed after a second
            crowd.append(connect(hostile))
            crowd[-1].sendall(LIVE)
            assert crowd[-1].recv(2**16).startswith(b"HTTP/1.1 200 ")
        counted = 'tessera_requests_total{route="/segment",status="503"}'
        assert f"{counted} 0.0" in httpx.get(f"{hostile.url}/metrics").text
        [answer] = exchange(hostile, GOOD + b"\r\n" + PATCH)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert f"{counted} 1.0" in httpx.get(f"{hostile.url}/metrics").text
        assert answer.problem()["type"].endswith(":too-many-connections")
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert httpx.get(hostile.url + path).status_code == 200
        crowd += [connect(hostile) for _ in range(RESERVE)]
        words = "as many connections as it may have"
        assert refused(hostile, LIVE, words=words) == (503, "too-many-connections")
    finally:
        for connection in crowd:
            connection.close()
    until(lambda: good_upload(hostile) == 200)


def test_what_is_refused_is_counted_and_no_word_of_it_is_logged(hostile):
    counted = r'tessera_rejections_total\{reason="invalid-request"\} ([0-9.]+)'

    def count() -> float:
        found = re.search(counted, httpx.get(f"{hostile.url}/metrics").text)
        return float(found[1]) if found else 0.0

    before = count()
    without_host = b"GET /JANE-DOE HTTP/1.1\r\nX-Patient: JANE-DOE\r\n\r\n"
    assert refused(hostile, without_host, words="needs one Host header") == BAD_REQUEST
    assert count() == before + 1
    assert "JANE-DOE" not in "".join(hostile.log)


def test_damaged_uploads_are_answered_without_a_fault(hostile):
    """The fuzzer in small; python -m tests.fuzz.uploads is the whole."""
    outcome = attack(hostile.url, uploads(300, seed=1))
    assert outcome.faults == []
    assert outcome.statuses.total() == 300
    assert {200, 400, 406, 415, 422} <= set(outcome.statuses)
