"""A real Orthanc with its DICOMweb plug-in, on loopback and free ports, in a folder of the test's."""

import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.programs import program

AE_TITLE = "ORTHANC"
START_SECONDS = 30
STABLE_AGE_SECONDS = 1
_PLUGIN = "libOrthancDicomWeb.so"
_PLUGIN_FOLDERS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))


def free_port() -> int:
    """Return a port that nobody listens on, of those that Linux does not hand out by itself.

    So nothing that another test opens takes it before the program that it is meant for does.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


class Orthanc:
    """An archive that can be started, stopped and started again on the same ports and with the same store.

    Args:
        folder: Where it keeps its configuration, store and log; belongs to it alone.
        options: Added to its configuration.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self._program = program("Orthanc")
        self.folder = folder
        self.http_port, self.dicom_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.dicomweb_url = f"{self.url}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None
        plugins = [str(folder / _PLUGIN) for folder in _PLUGIN_FOLDERS if (folder / _PLUGIN).exists()]
        assert plugins, "Orthanc has no DICOMweb plug-in; docs/integrations.md says which Debian package has it"
        configuration = {
            "Name": "tests",
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "Plugins": plugins[:1],  # orthanc-gdcm, which would be loaded from the folder, crashes on frames of a SEG
            "RemoteAccessAllowed": False,  # listens on loopback alone
            "AuthenticationEnabled": False,
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": AE_TITLE,
            "StableAge": STABLE_AGE_SECONDS,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **options,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "orthanc.log").open("ab") as log:
            command = [self._program, str(self.folder / "orthanc.json")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError("Orthanc did not start:\n" + (self.folder / "orthanc.log").read_text())
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            httpx.get(f"{self.dicomweb_url}/studies", timeout=5)
        except httpx.TransportError:
            return False
        return True

    def stop(self) -> None:
        """Stop it; what it stored stays."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End it at once, where nobody asks for what it stored any more; it takes seconds to stop."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def send(self, files: Sequence[Path]) -> None:
        """Send DICOM files with `storescu`, as a scanner does: VL images as JPEG, the rest uncompressed."""
        address = ["-aec", AE_TITLE, "127.0.0.1", str(self.dicom_port)]
        command = [program("storescu"), "--required", "--propose-jpeg8", *address, *map(str, files)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def put(self, files: Sequence[Path]) -> None:
        """Add DICOM files of any transfer syntax."""
        for path in files:
            httpx.post(f"{self.url}/instances", content=path.read_bytes()).raise_for_status()

    def delete(self, instance_uid: str) -> None:
        """Delete the instance of a SOP Instance UID."""
        [instance] = httpx.post(f"{self.url}/tools/lookup", content=instance_uid).raise_for_status().json()
        httpx.delete(f"{self.url}/instances/{instance['ID']}").raise_for_status()

    def series(self, modality: str) -> list[dict[str, Any]]:
        """Return what Orthanc knows of each series of a modality."""
        query = {"Level": "Series", "Query": {"Modality": modality}, "Expand": True}
        answer = httpx.post(f"{self.url}/tools/find", json=query)
        answer.raise_for_status()
        return list(answer.json())

    def file(self, instance: str) -> bytes:
        """Return the DICOM file of one of Orthanc's instances."""
        return httpx.get(f"{self.url}/instances/{instance}/file").raise_for_status().content


@contextmanager
def running_orthanc(folder: Path, **options: Any) -> Iterator[Orthanc]:
    """Give a started Orthanc; it is ended when the block ends, however it ends."""
    archive = Orthanc(folder, **options)
    archive.start()
    try:
        yield archive
    finally:
        archive.kill()
