"""What clients do to a service in a day: good patches of all sizes and formats, bad ones, and bad manners.

Each visit says what it may be answered. Who gets something else has found a fault.
"""

import hashlib
import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from tests.pictures import encoded

_SIDES = (1, 7, 64, 224, 224, 224, 224, 224, 224, 500, 1100)
_FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "TIFF": "image/tiff", "WEBP": "image/webp"}
_POLYGONS = "application/geo+json"
_ACCEPTS = ("application/json", "image/png", _POLYGONS, "application/json; q=0.5, image/png")
_BUSY = frozenset({429})
"""What an honest client may be told besides, when there are many."""
_BOUNDARY = "soak-9f27"
_PATIENCE_SECONDS = 150
"""More than the service gives itself: it is to say so, and not to leave a client without a word."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An image and how it is declared."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a visit.

    Attributes:
        kind: What the client did.
        status: What it was answered; 0 where it did not wait for that.
        fault: What is wrong with that, if anything.
        seconds: How long it took.
    """

    kind: str
    status: int
    fault: str | None
    seconds: float


class Visitor:
    """One client after another.

    Args:
        url: Of the service.
        uploads: What they have.
        seed: Of what they do.
        seen: For each upload and form of answer, the digest of the first answer: all later ones are the same bytes.
    """

    def __init__(self, url: str, uploads: list[Upload], seed: int, seen: dict[tuple[int, str], str]) -> None:
        where = urlsplit(url)
        self._address = (where.hostname or "", where.port or 0)
        self._uploads = uploads
        self._random = random.Random(seed)
        self._seen = seen
        self._kept: http.client.HTTPConnection | None = None
        honest: list[Callable[[], Outcome]] = [self._patch, self._patch, self._patch, self._form, self._classify]
        others = [self._damaged, self._nonsense, self._wrong_type, self._no_time, self._leaves, self._slow, self._asks]
        self._kinds = [*honest * 3, *others]

    def visit(self) -> Outcome:
        """Do one thing."""
        return self._random.choice(self._kinds)()

    def last_round(self) -> Iterator[Outcome]:
        """Have an upload of each size segmented, the largest first, over a connection each."""
        for upload in reversed(self._uploads[:: len(_FORMATS)]):
            self.close()
            status, _, seconds = self._ask("POST", "/segment", upload.data, {"Content-Type": upload.media_type})
            yield Outcome("last round", status, _unless(status, {200} | _BUSY), seconds)

    def close(self) -> None:
        """Let go of the connection that is kept."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _patch(self) -> Outcome:
        index = self._random.randrange(len(self._uploads))
        accept = self._random.choice(_ACCEPTS)
        upload = self._uploads[index]
        headers = {"Content-Type": upload.media_type, "Accept": accept}
        status, body, seconds = self._ask("POST", "/segment", upload.data, headers)
        if status == 422 and json.loads(body)["type"].endswith("too-many-regions"):  # noise as polygons
            return Outcome("patch", status, _unless_polygons(accept), seconds)
        fault = self._unlike_before(index, accept, body) if status == 200 else _unless(status, _BUSY)
        return Outcome("patch", status, fault, seconds)

    def _classify(self) -> Outcome:
        upload = self._random.choice(self._uploads)
        status, _, seconds = self._ask("POST", "/classify?mpp=0.5", upload.data, {"Content-Type": upload.media_type})
        return Outcome("classify", status, _unless(status, {200} | _BUSY), seconds)

    def _form(self) -> Outcome:
        chosen = self._random.choices(self._uploads, k=self._random.choice((1, 2, 5, 16)))
        parts = [
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="p"\r\n'
            f"Content-Type: {upload.media_type}\r\n\r\n".encode()
            + upload.data
            + b"\r\n"
            for upload in chosen
        ]
        body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}
        status, answer, seconds = self._ask("POST", "/segment", body, headers)
        fault = _unless(status, {200} | _BUSY)
        if status == 200 and len(chosen) > 1:
            statuses = {result.get("status", 200) for result in json.loads(answer)["results"]}
            fault = f"images of a form were answered {statuses}" if statuses - {200, 429} else None
        return Outcome("form", status, fault, seconds)

    def _damaged(self) -> Outcome:
        upload = self._random.choice(self._uploads)
        data = bytearray(upload.data)
        for _ in range(self._random.randrange(1, 8)):
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        cut = bytes(data[: self._random.randrange(1, len(data) + 1)])
        status, _, seconds = self._ask("POST", "/segment", cut, {"Content-Type": upload.media_type})
        return Outcome("damaged", status, _unless(status, {200, 413, 415, 422} | _BUSY), seconds)

    def _nonsense(self) -> Outcome:
        status, _, seconds = self._ask("POST", "/segment", self._random.randbytes(2000), {"Content-Type": "image/png"})
        return Outcome("nonsense", status, _unless(status, {415, 422} | _BUSY), seconds)

    def _wrong_type(self) -> Outcome:
        status, _, seconds = self._ask("POST", "/segment", b"{}", {"Content-Type": "application/json"})
        return Outcome("wrong type", status, _unless(status, {415} | _BUSY), seconds)

    def _no_time(self) -> Outcome:
        upload = self._random.choice(self._uploads)
        headers = {"Content-Type": upload.media_type, "X-Request-Timeout": "0.002"}
        status, _, seconds = self._ask("POST", "/segment", upload.data, headers)
        return Outcome("no time", status, _unless(status, {200, 408, 504} | _BUSY), seconds)

    def _leaves(self) -> Outcome:
        """Send all or half of an upload, and go."""
        upload = self._random.choice(self._uploads)
        head = f"POST /segment HTTP/1.1\r\nHost: t\r\nContent-Type: {upload.media_type}\r\n".encode()
        head += f"Content-Length: {len(upload.data)}\r\n\r\n".encode()
        started = time.perf_counter()
        with socket.create_connection(self._address, 30) as connection:
            connection.sendall(head + upload.data[: len(upload.data) // self._random.choice((1, 2))])
            time.sleep(self._random.choice((0, 0.005, 0.05)))
        return Outcome("leaves", 0, None, time.perf_counter() - started)

    def _slow(self) -> Outcome:
        """Send a patch in four pieces."""
        upload = self._random.choice(self._uploads)

        def pieces() -> list[bytes]:
            step = len(upload.data) // 4 + 1
            return [upload.data[start : start + step] for start in range(0, len(upload.data), step)]

        started = time.perf_counter()
        connection = http.client.HTTPConnection(*self._address, timeout=_PATIENCE_SECONDS)
        connection.putrequest("POST", "/segment")
        connection.putheader("Content-Type", upload.media_type)
        connection.putheader("Content-Length", str(len(upload.data)))
        connection.endheaders()
        try:
            for piece in pieces():
                connection.send(piece)
                time.sleep(0.02)
            answer = connection.getresponse()
            answer.read()
        except (BrokenPipeError, ConnectionResetError):  # refused at the door, before all was sent
            return Outcome("slow", 0, None, time.perf_counter() - started)
        finally:
            connection.close()
        return Outcome("slow", answer.status, _unless(answer.status, {200} | _BUSY), time.perf_counter() - started)

    def _asks(self) -> Outcome:
        path = self._random.choice(("/model", "/metrics", "/viewer", "/openapi.json", "/nothing", "/segment"))
        status, _, seconds = self._ask("GET", path, None, {})
        expected = {"/nothing": 404, "/segment": 405}.get(path, 200)
        return Outcome("asks", status, _unless(status, {expected}), seconds)

    def _unlike_before(self, index: int, accept: str, body: bytes) -> str | None:
        if accept.startswith("application/json") and "image" not in accept:
            known = json.loads(body)
            known.pop("request_id")
            known.pop("model")  # a reload may give it another version
            body = json.dumps(known, sort_keys=True).encode()
        digest = hashlib.sha256(body).hexdigest()
        if self._seen.setdefault((index, accept), digest) != digest:
            return f"upload {index} as {accept} was answered with other bytes than before"
        return None

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes, float]:
        """Ask on a connection that is kept as long as the service keeps it."""
        started = time.perf_counter()
        while True:
            is_new = self._kept is None
            self._kept = self._kept or http.client.HTTPConnection(*self._address, timeout=_PATIENCE_SECONDS)
            connection = self._kept
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except TimeoutError:
                self.close()
                return 0, b"", time.perf_counter() - started
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                self.close()
                if is_new:
                    return 0, repr(error).encode(), time.perf_counter() - started
                continue  # the service had closed a kept connection before the request reached it: RFC 9112, 9.3.1
            if answer.will_close:
                self.close()
            return answer.status, content, time.perf_counter() - started


def uploads(seed: int) -> list[Upload]:
    """Return images of several sizes and formats: smooth colours of H&E with some noise."""
    generator = np.random.default_rng(seed)
    found = []
    for side in _SIDES:
        for file_format, media_type in _FORMATS.items():
            base = generator.integers(120, 255, (1, 1, 3))
            image = np.clip(base + generator.integers(-40, 40, (side, side, 3)), 0, 255).astype(np.uint8)
            found.append(Upload(encoded(image, file_format), media_type))
    return found


def _unless_polygons(accept: str) -> str | None:
    return None if accept == _POLYGONS else f"too many regions for {accept}"


def _unless(status: int, allowed: frozenset[int] | set[int]) -> str | None:
    return None if status in allowed else f"answered {status}, not {sorted(allowed)}"
