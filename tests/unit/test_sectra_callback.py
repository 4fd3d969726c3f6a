"""The address that an order names, without an order."""

import contextlib
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.errors import ArchiveRefused, ArchiveUnavailable, CallbackRefused
from app.settings import Settings
from app.slides import sectra_callback
from app.slides.sectra_callback import Callback, VersionChanged, path_of
from tests.programs import program

HOSTS = ("pathology.example", "Other.example:8443", "localhost:9000", "[::1]:9000")


def callback(url: str, token: str = "t", hosts: tuple[str, ...] = HOSTS, tls: ssl.SSLContext | None = None) -> Callback:
    return Callback(url, token, hosts, tls or ssl.create_default_context())


@pytest.mark.parametrize(
    "url",
    [
        "https://pathology.example",
        "https://PATHOLOGY.example:443/SectraPathologyServer/external/imageanalysis/v1/",
        "https://other.example:8443/v1",
        "http://localhost:9000",
        "https://localhost:9000",
        "http://[::1]:9000/v1",
    ],
)
def test_an_address_on_the_list_is_taken(url):
    callback(url).close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://evil.example", "TESSERA_SECTRA_HOSTS"),
        ("https://pathology.example:8443", "TESSERA_SECTRA_HOSTS"),
        ("https://other.example", "TESSERA_SECTRA_HOSTS"),
        ("https://pathology.example.", "TESSERA_SECTRA_HOSTS"),
        ("https://evil.pathology.example", "TESSERA_SECTRA_HOSTS"),
        ("https://127.0.0.1:9000", "TESSERA_SECTRA_HOSTS"),
        ("http://pathology.example", "must begin with https"),
        ("http://other.example:8443", "must begin with https"),
        ("https://user@pathology.example", "without user"),
        ("https://:pass@pathology.example", "without user"),
        ("https://evil.example\\@pathology.example", "without user"),
        ("https://pathology.example@evil.example", "without user"),
        ("https://pathology.example/?next=1", "query"),
        ("https://pathology.example/#@evil.example", "fragment"),
        ("https://pathology.example/\r\nHost: evil", "must be https"),
        ("https://pathology.example\t", "must be https"),
        ("https://pathölogy.example", "must be https"),
        ("https://pathology.example:https", "malformed"),
        ("https://pathology.example:99999", "malformed"),
        ("https://[::1", "malformed"),
        ("ftp://pathology.example:443", "must be https"),
        ("file:///etc/passwd", "must be https"),
        ("https://pathology.example:0", "TESSERA_SECTRA_HOSTS"),
        ("//pathology.example", "must be https"),
        ("pathology.example", "must be https"),
        ("", "must be https"),
    ],
)
def test_any_other_address_is_refused(url, words):
    with pytest.raises(CallbackRefused, match=words):
        callback(url)


def test_an_empty_list_allows_nothing():
    with pytest.raises(CallbackRefused, match="TESSERA_SECTRA_HOSTS"):
        callback("https://pathology.example", hosts=("",))


