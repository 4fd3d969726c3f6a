"""What leaves for an archive, and for none but it."""

import base64
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
import requests
from pydantic import SecretStr
from urllib3 import HTTPResponse

from app.errors import ArchiveDenied, ArchiveNotAllowed, ArchiveRefused, ArchiveUnavailable
from app.interop import archive_http
from app.interop.archive_http import ArchiveAccess, ArchiveSession, checked_address
from tests.orthanc import free_port
from tests.programs import program
from tests.web import sends, serving

LOCAL = ArchiveAccess(frozenset({"127.0.0.1"}), timeout_seconds=5)


def get(url: str, access: ArchiveAccess = LOCAL, at: str = "/") -> bytes:
    with ArchiveSession(url, access) as session:
        return session.get(url + at).content


@pytest.mark.parametrize(
    "url",
    [
        "https://archive.example/dicom-web",
        "https://ARCHIVE.example:8443/",
        "http://127.0.0.1:8042",
        "http://[::1]:8042",
    ],
)
def test_addresses_on_the_list_are_allowed(url):
    access = ArchiveAccess(frozenset({"Archive.example", "127.0.0.1", "::1"}))
    assert checked_address(url, access).geturl() == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://other.example/dicom-web", "other.example is not an allowed archive"),
        ("https://archive.example.evil.example/", "is not an allowed archive"),
        ("https://evil.archive.example/", "is not an allowed archive"),
        ("http://archive.example/dicom-web", "plain HTTP shows patients' data"),
        ("https://user:secret@archive.example/", "holds credentials"),
        ("https://archive.example@evil.example/", "holds credentials"),
        ("ftp://archive.example/", "must be one of http or https"),
        ("archive.example", "must be one of http or https"),
        ("https://archive.example/dicom-web?study=1", "must be one of http or https"),
        ("https://archive.example:port/", "is not a URL"),
        ("https://[archive.example/", "is not a URL"),
        ("https://bücher.example/", "name in ASCII"),
    ],
)
def test_any_other_address_is_refused_before_anything_is_sent(url, message):
    with pytest.raises(ArchiveNotAllowed, match=message) as refused:
        ArchiveSession(url, ArchiveAccess(frozenset({"archive.example"})))
    assert "secret" not in str(refused.value)


def test_no_archive_is_allowed_by_default():
    with pytest.raises(ArchiveNotAllowed, match="--allow-host"):
        checked_address("http://127.0.0.1:8042", ArchiveAccess(frozenset()))


def test_plain_http_in_a_trusted_network_has_to_be_allowed_by_name():
    access = ArchiveAccess(frozenset({"orthanc"}), allow_http=True)
    assert checked_address("http://orthanc:8042", access).hostname == "orthanc"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_address_is_not_followed_and_gets_no_credentials(status):
    access = ArchiveAccess(LOCAL.hosts, token=SecretStr("token-of-the-archive"))
    with serving(sends(200)) as other, serving(sends(status, Location=f"{other.url}/login")) as archive:
        with pytest.raises(ArchiveRefused, match="redirects to another address"):
            get(archive.url, access)
        assert archive.seen[0][1]["Authorization"] == "Bearer token-of-the-archive"
        assert other.seen == []


def test_a_redirect_within_the_archive_is_followed():
    def answer(handler: BaseHTTPRequestHandler) -> None:
        sends(200, b"here")(handler) if handler.path == "/new" else sends(302, Location="/new")(handler)

    with serving(answer) as archive:
        assert get(archive.url, at="/old") == b"here"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_what_is_to_be_stored_is_not_followed(status):
    """After 301 to 303 it would become a GET, whose answer says nothing of what is stored."""
    with serving(sends(status, b"<html>", Location="/login")) as archive, ArchiveSession(archive.url, LOCAL) as session:
        with pytest.raises(ArchiveRefused, match="redirects what is to be stored"):
            session.post(f"{archive.url}/studies", b"instance")
        assert [path for path, _ in archive.seen] == ["/studies"]


def test_a_session_reaches_no_other_address_whoever_asks():
    with serving(sends(200)) as other, ArchiveSession("http://127.0.0.1:1", LOCAL) as session:
        with pytest.raises(ArchiveRefused, match="another address"):
            session.get(other.url)
        assert other.seen == []


