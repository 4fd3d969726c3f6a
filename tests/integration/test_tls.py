"""A service that speaks TLS, asks for keys and writes down who asked; several processes of it."""

import json
import signal
import ssl
import urllib.error
import urllib.request

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from app.access.callers import Caller, Scope
from app.access.gate import Certificate
from app.access.keys import line_of, new_key
from app.access_settings import AccessSettings, access_of
from app.errors import AccessUnusable
from tests.certificates import signed_by_itself
from tests.conftest import RunningService
from tests.issuer import pem
from tests.pictures import encoded, noise

KEY = new_key()
IMAGES_A_MINUTE = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A certificate of 127.0.0.1 that signs itself, its key, another one, and a file of keys."""
    folder = tmp_path_factory.mktemp("access")
    key, certificate = signed_by_itself()
    (folder / "cert.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(pem(key))
    (folder / "both.pem").write_bytes(certificate + pem(key))
    (folder / "other.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (folder / "locked.pem").write_bytes(locked)
    (folder / "keys").write_text(line_of(KEY, Caller("west", frozenset({Scope.SEGMENT}), IMAGES_A_MINUTE)))
    (folder / "keys").chmod(0o600)
    (folder / "writable").touch()
    (folder / "writable").chmod(0o666)
    return folder


def test_several_fronts_speak_tls_share_a_limit_and_write_one_log(folder):
    service = RunningService(
        *("--device", "cpu", "--fronts", "2", "--cores", "2"),
        *("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")),
        *("--keys-file", str(folder / "keys"), "--audit-log", str(folder / "audit.jsonl")),
    )
    try:
        assert service.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(folder / "cert.pem"))

        def post() -> int:
            headers = {"Content-Type": "image/png", "Authorization": f"Bearer {KEY}"}
            request = urllib.request.Request(f"{service.url}/classify", encoded(noise(32, 32)), headers)
            try:
                with urllib.request.urlopen(
                    request, context=trusting
                ) as answer:  # a connection each: both fronts get some
                    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
                    return answer.status
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        sent = [post() for _ in range(4 * IMAGES_A_MINUTE)]
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{service.url}/health/live", context=ssl.create_default_context())
    finally:
        status = service.stop(signal.SIGINT)
    assert status == 0
    # Ten seconds give one image more; two fronts that counted apart would let twice as many in.
    assert IMAGES_A_MINUTE <= sent.count(200) < 2 * IMAGES_A_MINUTE
    assert set(sent) == {200, 429}
    written = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert [(line["caller"], line["route"], line["status"]) for line in written] == [
        ("west", "/classify", status) for status in sent
    ]
    assert not any(KEY in line for line in service.log)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tls_cert": "none.pem"}, "none.pem: no such file or directory"),
        ({"tls_cert": "cert.pem"}, "a key that is in a file of its own is named by --tls-key"),
        ({"tls_cert": "keys", "tls_key": "key.pem"}, "are no certificate in PEM"),
        ({"tls_cert": "cert.pem", "tls_key": "other.pem"}, "KEY_VALUES_MISMATCH"),
        ({"tls_cert": "cert.pem", "tls_key": "locked.pem"}, "the key has a passphrase"),
        ({"keys_file": "writable"}, "chmod go-w"),
        ({"audit_log": "none/audit.jsonl"}, "no such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(folder, files, words):
    with pytest.raises(AccessUnusable) as caught:
        access_of(AccessSettings(**{name: folder / file for name, file in files.items()}), "127.0.0.1")
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_certificate_and_its_key_may_be_one_file(folder):
    certificate = access_of(AccessSettings(tls_cert=folder / "both.pem"), "127.0.0.1").certificate
    assert certificate == Certificate(folder / "both.pem", None)
