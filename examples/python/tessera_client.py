"""A client of tessera: patches in, labels and class maps out. One file to copy; it needs httpx2, numpy and pillow.

    with Client("http://127.0.0.1:8000") as client:
        result = client.segment(image)  # an (H, W, 3) uint8 array, the path of an image file, or its bytes
        print(result.code, result.fractions["tumor"])
        result.class_map                # (H, W) uint8, indices into result.classes

What a call sends, whether it is sent again and what its answer means is told once, in `exchange`, a generator that does
no input or output of its own (as `httpx.Auth.auth_flow` is). `Client` and `AsyncClient` carry its requests.
"""

import asyncio
import base64
import itertools
import random
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypedDict, TypeVar, Unpack
from uuid import UUID, uuid4

import httpx2 as httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageLike: TypeAlias = NDArray[np.uint8] | bytes | Path
"""(H, W, 3), (H, W, 4) or grey (H, W) uint8; the bytes of an image file; or its path. Names are never sent."""

_T = TypeVar("_T")
_CONNECT_SECONDS = 5.0
_OF_ONE_IMAGE = (":image-too-large", ":unsupported-image", ":unreadable-image", ":inference-failed")
"""How the types of problems end that are of an image, not of the request."""
_LONGEST_BACKOFF_SECONDS = 8.0
_NO_PICTURE = (OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises on bytes that are no picture, are damaged, or are far too large."""


class TesseraError(Exception):
    """Base of the tree.

    TesseraError
    ├── NoAnswer            no connection, or no answer in time
    ├── NotTessera          something answered that is not a tessera service
    └── Problem             the service said what is wrong
        ├── Rejected          this request is answered so each time
        │   └── Unauthorized    it lacks an API key that is accepted
        ├── Busy              a later try may succeed
        └── Failed            the service's fault
    """


class NoAnswer(TesseraError):
    """No connection, or no answer in time."""


class NotTessera(TesseraError):
    """Something answered that is not a tessera service."""


class Problem(TesseraError):
    """A problem document (RFC 9457), raised; for one image of several, returned in its place.

    Attributes:
        type: What kind it is: a URI to compare.
        title: The kind in words.
        status: The HTTP status code.
        detail: This occurrence, and what would be right.
        request_id: The request's id in the service's log; None when a proxy answered.
        retry_after_seconds: When to come back; None when that was not said.
    """

    def __init__(self, document: Mapping[str, Any], retry_after_seconds: float | None = None) -> None:
        self.type: str = document["type"]
        self.title: str = document["title"]
        self.status: int = document["status"]
        self.detail: str = document["detail"]
        self.request_id: str | None = document.get("request_id")
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{self.title}: {self.detail}")


class Rejected(Problem):
    """The request is answered so each time."""


class Unauthorized(Rejected):
    """The request lacks an API key that is accepted."""


class Busy(Problem):
    """Nothing is wrong with the request; a later try may succeed."""


class Failed(Problem):
    """The service, or a proxy before it, failed."""


@dataclass(frozen=True, slots=True)
class Model:
    """Which model answered; `sha256` is the digest of its file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TissueClass:
    """One class of a class map; `color` is sRGB, 0 to 255 a channel."""

    name: str
    letter: str
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ModelCard(Model):
    """The model being served.

    Attributes:
        um_per_px: The pixel spacing that it was trained at; None when not known.
        stain: What the images that it was trained on were stained with, as in "H&E".
    """

    description: str
    intended_use: str
    classes: tuple[TissueClass, ...]
    um_per_px: float | None
    stain: str
    device: str


@dataclass(frozen=True, slots=True)
class InputWarning:
    """Why an answer may be worth little: `code` for programs, as in "too_small", `message` for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Scale:
    """At which scale the model saw an image; class maps and fractions are of the image's own pixels always.

    Attributes:
        um_per_px: The image's pixel spacing; None when not known.
        source: Who said so: "request", "dicom" or "file" (a TIFF's own tags); None when nobody did.
        model_um_per_px: What the model was trained at; None when not known.
        factor: Pixels that the model saw in one of the image's, along a side; 1 when it saw the image's own.
        unchanged: Why it saw the image's own: "mpp_unknown", "model_um_per_px_unknown" or "within_tolerance"; None when
            the image was rescaled.
    """

    um_per_px: float | None
    source: str | None
    model_um_per_px: float | None
    factor: float
    unchanged: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """Which tissues a patch contains.

    Attributes:
        labels: Names of the classes that it contains.
        code: Their letters, as in "T+S".
        probabilities: Of each class that can be a label: that the patch contains it, 0 to 1.
        classes: All classes, in the order of a class map's indices.
        model: Which model answered.
        image_sha256: Digest of the bytes that were sent.
        scale: At which scale the model saw the image; None from an older service, which does not say.
        warnings: What makes the answer worth little; empty for most, and from an older service.
        request_id: The request's id in the service's log.
    """

    labels: tuple[str, ...]
    code: str
    probabilities: dict[str, float]
    classes: tuple[TissueClass, ...]
    model: Model
    image_sha256: str
    scale: Scale | None
    warnings: tuple[InputWarning, ...]
    request_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation(Classification):
    """Which tissues a patch contains, and where.

    Attributes:
        fractions: Of each class: its share of the pixels, 0 to 1.
        tissue_fractions: Of each class that can be a label: its share of the pixels of all those classes, 0 to 1; empty
            where there is no tissue, and from an older service.
        class_map: (H, W) uint8, indices into `classes`.
        confidence: (H, W) uint8, the winning class's probability times 255; None unless it was asked for.
    """

    fractions: dict[str, float]
    tissue_fractions: dict[str, float]
    class_map: NDArray[np.uint8] = field(repr=False)
    confidence: NDArray[np.uint8] | None = field(repr=False)


class Outlines(TypedDict, total=False):
    """Where a patch lies on its slide, and how its outlines are drawn; what is left out is the service's default.

    Attributes:
        x: Of the patch's left edge, in the slide's full-resolution px.
        y: Of its top edge.
        downsample: Full-resolution px in one px of the patch, along a side.
        simplify: How far outlines may be simplified, in px of the patch.
        min_area: Smallest region kept, in px of the patch.
    """

    x: float
    y: float
    downsample: float
    simplify: float
    min_area: int


@dataclass(frozen=True, slots=True)
class _Call(Generic[_T]):
    """What to send, and how to read a successful answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], _T]
    images: Sequence[ImageLike] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    accept: str = "application/json"
    retried: bool = True
    of_problem: Callable[[Problem], _T] | None = None
    """What to answer where the problem is the one image's own; None to raise it."""