def test_a_user_name_and_password_go_to_the_archive():
    access = ArchiveAccess(LOCAL.hosts, username="reader", password=SecretStr("word"))
    with serving(sends(200)) as archive:
        get(archive.url, access)
        assert base64.b64decode(archive.seen[0][1]["Authorization"].removeprefix("Basic ")) == b"reader:word"


def test_a_user_name_and_password_go_as_utf8():
    access = ArchiveAccess(LOCAL.hosts, username="jürgen", password=SecretStr("pä€"))
    with serving(sends(200)) as archive:
        get(archive.url, access)
        sent = base64.b64decode(archive.seen[0][1]["Authorization"].removeprefix("Basic "))
        assert sent.decode() == "jürgen:pä€"


def test_secrets_are_not_shown():
    access = ArchiveAccess(LOCAL.hosts, token=SecretStr("hush"), username="reader", password=SecretStr("hush"))
    assert "hush" not in repr(access)
    assert "reader" not in repr(access)


def test_credentials_and_proxies_of_the_machine_take_no_part(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with serving(sends(200)) as proxy, serving(sends(200)) as archive:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        get(archive.url)
        assert proxy.seen == []
        assert "Authorization" not in archive.seen[0][1]


def test_https_goes_through_the_machines_proxy_except_to_hosts_that_it_excepts(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "near.example")
    access = ArchiveAccess(frozenset({"far.example", "near.example", "localhost"}))
    assert ArchiveSession("https://far.example/", access).proxies["https"] == "http://proxy.example:3128"
    assert "https" not in ArchiveSession("https://near.example/", access).proxies
    assert "https" not in ArchiveSession("https://localhost/", access).proxies


@pytest.mark.parametrize("status", [401, 403])
def test_denied_access_is_told_from_other_failures(status):
    with serving(sends(status)) as archive, pytest.raises(ArchiveDenied, match=str(status)):
        get(archive.url)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_archive_that_says_not_now_is_asked_again_and_then_unavailable(status, monkeypatch):
    monkeypatch.setattr(archive_http, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    with serving(sends(status)) as archive:
        with pytest.raises(ArchiveUnavailable, match=str(status)):
            get(archive.url)
        assert len(archive.seen) == 4


def test_other_statuses_are_left_to_the_caller():
    with serving(sends(404, b"none")) as archive:
        assert get(archive.url) == b"none"


def test_an_archive_that_is_not_there_is_unavailable(monkeypatch):
    monkeypatch.setattr(archive_http, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    with pytest.raises(ArchiveUnavailable, match="cannot be reached"):
        get(f"http://127.0.0.1:{free_port()}")


def test_an_archive_that_says_nothing_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(archive_http, "_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    heard = threading.Event()
    with serving(lambda _: heard.wait(30) and None) as archive:
        try:
            with pytest.raises(ArchiveUnavailable, match="--timeout"):
                get(archive.url, ArchiveAccess(LOCAL.hosts, timeout_seconds=1))
        finally:
            heard.set()
        assert len(archive.seen) == 1, "another try would take as long"


def pours(head: bytes, drop: bytes, pause_seconds: float = 0) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return what answers with `head` and then with drop after drop, until nobody listens any more."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(head)
            while True:
                handler.wfile.write(drop)
                threading.Event().wait(pause_seconds)
        except ConnectionError:
            pass

    return answer


def test_what_comes_with_an_archive_that_does_not_answer_now_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(archive_http, "_PAUSES_SECONDS", (0.0,))
    with serving(pours(b"HTTP/1.1 503 Busy\r\n\r\n", b"x" * 65536)) as archive:
        with pytest.raises(ArchiveUnavailable, match="503"):
            get(archive.url)
        assert len(archive.seen) == 2


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-Name: "])
def test_a_head_that_drips_is_given_up_in_time(head):
    access = ArchiveAccess(LOCAL.hosts, timeout_seconds=1)
    with serving(pours(head, b"x", 0.02)) as archive:
        with pytest.raises(ArchiveUnavailable, match="--timeout"):
            get(archive.url, access)
        assert len(archive.seen) == 1


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"])
def test_a_body_that_drips_is_given_up_in_time(monkeypatch, head):
    monkeypatch.setattr(archive_http, "_MOST_TIMEOUTS", 2)
    access = ArchiveAccess(LOCAL.hosts, timeout_seconds=1)
    with serving(pours(head, b"x", 0.02)) as archive, pytest.raises(ArchiveUnavailable, match="more than 2 s"):
        get(archive.url, access)


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_session_that_is_closed_ends_what_reads_wait_for(head, encrypted, certificate):
    asked, over = threading.Event(), threading.Event()
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    access = ArchiveAccess(LOCAL.hosts, ca_bundle=Path(f"{certificate}.crt"), timeout_seconds=60)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(head)
        asked.set()
        over.wait(60)

    with serving(answer, tls if encrypted else None) as archive:
        session = ArchiveSession(archive.url, access)
        failures: list[Exception] = []

        def read() -> None:
            try:
                session.get(archive.url)
            except ArchiveUnavailable as error:
                failures.append(error)

        reading = threading.Thread(target=read)
        reading.start()
        assert asked.wait(10)
        session.close()
        reading.join(20)
        over.set()
        reading.join()
        assert len(failures) == 1
        assert len(archive.seen) == 1
        with pytest.raises(ArchiveUnavailable):
            session.get(archive.url)
        assert len(archive.seen) == 1


def test_a_body_that_nobody_reads_on_ends_with_the_session_without_a_word():
    with serving(pours(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1000)) as archive:
        session = ArchiveSession(archive.url, LOCAL)
        response = session.get(archive.url, stream=True)
        chunks = response.iter_content(10)
        next(chunks)
        session.close()
        chunks.close()
        response.close()


def test_what_is_being_stored_is_waited_for_by_a_session_that_is_closed():
    asked, closed = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        closed.wait(60)
        sends(200, b"stored")(handler)

    with serving(answer) as archive:
        session = ArchiveSession(archive.url, ArchiveAccess(LOCAL.hosts, timeout_seconds=60))
        answers: list[bytes] = []
        storing = threading.Thread(target=lambda: answers.append(session.post(archive.url, b"instance").content))
        storing.start()
        assert asked.wait(10)
        session.close()
        closed.set()
        storing.join()
        assert answers == [b"stored"]


def test_every_request_has_a_timeout(monkeypatch):
    given = []
    monkeypatch.setattr(
        "requests.adapters.HTTPAdapter.send", lambda *_, timeout, **__: given.append(timeout) or _answer()
    )
    with ArchiveSession("http://127.0.0.1:1", ArchiveAccess(LOCAL.hosts, timeout_seconds=17)) as session:
        session.get("http://127.0.0.1:1/")
        session.post("http://127.0.0.1:1/", b"", timeout=3)
    assert given == [(5, 17), 3]


@contextmanager
def reading_late(pause_seconds: float, tls: SSLContext | None) -> Iterator[str]:
    """Give the URL of an archive that takes little of a body before it has paused; GETs are answered at once."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(60)
        listener.listen()

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted if tls is None else tls.wrap_socket(accepted, server_side=True) as sock:
                stream = sock.makefile("rb")
                while head := list(iter(stream.readline, b"\r\n")):
                    if head[0].startswith(b"POST"):
                        threading.Event().wait(pause_seconds)
                        stream.read(next(int(line[15:]) for line in head if line.startswith(b"Content-Length:")))
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    if head[0].startswith(b"POST"):
                        return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
def test_what_is_stored_may_be_taken_slowly(monkeypatch, certificate, kept, encrypted):
    """Connecting has its own limit, which is shorter; before, what was sent over the connection had it too."""
    monkeypatch.setattr(archive_http, "_CONNECT_SECONDS", 1.0)
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    access = ArchiveAccess(LOCAL.hosts, ca_bundle=Path(f"{certificate}.crt"), timeout_seconds=60)
    with reading_late(1.5, tls if encrypted else None) as url, ArchiveSession(url, access) as session:
        if kept:
            assert session.get(url).content == b"ok"
        assert session.post(url, bytes(2**24)).content == b"ok"


def _answer() -> requests.Response:
    answer = requests.Response()
    answer.status_code, answer.raw = 200, HTTPResponse(BytesIO())
    return answer


def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(archive_http, "_MOST_BYTES", 1000)
    with serving(sends(200, b"x" * 1001)) as archive, pytest.raises(ArchiveUnavailable, match="more than 1000 bytes"):
        get(archive.url)


def test_an_answer_that_breaks_off_is_no_answer():
    with (
        serving(sends(200, b"half", Content_Length="8")) as archive,
        pytest.raises(ArchiveUnavailable, match="breaks off"),
    ):
        get(archive.url)


def test_parts_without_the_mark_that_closes_them_are_no_answer():
    """Orthanc states no length: where a connection ends early, nothing else tells."""
    whole = b"--a b\r\nContent-Type: image/jpeg\r\n\r\nhalf of it\r\n--a b--\r\n"
    kind = {"Content_Type": 'multipart/related; type="image/jpeg"; boundary="a b"'}
    with serving(sends(200, whole, **kind)) as archive:
        assert get(archive.url) == whole
    for cut in (3, len(b"--a b--\r\n"), 20, len(whole)):
        with (
            serving(sends(200, whole[:-cut], **kind)) as archive,
            pytest.raises(ArchiveUnavailable, match="breaks off"),
        ):
            get(archive.url)


@pytest.mark.parametrize("status", [204, 400, 404, 406])
def test_an_answer_that_gives_no_parts_needs_no_mark(status):
    with serving(sends(status, Content_Type='multipart/related; boundary="a"')) as archive:
        assert get(archive.url) == b""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate and its key."""
    return signed(tmp_path_factory.mktemp("tls") / "archive.pem", days=2)


def signed(path: Path, days: int) -> Path:
    """Write a certificate of 127.0.0.1's, beside it and behind its key; return `path`."""
    names = ["-subj", "/CN=archive", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(path)]
    sign = ["x509", "-req", "-in", f"{path}.csr", "-signkey", str(path), "-copy_extensions", "copy"]
    for command in [[*key, *names, "-out", f"{path}.csr"], [*sign, "-days", str(days), "-out", f"{path}.crt"]]:
        subprocess.run([program("openssl"), *command], check=True, capture_output=True)
    with path.open("ab") as file:
        file.write(Path(f"{path}.crt").read_bytes())
    return path


def test_certificates_are_verified_and_an_authority_can_be_named(certificate, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))  # decides for requests alone, but not here
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with serving(sends(200, b"trusted"), tls) as archive:
        with pytest.raises(ArchiveUnavailable, match="certificate is not trusted; --ca-bundle"):
            get(archive.url)
        assert archive.seen == []
        trusting = ArchiveAccess(LOCAL.hosts, ca_bundle=Path(f"{certificate}.crt"))
        assert get(archive.url, trusting) == b"trusted"


def test_a_certificate_that_has_expired_is_told(tmp_path):
    expired = signed(tmp_path / "expired.pem", days=-1)
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(expired)
    trusting = ArchiveAccess(LOCAL.hosts, ca_bundle=Path(f"{expired}.crt"))
    with serving(sends(200), tls) as archive, pytest.raises(ArchiveUnavailable, match="has expired; its administrator"):
        get(archive.url, trusting)


def test_a_certificate_of_another_host_is_told(certificate):
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    trusting = ArchiveAccess(frozenset({"localhost"}), ca_bundle=Path(f"{certificate}.crt"))
    with serving(sends(200), tls) as archive, pytest.raises(ArchiveUnavailable, match="is for another host; --url"):
        get(archive.url.replace("127.0.0.1", "localhost"), trusting)


def test_a_head_that_drips_over_tls_is_given_up_in_time(certificate):
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    access = ArchiveAccess(LOCAL.hosts, ca_bundle=Path(f"{certificate}.crt"), timeout_seconds=1)
    with serving(pours(b"", b"x", 0.02), tls) as archive, pytest.raises(ArchiveUnavailable, match="--timeout"):
        get(archive.url, access)


def test_an_archive_without_tls_is_told_from_one_that_is_not_trusted():
    with serving(sends(200)) as archive, pytest.raises(ArchiveUnavailable, match="does not speak TLS"):
        get(archive.url.replace("http:", "https:"))
