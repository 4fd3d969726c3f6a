"""Damaged uploads, and forms around them, against a running service: python -m tests.fuzz.uploads --count 20000

It starts the service, and ends with status 1 if an upload was answered by 5xx or by no problem document, if a process
was started anew, or if memory grew. The same seed makes the same uploads.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx2 as httpx

from tests.conftest import RunningService
from tests.fuzz.mutations import damaged
from tests.fuzz.seeds import seeds
from tests.fuzz.service import PROBLEM, own_bytes, processes_of

_AT_ONCE = 4
_WARM_UP = 1000
"""Uploads before memory is looked at: allocators and caches fill."""
_MOST_GROWTH_BYTES = 64 * 2**20
_MEDIA_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/webp", "image/bmp", "application/dicom")
_ACCEPTED = (*("application/json",) * 4, "image/png", "application/geo+json", "application/dicom", "*/*;q=0", "")


@dataclass(frozen=True)
class Upload:
    """A request: its path and query, its headers, its body."""

    target: str
    headers: dict[str, bytes]
    body: bytes


@dataclass
class Outcome:
    """What became of many uploads.

    Attributes:
        statuses: How often each status was answered.
        faults: What should not have been, in words, with the upload.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[str, Upload]] = field(default_factory=list)


def uploads(count: int, seed: int) -> Iterator[Upload]:
    """Yield damaged uploads of each format in turn; a third are forms, whose own words are damaged too."""
    chance = random.Random(seed)
    files = list(seeds().values())
    for number in range(count):
        data = damaged(files[number % len(files)], chance)
        headers = {"Accept": chance.choice(_ACCEPTED).encode()}
        target = chance.choice(("/segment", "/classify", "/segment?view=overlay", "/segment?mpp=0.5"))
        if number % 3:
            headers["Content-Type"] = chance.choice(_MEDIA_TYPES).encode()
            yield Upload(target, headers, data)
            continue
        body = _form([data, *([chance.choice(files)] if number % 2 else [])])
        kind = b"multipart/form-data; boundary=between"
        if number % 4 == 0:
            body = damaged(body[:200], chance) + body[200:]
        elif number % 4 == 1:
            kind = bytes(byte for byte in damaged(kind, chance, most=2) if 32 <= byte < 127)
        yield Upload(target, {**headers, "Content-Type": kind.strip()}, body)


def _form(files: list[bytes]) -> bytes:
    head = b'--between\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    return b"".join(head + data + b"\r\n" for data in files) + b"--between--\r\n"


def attack(url: str, sent: Iterator[Upload]) -> Outcome:
    """Send them, several at once, and look at each answer."""
    outcome = Outcome()
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(_AT_ONCE) as threads:

        def send(upload: Upload) -> None:
            try:
                answer = client.post(upload.target, content=upload.body, headers=upload.headers)
            except httpx.HTTPError as error:
                outcome.faults.append((f"no answer: {type(error).__name__}", upload))
                return
            outcome.statuses[answer.status_code] += 1
            if answer.status_code >= 500:
                outcome.faults.append((answer.text[:300], upload))
            elif answer.status_code >= 400 and answer.headers["content-type"] != PROBLEM:
                outcome.faults.append((f"{answer.status_code} without a problem document", upload))

        for _ in threads.map(send, sent):
            pass
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="folder for the bodies of uploads that were not answered as they should"
    )
    given = parser.parse_args()
    running = RunningService("--device", "cpu")
    try:
        attack(running.url, uploads(_WARM_UP, given.seed - 1))
        before, bytes_before = processes_of(running.process.pid), own_bytes(processes_of(running.process.pid))
        outcome = attack(running.url, uploads(given.count, given.seed))
        after = processes_of(running.process.pid)
        growth = own_bytes(after) - bytes_before
    finally:
        status = running.stop()
    for answered, times in sorted(outcome.statuses.items()):
        print(f"{answered}  {times:6}")
    print(
        f"processes {before} -> {after}, memory {bytes_before / 2**20:.0f} MiB {growth / 2**20:+.0f} MiB, exit {status}"
    )
    for number, (words, upload) in enumerate(outcome.faults):
        print(words, upload.target, upload.headers)
        if given.keep is not None:
            given.keep.mkdir(parents=True, exist_ok=True)
            (given.keep / f"{number}.bin").write_bytes(upload.body)
    return int(bool(outcome.faults) or before != after or growth > _MOST_GROWTH_BYTES or status != 0)


if __name__ == "__main__":
    sys.exit(main())