@dataclass(frozen=True, slots=True)
class _Service:
    """Where calls go, and how long they are tried.

    Calls are sent again after 429 and 503, and after connections that failed at any moment: an answer depends on the
    request alone and the service keeps nothing of it, so a request that was already worked on does no harm twice.
    """

    url: str
    api_key: str | None = field(repr=False)
    deadline_seconds: float
    retries: int

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise ValueError(f"url: a service's address is one as http://127.0.0.1:8000, not {self.url!r}")
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("api_key: a key is one word of ASCII; a file's line end does not belong to it")

    def request(
        self, call: _Call[Any], bodies: Sequence[bytes], request_id: UUID, timeout_seconds: float
    ) -> httpx.Request:
        headers = {"Accept": call.accept, "User-Agent": "tessera-client", "X-Request-ID": str(request_id)}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        url = self.url.rstrip("/") + call.path
        files = [("file", ("image", body, "application/octet-stream")) for body in bodies] or None
        timeout = httpx.Timeout(timeout_seconds, connect=min(_CONNECT_SECONDS, timeout_seconds))
        extensions = {"timeout": timeout.as_dict()}
        return httpx.Request(call.method, url, params=call.params, headers=headers, files=files, extensions=extensions)


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError):
        return False
    return url.scheme in {"http", "https"} and bool(url.host)


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of an exchange: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[_T]):
    """The last step of an exchange: what the call returns."""

    value: _T


Step: TypeAlias = httpx.Request | Pause | Answer[_T]
Outcome: TypeAlias = httpx.Response | httpx.RequestError | None
"""What came of a step: a response whose body was read, an error, or nothing after a pause."""


