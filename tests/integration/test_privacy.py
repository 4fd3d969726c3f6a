"""Nothing that a client sends is kept or said again: a canary in every place for text, then a search of what is left.

What is searched: standard error at its most talkative, standard output, the audit log, metrics, each answer from its
status line to its last byte, and the folders that a program might write to. DICOM results carry the patient's
identifiers on purpose, and nothing else of what was sent.
"""

import json
import resource
import signal
import sys
from base64 import b64encode
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from app.access.callers import Caller, Scope
from app.access.keys import new_key
from tests.canaries.files import IDENTIFIERS, PIXELS, planted_files, png_chunks
from tests.canaries.requests import Request, with_faults, with_files
from tests.canaries.words import Canaries, holds
from tests.conftest import RunningService
from tests.fuzz.service import answers, connect, everything_from, processes_of
from tests.keys_file import write_keys
from tests.pictures import encoded, noise
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="files of processes are read from /proc")

MOST_FILE_BYTES = 2**18
"""What the service's processes may write to a file while it is asked: enough for its audit log, and for no upload."""
SEMAPHORE_BYTES = 32
"""On Linux; see sem_overview(7)."""
KEY = new_key()
OPEN_FOR_WRITING = 0o3


@dataclass
class Evidence:
    """What is left of a service that was asked in every way.

    Attributes:
        canaries: What it was told.
        answers: What came back over the sockets, by what was asked.
        dicom: Those of them that are DICOM objects.
        left: What it wrote elsewhere, by where.
        written_to: Files that its processes held open for writing, beside memory.
        made: Files in its own folders that were not there before it was started.
    """

    canaries: Canaries = field(default_factory=Canaries)
    answers: dict[str, bytes] = field(default_factory=dict)
    dicom: dict[str, bytes] = field(default_factory=dict)
    left: dict[str, bytes] = field(default_factory=dict)
    written_to: set[str] = field(default_factory=set)
    made: list[Path] = field(default_factory=list)


def answer_to(asked: Request, service: RunningService) -> bytes:
    """Return all that comes back over a connection of its own; what is no HTTP is listened to for a while longer."""
    with connect(service) as connection:
        connection.sendall(asked.text)
        if not asked.is_http:
            return everything_from(connection)
        return b"".join(iter(partial(connection.recv, 2**16), b""))


def written_to(pids: list[int]) -> set[str]:
    """Return the regular files that processes hold open for writing."""
    found = set()
    for handle in (handle for pid in pids for handle in Path(f"/proc/{pid}/fd").iterdir()):
        if not handle.is_file():  # also a file that was deleted, which is how a temporary one hides
            continue
        with suppress(FileNotFoundError):  # closed since it was listed
            flags = (handle.parent.parent / "fdinfo" / handle.name).read_text(encoding="ascii").split()[3]
            if int(flags, 8) & OPEN_FOR_WRITING:
                found.add(str(handle.readlink()))
    return found


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """One service that has a folder of its own in each place that programs write to."""
    access = tmp_path_factory.mktemp("access")
    own = {name: tmp_path_factory.mktemp(name) for name in ("TMPDIR", "HOME", "started-in")}
    keys, audit, stdout = access / "keys", access / "audit.jsonl", access / "stdout"
    write_keys(keys, {KEY: Caller("west", frozenset(Scope))})
    before = files_below(*own.values())
    gathered = Evidence()
    with stdout.open("wb") as printed:
        service = RunningService(
            *("--device", "cpu", "--fronts", "2", "--cores", "2", "--log-level", "debug"),
            *("--keys-file", str(keys), "--audit-log", str(audit), "--cors-origins", "https://lis.example"),
            env={"TMPDIR": str(own["TMPDIR"]), "HOME": str(own["HOME"]), "PYTHONDONTWRITEBYTECODE": "1"},
            folder=own["started-in"],
            stdout=printed,
        )
    try:
        pids = processes_of(service.process.pid)
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
        for asked in (*with_files(gathered.canaries, KEY), *with_faults(gathered.canaries, KEY)):
            text = answer_to(asked, service)
            [answer] = answers(text)
            assert answer.status in asked.statuses, (asked.what, answer)
            is_dicom = answer.headers["content-type"] == "application/dicom"
            (gathered.dicom if is_dicom else gathered.answers)[asked.what] = text
            gathered.written_to |= written_to(pids)
    finally:
        status = service.stop()
    assert status == 0
    gathered.made = sorted(files_below(*own.values()) - before)
    gathered.written_to -= {str(audit), str(stdout)}
    gathered.left = {
        "standard error": "".join(service.log).encode(),
        "standard output": stdout.read_bytes(),
        "the audit log": audit.read_bytes(),
    }
    return gathered


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def found(evidence: Evidence, word: bytes, *, in_dicom: bool) -> list[str]:
    """Return where a word is."""
    texts = evidence.dicom if in_dicom else {**evidence.answers, **evidence.left}
    return [where for where, text in texts.items() if holds(text, word)]


