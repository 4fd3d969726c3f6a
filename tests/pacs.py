"""What `docker/pacs` holds, started without Docker: its nginx, and its Orthanc's settings, on free ports."""

import grp
import json
import os
import pwd
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.conftest import ROOT
from tests.orthanc import free_port
from tests.programs import program

PACS = ROOT / "docker" / "pacs"
VIEWER = PACS / "viewer"
READER = ("reader", "what-a-person-types")
WATCHER = ("watcher", "what-compose-hands-over")
PASSWORDS = {"PACS_READER_PASSWORD": READER[1], "PACS_WATCHER_PASSWORD": WATCHER[1]}
START_SECONDS = 10
INSTALL_SECONDS = 300
_OF_THE_MACHINE = {
    "StorageDirectory",
    "IndexDirectory",
    "Plugins",
    "HttpPort",
    "DicomPort",
    "RemoteAccessAllowed",
    "StableAge",
}


def orthanc_settings() -> dict[str, Any]:
    """Return Orthanc's configuration as the profile has it."""
    text = (PACS / "orthanc" / "orthanc.json").read_text(encoding="utf-8")
    return dict(json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)))


def orthanc_options() -> dict[str, Any]:
    """Return the same without what belongs to the machine it runs on; the passwords come from `PASSWORDS`."""
    return {name: value for name, value in orthanc_settings().items() if name not in _OF_THE_MACHINE}


def install_libraries() -> None:
    """Bring the viewer's libraries from the lock, unless they are there already."""
    locked = json.loads((VIEWER / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    installed = VIEWER / "node_modules" / ".package-lock.json"
    if installed.exists():
        there = json.loads(installed.read_text(encoding="utf-8"))["packages"]
        if {path: package["integrity"] for path, package in there.items()} == {
            path: package["integrity"] for path, package in locked.items() if path
        }:
            return
    subprocess.run([program("npm"), "ci"], cwd=VIEWER, check=True, capture_output=True, timeout=INSTALL_SECONDS)


class Nginx:
    """The profile's nginx with this machine's ports and folders in its configuration.

    Args:
        folder: Where it keeps its log and its temporary files; belongs to it alone.
        archive: Host and port of the archive.
        names: Host and port of the name server that is asked for the archive's host, once a second at most; None where
            that is an address.
    """

    def __init__(self, folder: Path, archive: str, names: str | None = None) -> None:
        self.folder = folder
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        text = (VIEWER / "nginx.conf").read_text(encoding="utf-8")
        for here, there in {
            "/tmp/": f"{folder}/",
            "/srv/viewer/": f"{VIEWER}/",
            "listen 8080;": f"listen 127.0.0.1:{port};",
            "http://orthanc:8042;": f"http://{archive};",
            "resolver 127.0.0.11 valid=10s": f"resolver {names or '127.0.0.11'} valid=1s",
        }.items():
            assert here in text, f"nginx.conf has no {here}"
            text = text.replace(here, there)
        folder.mkdir(parents=True)
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        # Started by root, nginx would hand its workers to a user who may not look into a test's folder.
        user = f"{pwd.getpwuid(os.geteuid()).pw_name} {grp.getgrgid(os.getegid()).gr_name}"
        self.command = [program("nginx"), "-e", "/dev/stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
        self.command += ["-g", f"daemon off; user {user};"]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8")


@contextmanager
def running_nginx(folder: Path, archive: str, names: str | None = None) -> Iterator[Nginx]:
    """Give a started nginx; it is stopped when the block ends, however it ends."""
    nginx = Nginx(folder, archive, names)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(nginx.command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(nginx.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"nginx did not start:\n{nginx.log}")
            time.sleep(0.05)
        yield nginx
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=5)
    except httpx.TransportError:
        return False
    return True