def exchange(service: _Service, call: _Call[_T], request_id: UUID | None = None) -> Generator[Step[_T], Outcome, None]:
    """Yield what to do until the call is answered, and be sent what came of it.

    Args:
        service: Where it goes.
        call: What to ask.
        request_id: What each try is known by; None for a new one.

    Raises:
        Problem: The service did not answer with success, or said to come back after the deadline.
        NoAnswer: No connection, or no answer before the deadline.
        NotTessera: A success that a tessera service would not send.
    """
    ends = time.monotonic() + service.deadline_seconds
    bodies = [_encoded(image) for image in call.images]
    known_as = request_id or uuid4()
    for attempt in itertools.count():
        outcome = yield service.request(call, bodies, known_as, max(0.001, ends - time.monotonic()))
        error: TesseraError
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            yield Answer(_read(call, outcome))
            return
        if isinstance(outcome, httpx.Response):
            error, wait = _problem(outcome), _retry_after_seconds(outcome)
            again = outcome.status_code in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        else:
            error, wait = NoAnswer(f"no answer from {service.url}: {outcome!r}"), None
            error.__cause__ = outcome
            again = isinstance(outcome, httpx.NetworkError | httpx.ConnectTimeout | httpx.RemoteProtocolError)
        seconds = _backoff_seconds(attempt) if wait is None else wait
        tried = attempt >= (service.retries if call.retried else 0)
        if tried or not again or time.monotonic() + seconds > ends:
            if call.of_problem is None or not isinstance(error, Problem) or not error.type.endswith(_OF_ONE_IMAGE):
                raise error
            yield Answer(call.of_problem(error))
            return
        yield Pause(seconds)


def _backoff_seconds(attempt: int) -> float:
    """Return a wait that doubles with each attempt; its random part keeps clients from coming back together."""
    return min(_LONGEST_BACKOFF_SECONDS, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _retry_after_seconds(response: httpx.Response) -> float | None:
    """Return the answer's Retry-After (RFC 9110, section 10.2.3): seconds or a date; None when it has none to use.

    A date is taken relative to the answer's own Date, so that the two clocks need not agree.
    """
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    then, sent = _http_date(text), _http_date(response.headers.get("Date", ""))
    return None if then is None else max(0.0, (then - (sent or datetime.now(UTC))).total_seconds())


def _http_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).replace(tzinfo=UTC)  # HTTP's dates are all in GMT
    except (ValueError, OverflowError):
        return None


def _problem(response: httpx.Response) -> TesseraError:
    status = response.status_code
    if status < HTTPStatus.BAD_REQUEST:
        return NotTessera(f"{response.url.copy_with(query=None)} answered {status}, which tessera never does")
    title, detail = response.reason_phrase or str(status), "not said; a proxy may have answered"
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    if _media_type(response) == "application/problem+json":
        document |= _members(response)
    return _kind(status)(document, _retry_after_seconds(response))


def _members(response: httpx.Response) -> dict[str, Any]:
    """Return a problem's members; one of another type than the standard's is ignored, as it asks (RFC 9457, 3.1)."""
    try:
        said = response.json()
    except (ValueError, RecursionError):  # a proxy's page under the name of a problem
        return {}
    members = said.items() if isinstance(said, dict) else ()
    return {name: value for name, value in members if isinstance(value, int if name == "status" else str)}


def _kind(status: int) -> type[Problem]:
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}:
        return Busy
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Unauthorized
    return Rejected if status < HTTPStatus.INTERNAL_SERVER_ERROR else Failed


def _media_type(response: httpx.Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _read(call: _Call[_T], response: httpx.Response) -> _T:
    if _media_type(response) != call.accept:
        raise NotTessera(f"asked for {call.accept}, got {_media_type(response) or 'no media type'}: is the URL right?")
    try:
        return call.read(response)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError, *_NO_PICTURE) as error:
        raise NotTessera(f"the answer to {call.path} is not one of tessera's: is the URL right?") from error


def _encoded(image: ImageLike) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path):
        return image.read_bytes()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a Path, a file's bytes or an array, not a {type(image).__name__}")
    if (
        not image.size
        or image.dtype != np.uint8
        or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in {3, 4}))
    ):
        raise ValueError(f"an image is uint8 of shape (H, W), (H, W, 3) or (H, W, 4), not {image.dtype} {image.shape}")
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _decoded(picture: Mapping[str, Any]) -> NDArray[np.uint8]:
    return np.array(Image.open(BytesIO(base64.b64decode(picture["base64"]))), np.uint8)


def _classes(items: Sequence[Mapping[str, Any]]) -> tuple[TissueClass, ...]:
    return tuple(TissueClass(item["name"], item["letter"], tuple(item["color"])) for item in items)


