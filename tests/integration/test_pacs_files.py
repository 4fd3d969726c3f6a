"""What the compose profile `pacs` is made of, as far as it can be seen without Docker."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
import yaml

from app.cli.dicomweb import dicomweb
from tests.conftest import ROOT
from tests.names import name_server
from tests.orthanc import Orthanc, running_orthanc
from tests.pacs import PACS, PASSWORDS, READER, VIEWER, WATCHER, Nginx, orthanc_options, orthanc_settings, running_nginx
from tests.programs import program
from tests.waiting import until
from tests.web import sends, serving

FIND_SECONDS = 20
IN_PROFILE = ("orthanc", "viewer", "watcher")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with pytest.MonkeyPatch.context() as patch:
        for name, password in PASSWORDS.items():
            patch.setenv(name, password)
        with running_orthanc(tmp_path_factory.mktemp("archive"), **orthanc_options()) as running:
            yield running


@pytest.fixture(scope="module")
def nginx(archive: Orthanc, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with running_nginx(tmp_path_factory.mktemp("nginx") / "run", f"127.0.0.1:{archive.http_port}") as running:
        yield running


def services() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


def test_nginx_accepts_its_configuration(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path / "run", "127.0.0.1:1")
    checked = subprocess.run([*nginx.command, "-t"], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_archive_and_viewer_have_one_origin_and_the_archive_keeps_its_password(nginx: Nginx) -> None:
    page = httpx.get(f"{nginx.url}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html"
    studies = f"{nginx.url}/dicom-web/studies"
    assert httpx.get(studies).status_code == 401
    assert httpx.get(studies, auth=(READER[0], "guess")).status_code == 401
    answer = httpx.get(studies, auth=READER)
    assert (answer.status_code, answer.json()) == (200, [])
    assert answer.headers["cache-control"] == "no-store"


def test_an_archive_that_comes_late_or_comes_back_at_another_address_is_found(tmp_path: Path) -> None:
    known: dict[str, str] = {}
    with (
        serving(sends(200, b"before"), host="127.0.0.2") as before,
        serving(sends(200, b"after"), host="127.0.0.3", port=before.http.server_port) as after,
        name_server(known) as names,
        running_nginx(tmp_path / "run", f"orthanc:{before.http.server_port}", names) as nginx,
    ):
        path = "/dicom-web/studies?limit=1&includefield=00080020,00080050"
        assert httpx.get(f"{nginx.url}/").status_code == 200
        assert httpx.get(nginx.url + path).status_code == 502

        def comes_from(address: str, body: str) -> None:
            known["orthanc"] = address
            until(lambda: httpx.get(nginx.url + path).text == body, FIND_SECONDS, lambda: nginx.log)

        comes_from("127.0.0.2", "before")
        comes_from("127.0.0.3", "after")
        assert {asked for asked, _ in before.seen + after.seen} == {path}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_is_stored_or_deleted_through_nginx_even_with_the_watchers_password(nginx: Nginx, method: str) -> None:
    answer = httpx.request(method, f"{nginx.url}/dicom-web/studies", auth=WATCHER)
    assert answer.status_code == 403
    assert httpx.request(method, f"{nginx.url}/dicom-web/servers", auth=WATCHER).status_code == 403


def test_the_archive_itself_lets_the_watcher_store(archive: Orthanc) -> None:
    answer = httpx.post(f"{archive.dicomweb_url}/studies", auth=WATCHER, content=b"")
    assert answer.status_code not in {401, 403, 404}


@pytest.mark.parametrize("path", ["/system", "/instances", "/tools/find", "/dicom-web/../system", "/changes"])
def test_orthancs_own_api_is_not_behind_nginx(nginx: Nginx, path: str) -> None:
    assert httpx.get(nginx.url + path, auth=WATCHER).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/dicom-web/../system",
        "/dicom-web/%2e%2e/system",
        "/dicom-web/..%2fsystem",
        "/dicom-web/..%5csystem",
        "/dicom-web/..%5Csystem?x=1",
        "/dicom-web/..\\system",
        "/dicom-web/studies/..%5c..%5c..%5csystem",
        "/dicom-web/%2e%2e%5csystem",
        "/dicom-web/..;/system",
        "/dicom-web/..%00/system",
        "/dicom-web/..%255csystem",
        "/dicom-web%5c..%5csystem",
        "/dicom-web/..//system",
        "/dicom-web/x/../../system",
    ],
)
def test_no_way_of_writing_a_path_leads_from_dicomweb_to_orthancs_own_api(nginx: Nginx, path: str) -> None:
    """As it is: httpx would put a path in order before it is sent."""
    where = urlsplit(nginx.url)
    credentials = base64.b64encode(":".join(WATCHER).encode()).decode()
    connection = HTTPConnection(str(where.hostname), int(where.port or 0), timeout=10)
    try:
        connection.putrequest("GET", path)
        connection.putheader("Authorization", f"Basic {credentials}")
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    assert answer.status in {400, 404}
    assert b"ApiVersion" not in body


@pytest.mark.parametrize(
    "path", ["studies?00100020=a%5Cb&includefield=00080020,00080050", "studies?PatientName=M%C3%BCller%5E%2A"]
)
def test_a_search_may_hold_any_character(nginx: Nginx, path: str) -> None:
    assert httpx.get(f"{nginx.url}/dicom-web/{path}", auth=READER).status_code == 200


@pytest.mark.parametrize("path", ["/", "/main.js", "/dicom-web/studies", "/nothing"])
def test_every_answer_has_the_headers_that_guard_a_browser(nginx: Nginx, path: str) -> None:
    headers = httpx.get(nginx.url + path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
    assert "unsafe-inline" not in policy
    assert "//" not in policy, "no other origin"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] in {"no-cache", "no-store"}


def test_no_uid_reaches_the_log(tmp_path: Path) -> None:
    """Neither from a path, nor from a query string, nor from a line of an error: nothing listens on port 1."""
    with running_nginx(tmp_path / "run", "127.0.0.1:1") as nginx:
        assert httpx.get(f"{nginx.url}/?study=1.2.3.4.5").status_code == 200
        assert httpx.get(f"{nginx.url}/dicom-web/studies/1.2.3.4.5/series?PatientName=Doe").status_code == 502
        assert httpx.get(f"{nginx.url}/1.2.3.4.5").status_code == 404
    lines = [line for line in nginx.log.splitlines() if " GET " in line]
    assert len(lines) >= 3
    assert "1.2.3" not in nginx.log
    assert "Doe" not in nginx.log


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "PACS_READER_PASSWORD is not set"),
        ({**PASSWORDS, "PACS_WATCHER_PASSWORD": ""}, "PACS_WATCHER_PASSWORD is not set"),
        ({**PASSWORDS, "PACS_READER_PASSWORD": 'x", "admin": "y'}, "PACS_READER_PASSWORD may hold letters"),
    ],
)
def test_the_archive_does_not_start_without_passwords_of_its_own(given: dict[str, str], complaint: str) -> None:
    start = [program("sh"), str(PACS / "orthanc" / "start"), "/nothing.json"]
    environment = {"PATH": "/usr/bin:/usr/sbin", **given}
    started = subprocess.run(start, env=environment, check=False, capture_output=True, text=True)
    assert started.returncode == 1
    assert started.stderr.startswith(complaint)
    assert len(started.stderr.splitlines()) == 1


def test_the_archives_configuration_is_the_safe_one() -> None:
    settings = orthanc_settings()
    assert settings["AuthenticationEnabled"] is True
    assert settings["RegisteredUsers"] == {"reader": "${PACS_READER_PASSWORD}", "watcher": "${PACS_WATCHER_PASSWORD}"}
    assert settings["OverwriteInstances"] is False
    assert [Path(plugin).name for plugin in settings["Plugins"]] == ["libOrthancDicomWeb.so"]
    assert not any(settings[f"DicomAlwaysAllow{what}"] for what in ("Find", "Get", "Move"))


def test_the_lock_of_the_viewer_has_hashes_and_no_address_of_a_registry() -> None:
    lock = json.loads((VIEWER / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    root = lock.pop("")
    assert root["dependencies"] == json.loads((VIEWER / "package.json").read_text(encoding="utf-8"))["dependencies"]
    assert all(re.fullmatch(r"[0-9.]+", version) for version in root["dependencies"].values())
    for path, package in lock.items():
        assert package["integrity"].startswith("sha512-"), path
        assert "resolved" not in package, path


def test_only_the_profile_starts_the_archive() -> None:
    for name, service in services().items():
        assert service.get("profiles") == (["pacs"] if name in IN_PROFILE else None), name


def test_the_watchers_command_is_one_that_tessera_takes() -> None:
    watcher = services()["watcher"]
    group, command, *flags = watcher["command"]
    assert group == "dicomweb"
    given = dicomweb.commands[command].make_context(command, list(flags)).params
    assert urlsplit(given["url"]).hostname in services()
    assert given["hosts"] == (urlsplit(given["url"]).hostname,)
    assert watcher["volumes"] == [f"watched:{given['state'].parent}"]