def test_no_word_of_a_client_is_said_again_or_kept(evidence):
    told = {place: found(evidence, word.encode(), in_dicom=False) for place, word in evidence.canaries.words.items()}
    assert len(told) > 100
    assert {place: where for place, where in told.items() if where} == {}


def test_dicom_results_carry_the_patients_identifiers_and_nothing_else(evidence):
    places = {place for place, word in evidence.canaries.words.items() if found(evidence, word.encode(), in_dicom=True)}
    assert places == set(IDENTIFIERS)


def test_no_key_is_said_or_kept_nor_its_digest(evidence):
    for secret in (KEY.removeprefix("tessera_").encode(), sha256(KEY.encode()).hexdigest().encode()):
        assert found(evidence, secret, in_dicom=False) == []
        assert found(evidence, secret, in_dicom=True) == []


def test_no_pixel_is_said_or_kept(evidence):
    for row in (PIXELS, np.repeat(np.frombuffer(PIXELS, np.uint8), 3).tobytes()):
        assert found(evidence, row, in_dicom=False) == []
        assert found(evidence, row, in_dicom=True) == []


def test_no_file_was_written_but_the_audit_log(evidence):
    """Nor could one have been: the form that was answered is larger than any file was allowed to be."""
    assert evidence.made == []
    assert evidence.written_to == set()


def test_from_its_start_to_its_end_it_writes_no_file(tmp_path):
    """None of a few bytes would it be let: what processes share as semaphores, which lie in memory, takes those."""
    own = {name: tmp_path / name for name in ("TMPDIR", "HOME", "started-in")}
    for folder in own.values():
        folder.mkdir()
    service = RunningService(
        *("--device", "cpu", "--fronts", "2", "--cores", "2"),
        env={"TMPDIR": str(own["TMPDIR"]), "HOME": str(own["HOME"]), "PYTHONDONTWRITEBYTECODE": "1"},
        folder=own["started-in"],
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SEMAPHORE_BYTES, SEMAPHORE_BYTES)),
    )

    def segments() -> None:
        form = [("file", ("patch.png", encoded(noise(600, 600))))] * 2
        assert httpx.post(f"{service.url}/segment", files=form, timeout=60).status_code == 200

    with service:
        segments()
        assert "tessera_images_total 2.0" in httpx.get(f"{service.url}/metrics").text
        service.process.send_signal(signal.SIGHUP)
        until(lambda: '"reloaded"' in service.said(), tell=service.said)
        segments()
        assert service.stop() == 0
    assert files_below(*own.values()) == set()
    assert not [line for line in service.log if '"level": "info"' not in line]


def test_masks_have_the_chunks_of_a_mask_alone(evidence):
    masks = [text for what, text in evidence.answers.items() if what.endswith("as image/png")]
    assert len(masks) == 6
    for text in masks:
        [answer] = answers(text)
        assert png_chunks(answer.body) == [b"IHDR", b"PLTE", b"iTXt", b"iTXt", b"IDAT", b"IEND"]  # texts of the model


def test_what_was_searched_is_there(evidence):
    lines = [json.loads(line) for line in evidence.left["standard error"].splitlines()]
    assert {"debug", "info"} <= {line["level"] for line in lines}
    requests = [line for line in lines if line["message"] == "request"]
    assert len(requests) > 60
    audited = [json.loads(line) for line in evidence.left["the audit log"].splitlines()]
    assert {line["caller"] for line in audited} == {"west", None}
    assert {200, 400, 401, 415, 422} <= {line["status"] for line in audited}
    assert "tessera_requests_total" in evidence.answers["metrics"].decode()


@pytest.mark.parametrize(
    "hidden",
    [
        lambda word: b"xy" + b64encode(b"x" + word.encode() + b"y"),
        lambda word: word.encode().hex().upper().encode(),
        lambda word: "".join(f"%{byte:02X}" for byte in word.encode()).encode(),
        lambda word: word.upper().encode("utf-16"),
        lambda word: str(list(word.encode())).encode(),
        lambda word: json.dumps(word).encode(),
    ],
    ids=["base64", "hexadecimal", "a URL", "UTF-16", "a list", "JSON"],
)
def test_a_word_is_found_in_other_clothes(hidden):
    word = Canaries()["anywhere"]
    assert holds(hidden(word), word.encode())
    assert not holds(hidden(Canaries()["anywhere"]), word.encode())


def test_each_canary_lies_in_a_file():
    """All but those that are compressed there."""
    canaries = Canaries()
    files = planted_files(canaries)
    missing = {
        place for place, word in canaries.words.items() if not any(holds(d, word.encode()) for d in files.values())
    }
    assert missing == {"PNG zTXt", "PNG iTXt, compressed"}