def _classification(answer: Mapping[str, Any]) -> Classification:
    return Classification(**_common(answer))


def _segmentation(answer: Mapping[str, Any]) -> Segmentation:
    confidence = answer.get("confidence")
    return Segmentation(
        **_common(answer),
        fractions={item["name"]: item["fraction"] for item in answer["classes"]},
        tissue_fractions={
            item["name"]: item["tissue_fraction"]
            for item in answer["classes"]
            if item.get("tissue_fraction") is not None
        },
        class_map=_decoded(answer["mask"]),
        confidence=None if confidence is None else _decoded(confidence),
    )


def _common(answer: Mapping[str, Any]) -> dict[str, Any]:
    items, model, scale = answer["classes"], answer["model"], answer.get("scale")
    return {
        "labels": tuple(answer["labels"]),
        "code": answer["code"],
        "probabilities": {item["name"]: item["probability"] for item in items if item["probability"] is not None},
        "classes": _classes(items),
        "model": Model(model["name"], model["version"], model["sha256"]),
        "image_sha256": answer["image"]["sha256"],
        "scale": None if scale is None else Scale(**{each.name: scale[each.name] for each in fields(Scale)}),
        "warnings": tuple(InputWarning(each["code"], each["message"]) for each in answer.get("warnings", ())),
        "request_id": answer["request_id"],
    }


def _one(response: httpx.Response) -> Segmentation:
    return _segmentation(response.json())


def _each(response: httpx.Response) -> list[Segmentation | Problem]:
    answer = response.json()
    answers = answer.get("results", [answer])  # one file is answered without a list
    return [
        _segmentation(each) if "mask" in each else _kind(each["status"])(each, each.get("retry_after_seconds"))
        for each in answers
    ]


def _card(response: httpx.Response) -> ModelCard:
    answer = response.json()
    names = ("name", "version", "sha256", "description", "intended_use", "um_per_px", "stain", "device")
    return ModelCard(**{name: answer[name] for name in names}, classes=_classes(answer["classes"]))


def _stated(mpp: float | None) -> dict[str, str]:
    return {} if mpp is None else {"mpp": str(mpp)}


def _segment(
    images: Sequence[ImageLike], mpp: float | None, confidence: bool, read: Callable[[httpx.Response], _T]
) -> _Call[_T]:
    params = _stated(mpp) | ({"view": "confidence"} if confidence else {})
    return _Call("POST", "/segment", read, images, params)


def _segment_many(
    images: Sequence[ImageLike], mpp: float | None, confidence: bool
) -> _Call[list[Segmentation | Problem]]:
    call = _segment(images, mpp, confidence, _each)
    # One file is answered without a list, and so is what is wrong with it.
    return replace(call, of_problem=lambda problem: [problem]) if len(images) == 1 else call


def _classify(image: ImageLike, mpp: float | None) -> _Call[Classification]:
    return _Call("POST", "/classify", lambda response: _classification(response.json()), [image], _stated(mpp))


def _geojson(image: ImageLike, mpp: float | None, outlines: Outlines) -> _Call[dict[str, Any]]:
    params = _stated(mpp) | {name: str(value) for name, value in outlines.items()}
    return _Call("POST", "/segment", lambda response: dict(response.json()), [image], params, "application/geo+json")


_MODEL = _Call("GET", "/model", _card)
_READY = _Call("GET", "/health/ready", lambda _: True, retried=False)


