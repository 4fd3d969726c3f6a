"""A service that speaks TLS, asks for keys and writes down who asked; several processes of it."""

import json
import re
import signal
import ssl
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from app.access.callers import Caller, Scope
from app.access.expiry import expiry_of
from app.access.gate import Certificate
from app.access.keys import new_key
from app.access_settings import AccessSettings, access_of
from app.errors import AccessUnusable
from tests.certificates import signed_by_itself
from tests.conftest import RunningService
from tests.issuer import pem
from tests.keys_file import write_keys
from tests.pictures import encoded, noise
from tests.waiting import until

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
    write_keys(folder / "keys", {KEY: Caller("west", frozenset({Scope.SEGMENT}), IMAGES_A_MINUTE)})
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

        def post(client: int) -> int:
            headers = {
                "Content-Type": "image/png",
                "Authorization": f"Bearer {KEY}",
                "X-Forwarded-For": f"10.1.7.{client}",
            }
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

        sent = [post(client) for client in range(4 * IMAGES_A_MINUTE)]
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"{service.url}/health/live", context=ssl.create_default_context())
    finally:
        status = service.stop(signal.SIGINT)
    assert status == 0
    # Ten seconds give one image more; two fronts that counted apart would let twice as many in.
    assert IMAGES_A_MINUTE <= sent.count(200) < 2 * IMAGES_A_MINUTE
    assert set(sent) == {200, 429}
    written = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert [(line["caller"], line["address"], line["route"], line["status"]) for line in written] == [
        ("west", f"10.1.7.{client}", "/classify", status) for client, status in enumerate(sent)
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


@pytest.mark.parametrize(
    ("trusted", "address"), [(None, "10.1.7.22"), ("192.0.2.1", "127.0.0.1")], ids=["this machine", "another"]
)
def test_an_address_that_is_forwarded_is_believed_of_a_trusted_proxy_alone(tmp_path, trusted, address):
    log = tmp_path / "audit.jsonl"
    env = {} if trusted is None else {"FORWARDED_ALLOW_IPS": trusted}
    with RunningService("--device", "cpu", "--fronts", "1", "--audit-log", str(log), env=env) as service:
        headers = {"X-Forwarded-For": "10.1.7.22", "Content-Type": "text/plain"}
        assert httpx.post(f"{service.url}/segment", content=b"x", headers=headers).status_code == 415
        assert service.stop() == 0
    [line] = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["address"], line["status"]) == (address, 415)


def test_a_reload_takes_a_renewed_certificate_and_refuses_files_that_cannot_be_used(tmp_path):
    admin = new_key()
    keys = write_keys(tmp_path / "keys", {admin: Caller("admin", frozenset({Scope.ADMIN, Scope.METRICS}))})
    chain, own_key = tmp_path / "cert.pem", tmp_path / "key.pem"
    first, second = signed_by_itself(), signed_by_itself(hours=2)

    def install(key, certificate: bytes) -> None:
        chain.write_bytes(certificate)
        own_key.write_bytes(pem(key))

    def shown() -> set[bytes]:
        """Return the certificates that connections of their own are shown: of two fronts, more than one each."""
        where = urlsplit(service.url)
        return {ssl.get_server_certificate((where.hostname, where.port), timeout=10).encode() for _ in range(8)}

    def ask(method: str, path: str) -> httpx.Response:
        with httpx.Client(verify=False, timeout=30) as client:
            return client.request(method, f"{service.url}{path}", headers={"Authorization": f"Bearer {admin}"})

    def reload() -> httpx.Response:
        return ask("POST", "/admin/reload")

    def said_to_expire_at() -> list[float]:
        said = ask("GET", "/metrics").text
        found = re.findall(r"^tessera_tls_certificate_expiry_timestamp_seconds (\S+)$", said, re.MULTILINE)
        return [float(value) for value in found]

    install(*first)
    with RunningService(
        *("--device", "cpu", "--fronts", "2", "--cores", "2", "--keys-file", str(keys)),
        *("--tls-cert", str(chain), "--tls-key", str(own_key)),
    ) as service:
        assert shown() == {first[1]}
        install(*second)
        assert shown() == {first[1]}  # as long as nobody asks for it
        assert said_to_expire_at() == [expiry_of(first[1])]
        assert reload().status_code == 200
        until(lambda: shown() == {second[1]}, tell=service.said)
        until(lambda: said_to_expire_at() == [expiry_of(second[1])], tell=service.said)

        chain.write_bytes(b"no certificate")
        refused = reload()
        assert refused.status_code == 409
        assert f"{chain} and {own_key} are no certificate in PEM" in refused.json()["detail"]
        install(*second)
        keys.write_text(keys.read_text() + "a slip\n")
        refused = reload()
        assert refused.status_code == 409
        assert f"{keys}, line 2: a key is a name" in refused.json()["detail"]
        assert shown() == {second[1]}
        assert service.stop(signal.SIGINT) == 0
