"""Requests that say a canary wherever a client can put text: good ones, and every kind of wrong one."""

import json
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.canaries.files import damaged, planted_files, wrong_dicom
from tests.canaries.words import Canaries
from tests.pictures import encoded, noise

DECODED_OR_NOT = (200, 413, 415, 422)
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".bmp": "image/bmp",
    ".dcm": "application/dicom",
}


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        what: In a few words.
        text: The bytes to send.
        statuses: Those that may be answered.
        is_http: Whether it is.
    """

    what: str
    text: bytes
    statuses: tuple[int, ...]
    is_http: bool = True


def written(method: str, target: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    lines += ["Connection: close", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def headers_with(canaries: Canaries, key: str, **more: str) -> dict[str, str]:
    """Return headers, of which the service knows some, with a canary in each."""
    telling = {
        "User-Agent": canaries["User-Agent"],
        "Referer": f"https://lis.example/{canaries['Referer']}",
        "Cookie": f"{canaries['cookie name']}={canaries['cookie']}",
        "From": canaries["From"],
        "Origin": f"https://{canaries['Origin']}.example",
        "X-Request-ID": canaries["X-Request-ID"],
        "X-Forwarded-For": f"10.1.7.22, {canaries['X-Forwarded-For']}",
        "X-Forwarded-Host": canaries["X-Forwarded-Host"],
        "X-Forwarded-Proto": canaries["X-Forwarded-Proto"],
        "Forwarded": f"for={canaries['Forwarded']}",
        "Accept-Language": canaries["Accept-Language"],
        "If-None-Match": f'"{canaries["If-None-Match"]}"',
        f"X-{canaries['header name']}": canaries["header"],
    }
    return {"Host": "tessera.example", "Authorization": f"Bearer {key}", **telling, **more}


def form(canaries: Canaries, data: bytes, part: str = "file", **more: str) -> tuple[str, bytes]:
    """Return a form's media type and body, with a canary in whatever a part may state."""
    boundary = canaries["boundary"]
    lines = [
        f"--{boundary}",
        f'Content-Disposition: form-data; name="{part}"; filename="{canaries["file name"]}.png"'
        f"; x-{canaries['disposition parameter']}={canaries['disposition value']}",
        f"Content-Type: image/{canaries['part type']}",
        f"X-{canaries['part header name']}: {canaries['part header']}",
    ]
    fields = [
        line
        for name, value in more.items()
        for line in (f"\r\n--{boundary}", f'Content-Disposition: form-data; name="{name}"', "", value)
    ]
    before, after = "\r\n".join([*lines, "", ""]), "\r\n".join([*fields, "", f"--{boundary}--", ""])
    return f"multipart/form-data; boundary={boundary}", before.encode() + data + after.encode()


def with_files(canaries: Canaries, key: str) -> Iterator[Request]:
    """Return requests with images that hold canaries, whole, damaged and as a DICOM file may be wrong."""
    whole = planted_files(canaries)
    for name, data in whole.items():
        media_type = TYPES[Path(name).suffix]
        kind = f"{media_type}; name={canaries['media type parameter']}"
        for accept in ("application/json", "image/png", "application/geo+json"):
            headers = headers_with(canaries, key, **{"Content-Type": kind, "Accept": accept})
            yield Request(f"{name} as {accept}", written("POST", "/segment", headers, data), (200,))
        kind, body = form(canaries, data)
        headers = headers_with(canaries, key, **{"Content-Type": kind})
        yield Request(f"{name} in a form", written("POST", "/classify?mpp=0.5", headers, body), (200,))
        for broken, bytes_ in damaged(name, data).items():
            headers = headers_with(canaries, key, **{"Content-Type": media_type})
            yield Request(broken, written("POST", "/segment", headers, bytes_), DECODED_OR_NOT)
    for name, data in wrong_dicom(canaries).items():
        for accept in ("application/json", "application/dicom"):
            headers = headers_with(canaries, key, **{"Content-Type": "application/dicom", "Accept": accept})
            yield Request(f"{name} as {accept}", written("POST", "/segment", headers, data), DECODED_OR_NOT)
    for kind in ("seg", "sr"):
        headers = headers_with(canaries, key, **{"Content-Type": "application/dicom", "Accept": "application/dicom"})
        yield Request(
            f"a result, {kind}", written("POST", f"/segment?dicom={kind}", headers, whole["slide.dcm"]), (200,)
        )
    kind, body = form(canaries, encoded(noise(1000, 1000), "BMP"))
    headers = headers_with(canaries, key, **{"Content-Type": kind})
    yield Request("a form larger than a file may be", written("POST", "/segment", headers, body), (200,))


