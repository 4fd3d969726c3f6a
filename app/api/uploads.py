"""Reading a request's images: one raw body, or the `file` parts of a form. In memory, within limits."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.api.problems import InvalidRequest, UnsupportedContentEncoding, UnsupportedMediaType, UploadTooLarge
from app.imaging.decode import MEDIA_TYPES
from app.slides.dicom import MEDIA_TYPE as DICOM

FORM = "multipart/form-data"
PART = "file"
UPLOADED = (*MEDIA_TYPES, DICOM)
"""What a body of one image may be declared as."""

_MEANT = {"image/jpg": "image/jpeg"}
"""What clients declare that is no registered type, and what they mean."""
_AS_IN = f'as in name="{PART}"; filename="patch.png"'

_MAX_FIELDS = 16
_MAX_FIELD_BYTES = 4096
_LITTLE_BYTES = 2**20
_MOST_DIGITS = 20
"""Of a length, which is too much then; Python reads no number of thousands."""
SOON_SECONDS = 1.0
"""In which the rest of a refused request comes, or not at all; see `comes_soon`."""
_MAX_PIECES = 200_000
"""What the form's parser hands on, each at the price of a hundred bytes: one for each that came over the network."""
_MOST_LIKE_BOUNDARIES = 1000
"""Lines that begin as a boundary does, beyond those that may end a part: no file has one by chance, and the parser goes
through each byte by byte, four seconds a million."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one request may carry."""

    max_bytes: int
    max_files: int


async def read_images(request: Request, limits: UploadLimits) -> list[bytes]:
    """Return the bytes of each image in the request, at least one, in the order sent.

    Raises:
        UnsupportedMediaType: The body is neither a form nor one of the image types.
        UnsupportedContentEncoding: It is compressed as a whole.
        UploadTooLarge: It has too many bytes or files.
        InvalidRequest: The form is malformed, has no `file` part, or has others.
    """
    if (declared_bytes(request.headers) or 0) > limits.max_bytes:
        raise _too_many_bytes(limits)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedContentEncoding(
            "send the body as it is, without Content-Encoding; images are compressed already"
        )
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type == FORM:
        return await _read_form(request, limits)
    if _MEANT.get(media_type, media_type) in UPLOADED:
        return [b"".join([chunk async for chunk in _bounded(request, limits)])]
    raise UnsupportedMediaType(
        f"the request declares no type that is accepted (Content-Type); send {FORM} with {PART} parts, or one of"
        f" {', '.join(UPLOADED)}"
    )


def comes_soon(headers: Headers) -> bool:
    """Whether it is worth waiting for the body of a refused request: it is little, and the client sends it unasked.

    Then the client has sent all when it reads the answer, as simple clients must, and keeps its connection: when many
    are refused, many would connect anew.
    """
    declared = declared_bytes(headers)
    return declared is not None and declared <= _LITTLE_BYTES and "expect" not in headers


def declared_bytes(headers: Headers) -> int | None:
    """Return how long a body is said to be; None where that is not said."""
    declared = headers.get("content-length", "")
    return int(declared.lstrip("0")[:_MOST_DIGITS] or 0) if declared.isdecimal() else None


async def read_on(request: Request) -> None:
    """Read what is left of a refused request's body, if that comes soon, and keep nothing of it."""
    if not comes_soon(request.headers):
        return
    with suppress(TimeoutError):  # else the connection ends with the answer
        async with asyncio.timeout(SOON_SECONDS):
            async for _ in request.stream():
                pass


class _InMemoryParser(MultiPartParser):
    """Takes whole forms only, and never spools a part to disk: uploads are patients' images, and bounded already."""

    spool_max_size = 2**62
    _complete = False
    _pieces = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Take a piece of a part."""
        self._pieces += 1
        if self._pieces > _MAX_PIECES:
            raise MultiPartException("it comes in too many pieces")
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        """Note that the form's closing boundary was seen."""
        self._complete = True

    async def parse(self) -> FormData:
        """Return the form.

        Raises:
            MultiPartException: It is malformed, or ends before its closing boundary.
        """
        form = await super().parse()
        if not self._complete:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("it ends before its closing boundary")
        return form


async def _read_form(request: Request, limits: UploadLimits) -> list[bytes]:
    _, options = parse_options_header(request.headers["content-type"])
    most = limits.max_files + _MAX_FIELDS + _MOST_LIKE_BOUNDARIES
    parser = _InMemoryParser(
        request.headers,
        _with_few(b"\r\n--" + options.get(b"boundary", b""), most, _bounded(request, limits)),
        max_files=limits.max_files,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Part exceeded maximum size"):
            raise InvalidRequest(
                f"a part of the form has more than {_MAX_FIELD_BYTES} bytes and no file name; that of an image has one,"
                f" {_AS_IN}"
            ) from error
        if error.message.startswith("Too many files"):
            raise UploadTooLarge(f"more than {limits.max_files} files; send them in several requests") from error
        if isinstance(error.__cause__, FormParserError):  # of which Starlette's message says nothing
            raise InvalidRequest(
                "the form cannot be read: it should begin with the boundary that its Content-Type states, end its lines"
                " in CRLF, and have each header of a part on one line"
            ) from error
        raise InvalidRequest(f"the form cannot be read: {error.message}") from error
    except UnicodeError as error:
        raise InvalidRequest("the form's names are not in the charset that its Content-Type states") from error
    try:
        parts = [part for part in form.getlist(PART) if isinstance(part, UploadFile)]
        if not parts:
            raise InvalidRequest(
                f"the form has no file in a part named {PART!r}; a file's part has just this name, and a filename,"
                f" {_AS_IN}"
            )
        if len(parts) < len(form.multi_items()):
            raise InvalidRequest(
                f"the form has parts that are no file named {PART!r}; mpp and all else that a request states are query"
                " parameters, as in ?mpp=0.5"
            )
        return [await part.read() for part in parts]
    finally:
        await form.close()


async def _with_few(boundary: bytes, most: int, body: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield a form's body as it comes, as long as not too many of its lines begin with `boundary`.

    They are counted behind the parser, which knows better what is wrong with a form of too many files.

    Raises:
        MultiPartException: Too many do.
    """
    seen = 0
    async for chunk in body:
        yield chunk
        seen += chunk.count(boundary)
        if seen > most:
            raise MultiPartException("its parts are full of what looks like their boundary")


async def _bounded(request: Request, limits: UploadLimits) -> AsyncGenerator[bytes, None]:
    """Yield the body as it comes, whatever length was declared."""
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limits.max_bytes:
            raise _too_many_bytes(limits)
        yield chunk


def _too_many_bytes(limits: UploadLimits) -> UploadTooLarge:
    return UploadTooLarge(f"the body has more than {limits.max_bytes} bytes")