class Client:
    """Calls a tessera service, and waits for its answers. Threads may share one.

    Every call raises `TesseraError`, see there, and, before anything is sent, `ValueError` or `TypeError` for what is
    no image and `OSError` for a path that cannot be read. Close it, or use it in a `with`. `mpp` is an image's pixel
    spacing in um/px, where it is known: the model then sees the image at its own, and the answer keeps the image's
    pixels. `request_id` is what the service's logs call it, with all its tries; a new one where none is stated.

    Args:
        url: Where the service is, as in "http://127.0.0.1:8000".
        api_key: Sent as `Authorization: Bearer`; None where the service asks for none.
        deadline_seconds: How long a call may take with all its tries; beyond it none begins, and no silence is borne.
        retries: How often a call is sent again.
        transport: What carries the requests: for a certificate authority or a proxy of one's own, or a test. Without it
            no proxy is used, whatever HTTP_PROXY and its kind say: images are for the service alone.

    Raises:
        ValueError: The URL is not of http or https and a host, or the key is not one word of ASCII.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_seconds: float = 120.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._service = _Service(url, api_key, deadline_seconds, retries)
        self._http = httpx.Client(transport=transport or httpx.HTTPTransport())

    def segment(
        self, image: ImageLike, *, mpp: float | None = None, confidence: bool = False, request_id: UUID | None = None
    ) -> Segmentation:
        """Segment one patch; `confidence` asks for its confidence map too."""
        return self._answer(_segment([image], mpp, confidence, _one), request_id)

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        mpp: float | None = None,
        confidence: bool = False,
        request_id: UUID | None = None,
    ) -> list[Segmentation | Problem]:
        """Segment patches, of one spacing, in one request; in their order, a Problem for each that has no answer.

        More than the service takes in one request (64 files and 64 MiB, unless it is told otherwise) raise Rejected.
        """
        given = list(images)
        return self._answer(_segment_many(given, mpp, confidence), request_id) if given else []

    def classify(self, image: ImageLike, *, mpp: float | None = None, request_id: UUID | None = None) -> Classification:
        """Say which tissues a patch contains, without a class map."""
        return self._answer(_classify(image, mpp), request_id)

    def geojson(
        self,
        image: ImageLike,
        *,
        mpp: float | None = None,
        request_id: UUID | None = None,
        **outlines: Unpack[Outlines],
    ) -> dict[str, Any]:
        """Segment one patch into a GeoJSON FeatureCollection, in its slide's full-resolution pixels."""
        return self._answer(_geojson(image, mpp, outlines), request_id)

    def model(self) -> ModelCard:
        """Describe the model being served."""
        return self._answer(_MODEL)

    def ready(self) -> bool:
        """Say whether the service takes images now. Asked once; a service that cannot be reached raises NoAnswer."""
        try:
            return self._answer(_READY)
        except Busy:
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _answer(self, call: _Call[_T], request_id: UUID | None = None) -> _T:
        steps = exchange(self._service, call, request_id)
        step = next(steps)
        while not isinstance(step, Answer):
            step = steps.send(self._take(step))
        return step.value

    def _take(self, step: httpx.Request | Pause) -> Outcome:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.send(step)
        except httpx.RequestError as error:
            return error


class AsyncClient:
    """`Client` for asyncio: the same arguments, calls and errors. Arrays are encoded and decoded in worker threads."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        deadline_seconds: float = 120.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._service = _Service(url, api_key, deadline_seconds, retries)
        self._http = httpx.AsyncClient(transport=transport or httpx.AsyncHTTPTransport())

    async def segment(
        self, image: ImageLike, *, mpp: float | None = None, confidence: bool = False, request_id: UUID | None = None
    ) -> Segmentation:
        """See `Client.segment`."""
        return await self._answer(_segment([image], mpp, confidence, _one), request_id)

    async def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        mpp: float | None = None,
        confidence: bool = False,
        request_id: UUID | None = None,
    ) -> list[Segmentation | Problem]:
        """See `Client.segment_many`."""
        given = list(images)
        return await self._answer(_segment_many(given, mpp, confidence), request_id) if given else []

    async def classify(
        self, image: ImageLike, *, mpp: float | None = None, request_id: UUID | None = None
    ) -> Classification:
        """See `Client.classify`."""
        return await self._answer(_classify(image, mpp), request_id)

    async def geojson(
        self,
        image: ImageLike,
        *,
        mpp: float | None = None,
        request_id: UUID | None = None,
        **outlines: Unpack[Outlines],
    ) -> dict[str, Any]:
        """See `Client.geojson`."""
        return await self._answer(_geojson(image, mpp, outlines), request_id)

    async def model(self) -> ModelCard:
        """See `Client.model`."""
        return await self._answer(_MODEL)

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            return await self._answer(_READY)
        except Busy:
            return False

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.aclose()

    async def _answer(self, call: _Call[_T], request_id: UUID | None = None) -> _T:
        steps = exchange(self._service, call, request_id)
        step = await asyncio.to_thread(next, steps)
        while not isinstance(step, Answer):
            step = await asyncio.to_thread(steps.send, await self._take(step))
        return step.value

    async def _take(self, step: httpx.Request | Pause) -> Outcome:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.send(step)
        except httpx.RequestError as error:
            return error