def with_faults(canaries: Canaries, key: str) -> Iterator[Request]:
    """Return requests of which most are wrong, each in one way, and the words of a client's in what is wrong."""
    patch, png = encoded(noise(16, 16)), {"Content-Type": "image/png"}

    def one(what: str, status: int, method: str, target: str, body: bytes = b"", **headers: str) -> Request:
        return Request(what, written(method, target, headers_with(canaries, key, **headers), body), (status,))

    yield one(
        "an unknown path", 404, "GET", f"/{canaries['path']}/x?{canaries['query name of a 404']}={canaries['query']}"
    )
    yield one("a path below one", 404, "GET", f"/model/{canaries['path below one']}")
    yield one("a file of the page", 404, "GET", f"/viewer/{canaries['file of the page']}.js")
    yield one("a wrong method", 405, "PUT", f"/segment?{canaries['query of a 405']}")
    yield one("an unknown method", 400, canaries["method"].upper(), "/segment")
    yield one("a slash too many", 404, "POST", f"/segment/?name={canaries['query of a slash']}", patch, **png)
    for name in ("view", "mpp", canaries["parameter name"]):
        target = f"/segment?{name}={canaries['parameter']}"
        yield one(f"the parameter {name}", 400, "POST", target, patch, **png)
    yield one("a key in the query", 401, "GET", f"/model?api_key={key}", Authorization="")
    for name, value in {
        "Authorization": f"Bearer {canaries['wrong key']}",
        "X-API-Key": canaries["other wrong key"],
    }.items():
        yield one(f"a wrong {name}", 401, "POST", "/segment", patch, **png, **{name: value})
    told = b64encode(f"{canaries['user name']}:{canaries['password']}".encode()).decode()
    yield one("a password", 401, "POST", "/segment", patch, **png, Authorization=f"Basic {told}")
    yield one("an unknown type", 415, "POST", "/segment", patch, **{"Content-Type": f"image/{canaries['media type']}"})
    yield one("an unknown form", 406, "POST", "/segment", patch, **png, Accept=f"image/{canaries['Accept']}")
    yield one(
        "a proxy's address", 200, "POST", "/segment", patch, **png, **{"X-Forwarded-For": f"fe80::1%{canaries['zone']}"}
    )
    yield one("a wrong deadline", 400, "POST", "/segment", patch, **png, **{"X-Request-Timeout": canaries["deadline"]})
    wrong = json.dumps({canaries["JSON name"]: canaries["JSON"]}).encode()
    yield one("a wrong body", 415, "POST", "/segment", wrong, **{"Content-Type": "application/json"})
    yield one(
        "a body of no form", 400, "POST", "/segment", wrong, **{"Content-Type": "multipart/form-data; boundary=b"}
    )
    kind, body = form(canaries, patch, canaries["field name"])
    yield one("an unknown field", 400, "POST", "/segment", body, **{"Content-Type": kind})
    kind, body = form(canaries, patch, **{canaries["second field name"]: canaries["field"]})
    yield one("a field too many", 400, "POST", "/segment", body, **{"Content-Type": kind})
    yield one("a form cut off", 400, "POST", "/segment", body[:-30], **{"Content-Type": kind})
    yield one("metrics", 200, "GET", f"/metrics?name[]={canaries['query of metrics']}")
    yield one("readiness", 200, "GET", f"/health/ready?{canaries['query of a probe']}")
    yield one("the documentation", 200, "GET", f"/docs?{canaries['query of the documentation']}")
    yield one("the page", 200, "GET", f"/viewer?{canaries['query of the page']}")

    host = f"Host: {canaries['Host']}.example\r\n"
    known = f"{host}Authorization: Bearer {key}\r\n"
    for what, text in {
        "a wrong request line": f"{canaries['garbage']}\r\n\r\n",
        "a target of no path": f"GET {canaries['target of no path']}? HTTP/1.1\r\n{host}\r\n",
        "another version": f"GET /{canaries['path of another version']} HTTP/3.7\r\n{host}\r\n",
        "a header of no name": f"GET / HTTP/1.1\r\n{host}{canaries['header of no name']}\r\n\r\n",
        "no host": f"GET /{canaries['path without a host']} HTTP/1.1\r\n\r\n",
        "a length of no number": f"POST / HTTP/1.1\r\n{host}Content-Length: {canaries['length']}\r\n\r\n",
        "an unknown encoding": f"POST / HTTP/1.1\r\n{host}Transfer-Encoding: {canaries['encoding']}\r\n\r\n",
        "a chunk of no length": f"POST /segment HTTP/1.1\r\n{known}Content-Type: image/png\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{canaries['chunk']}\r\n",
        "headers without end": f"GET / HTTP/1.1\r\n{host}X: {canaries['long header'] * 6000}\r\n\r\n",
    }.items():
        yield Request(what, text.encode(), (400, 431), is_http=False)
