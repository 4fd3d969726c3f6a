"""The configuration of nginx that docs/configuration.md gives, before the service."""

import grp
import os
import pwd
import re
import subprocess
import time
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.conftest import ROOT
from tests.orthanc import free_port
from tests.pictures import encoded, noise
from tests.programs import program

CONFIGURATION = """
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    access_log off;
    server {{
        listen 127.0.0.1:{port};
        {location}
    }}
}}
"""
START_SECONDS = 10


@pytest.fixture
def proxy(service, tmp_path):
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    [location] = re.findall(r"^  location / \{\n.*?^  \}\n", page, re.MULTILINE | re.DOTALL)
    assert "proxy_pass http://127.0.0.1:8000;" in location
    port, there = free_port(), urlsplit(service.url).netloc
    location = location.replace("127.0.0.1:8000", there)
    (tmp_path / "nginx.conf").write_text(CONFIGURATION.format(folder=tmp_path, port=port, location=location))
    user = ""
    if os.geteuid() == 0:  # else it is said to make no sense
        user = f"user {pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name};"
    command = [program("nginx"), "-e", str(tmp_path / "error.log"), "-p", str(tmp_path)]
    process = subprocess.Popen([*command, "-c", str(tmp_path / "nginx.conf"), "-g", f"daemon off; {user}"])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                assert httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def test_nginx_writes_no_upload_to_its_disk_and_hands_refusals_on(proxy, tmp_path):
    png = {"Content-Type": "image/png"}
    picture = encoded(noise(1024, 1024))
    assert len(picture) > 10**6  # nginx buffers 16 KiB in memory
    assert httpx.post(f"{proxy}/segment", content=picture, headers=png, timeout=60).status_code == 200
    refused = httpx.post(f"{proxy}/segment", content=picture, headers={"Content-Type": "text/plain"}, timeout=60)
    assert refused.status_code == 415  # before its body was read
    assert (tmp_path / "error.log").read_text(encoding="utf-8") == ""
    assert not [path for name in ("client_body", "proxy") for path in (tmp_path / name).rglob("*") if path.is_file()]