@pytest.mark.parametrize("token", ["", "two words", "line\r\nHost: evil", "ümlaut"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_repeated(token):
    with pytest.raises(CallbackRefused, match="the order's token is empty or has spaces") as refusal:
        callback("https://pathology.example", token)
    assert not token or token not in str(refusal.value)


@pytest.mark.parametrize("segment", ["", ".", ".."])
def test_a_segment_that_leads_elsewhere_is_refused(segment):
    with pytest.raises(CallbackRefused, match="empty or dots"):
        path_of("slides", segment, "info")


def test_segments_are_escaped():
    assert path_of("slides", "a/../b?c#d e", "info") == "/slides/a%2F..%2Fb%3Fc%23d%20e/info"


@contextlib.contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve `answer` to each GET on loopback; give the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_PUT(self) -> None:
            answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def ok(handler: BaseHTTPRequestHandler, body: bytes = b"tile", length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def asked(port: int, scheme: str = "http", tls: ssl.SSLContext | None = None) -> Iterator[Callback]:
    with contextlib.closing(callback(f"{scheme}://127.0.0.1:{port}", hosts=(f"127.0.0.1:{port}",), tls=tls)) as address:
        yield address


def test_certificates_are_verified(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=pacs"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    with answering(ok, server) as port:
        with asked(port, "https") as address, pytest.raises(ArchiveUnavailable, match="does not trust"):
            address.get("a tile", "/tile", 10)
        with asked(port, "https", ssl.create_default_context(cafile=str(certificate))) as address:
            assert address.get("a tile", "/tile", 10) == b"tile"


def test_the_environments_proxies_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with answering(ok) as port, asked(port) as address:
        assert address.get("a tile", "/tile", 10) == b"tile"


def test_an_answer_longer_than_wanted_is_not_read_to_its_end():
    endless = threading.Event()

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not endless.is_set():
                handler.wfile.write(bytes(10_000))

    with answering(flood) as port, asked(port) as address:
        with pytest.raises(ArchiveRefused, match="more than 1000 bytes when asked for a tile"):
            address.get("a tile", "/tile", 1000)
        endless.set()


def test_an_answer_that_breaks_off_is_said():
    breaking = answering(lambda handler: ok(handler, b"half", 100))
    with breaking as port, asked(port) as address, pytest.raises(ArchiveUnavailable, match="breaks off"):
        address.get("a tile", "/tile", 1000)


def test_silence_ends(monkeypatch):
    monkeypatch.setattr(sectra_callback, "_TIMEOUT_SECONDS", 0.1)
    over = threading.Event()
    with answering(lambda handler: over.wait(20) and None) as port, asked(port) as address:
        with pytest.raises(ArchiveUnavailable, match=r"does not answer within 0\.1 s"):
            address.get("a tile", "/tile", 1000)
        over.set()


def test_what_is_sent_slowly_leaves_the_answer_its_own_time(monkeypatch):
    """Before, connecting, sending and the wait for the answer had one time together."""
    monkeypatch.setattr(sectra_callback, "_TIMEOUT_SECONDS", 1.0)

    def slow(handler: BaseHTTPRequestHandler) -> None:
        threading.Event().wait(1.2)  # until it reads, the body, which is larger than what systems hold, is being sent
        handler.rfile.read(int(handler.headers["Content-Length"]))
        ok(handler, b"stored")

    with answering(slow) as port, asked(port) as address:
        assert address.send("PUT", "a result", "/result", {"points": "0" * 2**24}, 10) == b"stored"


def test_to_close_it_ends_what_is_asked_for_and_not_what_is_stored():
    """Before, whoever asked for a caller that was gone held its thread until the archive answered, or for 10 s."""
    came, over = threading.Semaphore(0), threading.Event()

    def held(handler: BaseHTTPRequestHandler) -> None:
        came.release()
        over.wait(20)
        with contextlib.suppress(OSError):
            ok(handler, b"stored")

    with answering(held) as port, asked(port) as address, ThreadPoolExecutor(2) as threads:
        try:
            asks = threads.submit(address.get, "a tile", "/tile", 10)
            stores = threads.submit(address.send, "PUT", "a result", "/result", {}, 10)
            assert all(came.acquire(timeout=20) for _ in range(2))
            address.close()
            with pytest.raises(ArchiveUnavailable, match="breaks off when asked for a tile"):
                asks.result(5)
        finally:
            over.set()
        assert stores.result() == b"stored"


HEADER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: "


@pytest.mark.parametrize(
    ("begins", "drips"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEADER, b"x"),
        (HEADER + b"\r\n\r\n", b"1\r\nx\r\n"),
        (HEADER + b"\r\n\r\n5;", b"x"),
    ],
    ids=["provisional answers", "a header", "the body", "a chunk's size"],
)
def test_a_drip_ends_wherever_it_drips_and_is_not_asked_for_again(monkeypatch, begins, drips):
    monkeypatch.setattr(sectra_callback, "_EXCHANGE_SECONDS", 0.3)
    left, asks = threading.Event(), []

    def drip(handler: BaseHTTPRequestHandler) -> None:
        asks.append(handler.path)
        handler.wfile.write(begins)
        with contextlib.suppress(OSError):
            for _ in range(400):  # 20 s
                handler.wfile.write(drips)
                if left.wait(0.05):
                    return
        handler.wfile.write(b"\r\n\r\n0\r\n\r\n")

    with answering(drip) as port, asked(port) as address:
        with pytest.raises(ArchiveUnavailable, match=r"takes more than 0\.3 s when asked for a tile"):
            address.get("a tile", "/tile", 1000)
        left.set()
    assert asks == ["/tile"]


@pytest.mark.parametrize("status", [413, 429, 503])
def test_a_refusal_that_says_when_to_come_back_is_neither_read_to_its_end_nor_asked_for_again(status):
    sent = []

    def busy(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Retry-After", "0")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                handler.wfile.write(bytes(100_000))
                sent.append(100_000)

    refusal = pytest.raises((ArchiveUnavailable, ArchiveRefused), match=f"answers {status} when asked for a tile")
    with answering(busy) as port, asked(port) as address, refusal:
        address.get("a tile", "/tile", 1000)
    assert sum(sent) < 20_000_000


def test_a_connection_that_was_cut_is_tried_again():
    asks = []

    def cut(handler: BaseHTTPRequestHandler) -> None:
        asks.append(handler.path)
        if len(asks) > 1:
            ok(handler)

    with answering(cut) as port, asked(port) as address:
        assert address.get("a tile", "/tile", 10) == b"tile"
    assert len(asks) == 2


def test_what_was_replaced_meanwhile_is_told_apart():
    with answering(lambda handler: handler.send_error(409)) as port, asked(port) as address:
        with pytest.raises(VersionChanged):
            address.send("PUT", "a result", "/result", {}, 10)
        with pytest.raises(ArchiveRefused, match="answers 409"):
            address.get("a tile", "/tile", 10)


def test_nothing_is_silenced_by_an_import():
    code = "import logging, app.slides.sectra_callback; assert logging.getLogger('urllib3').level == logging.NOTSET"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_neither_address_nor_token_is_in_an_error_or_its_cause():
    with answering(ok) as port:
        pass
    address = callback(f"http://127.0.0.1:{port}", "secret", (f"127.0.0.1:{port}",))
    with contextlib.closing(address), pytest.raises(ArchiveUnavailable, match="cannot be reached") as failure:
        address.get("a tile", "/slides/patient", 1000)
    assert failure.value.__suppress_context__
    assert not any(word in str(failure.value) for word in ("secret", "patient", str(port)))


@pytest.mark.parametrize("hosts", ["https://pathology.example", "a,b/c", "user@pathology.example", "*", "a b"])
def test_a_list_that_holds_no_hosts_stops_the_start(hosts):
    with pytest.raises(ValueError, match="is neither host nor host:port"):
        Settings(sectra_hosts=hosts)


def test_the_list_of_hosts_may_have_spaces():
    assert Settings(sectra_hosts="pathology.example, [::1]:9000 ,localhost:1").sectra_hosts
