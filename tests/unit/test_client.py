"""The example client against transports of the tests' own: what it sends, when it tries again, what it raises."""

import asyncio
import base64
import inspect
import json
import ssl
import uuid
from collections.abc import Callable
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import httpcore2
import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from examples.python import tessera_client
from examples.python.tessera_client import (
    AsyncClient,
    Busy,
    Client,
    Failed,
    NoAnswer,
    NotTessera,
    Rejected,
    Segmentation,
    Unauthorized,
)
from tests.certificates import signed_by_itself
from tests.issuer import pem
from tests.pictures import encoded, noise, plain
from tests.web import sends, serving

URL = "http://tessera.test"
PATCH = noise(8, 6)
SCALE = {"um_per_px": 0.5, "source": "request", "model_um_per_px": 1.0, "factor": 0.5, "unchanged": None}


def picture(values: np.ndarray, palette: list[int] | None = None) -> dict[str, Any]:
    image = Image.fromarray(values)
    if palette:
        image.putpalette(palette)
    return {"base64": base64.b64encode(encoded(image)).decode()}


def answer(class_map: np.ndarray, **more: Any) -> dict[str, Any]:
    classes = [
        {"name": "tumor", "letter": "T", "color": [0, 64, 128], "probability": 0.9, "fraction": 0.25}
        | {"tissue_fraction": 1.0},
        {"name": "background", "letter": "B", "color": [255, 255, 255], "probability": None, "fraction": 0.75}
        | {"tissue_fraction": None},
    ]
    return {
        "labels": ["tumor"],
        "code": "T",
        "classes": classes,
        "mask": picture(class_map, [0, 64, 128, 255, 255, 255]),
        "image": {"width": 8, "height": 6, "sha256": "a" * 64},
        "scale": SCALE,
        "warnings": [{"code": "pen_marks", "message": "Ink."}],
        "model": {"name": "m", "version": "1", "sha256": "b" * 64},
        "request_id": "r",
        **more,
    }


def problem(status: int, **headers: str) -> httpx.Response:
    document = {
        "type": "urn:problem-type:tessera:x",
        "title": "Title",
        "status": status,
        "detail": "what",
        "request_id": "r",
    }
    return httpx.Response(
        status,
        content=json.dumps(document),
        headers={"Content-Type": "application/problem+json", **{k.replace("_", "-"): v for k, v in headers.items()}},
    )


FOUND = np.array([[0, 1], [1, 1]], np.uint8)


def segmented() -> httpx.Response:
    return httpx.Response(200, json=answer(FOUND))


class Clock:
    """Time that passes only while the client waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    time = Clock()

    async def sleep(seconds: float) -> None:
        time.sleep(seconds)

    monkeypatch.setattr(tessera_client, "time", time)
    monkeypatch.setattr(tessera_client, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    return time


class Script:
    """Answers one request after the other; an exception is raised instead."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


@pytest.fixture(params=["sync", "async"])
def ask(request, clock) -> Callable[..., Any]:
    """Run `call` with a client of either kind whose requests `script` answers."""

    def run(script: Callable[[httpx.Request], httpx.Response], call: Callable[[Any], Any], **options: Any) -> Any:
        transport = httpx.MockTransport(script)
        if request.param == "sync":
            with Client(URL, transport=transport, **options) as client:
                return call(client)

        async def awaited() -> Any:
            async with AsyncClient(URL, transport=transport, **options) as client:
                return await call(client)

        return asyncio.run(awaited())

    return run


def segment(client: Any) -> Any:
    return client.segment(PATCH)


def test_an_array_goes_in_and_arrays_come_out(ask):
    script = Script(httpx.Response(200, json=answer(FOUND, confidence=picture(FOUND * 200))))
    result = ask(script, lambda client: client.segment(PATCH, confidence=True))
    assert script.requests[0].url.params["view"] == "confidence"
    assert np.array_equal(result.class_map, FOUND)
    assert np.array_equal(result.confidence, FOUND * 200)
    assert result.class_map.dtype == result.confidence.dtype == np.uint8
    assert (result.labels, result.code, result.request_id) == (("tumor",), "T", "r")
    assert result.fractions == {"tumor": 0.25, "background": 0.75}
    assert result.tissue_fractions == {"tumor": 1}
    assert result.probabilities == {"tumor": 0.9}
    assert result.classes[0] == tessera_client.TissueClass("tumor", "T", (0, 64, 128))
    assert result.model == tessera_client.Model("m", "1", "b" * 64)


@pytest.mark.parametrize(
    ("call", "sent"),
    [
        (lambda client: client.segment(PATCH, mpp=0.5), {"mpp": "0.5"}),
        (lambda client: client.segment(PATCH, mpp=0.5, confidence=True), {"mpp": "0.5", "view": "confidence"}),
        (lambda client: client.segment(PATCH), {}),
        (lambda client: client.classify(PATCH, mpp=0.25), {"mpp": "0.25"}),
    ],
)
def test_a_spacing_is_sent_when_it_is_known_and_what_came_of_it_is_told(ask, call, sent):
    script = Script(segmented())
    result = ask(script, call)
    assert dict(script.requests[0].url.params) == sent
    assert result.scale == tessera_client.Scale(**SCALE)
    assert result.warnings == (tessera_client.InputWarning("pen_marks", "Ink."),)


@pytest.mark.parametrize("call", [segment, lambda client: client.classify(PATCH)])
def test_an_older_service_says_nothing_of_scale_and_warnings(ask, call):
    older = {name: value for name, value in answer(FOUND).items() if name not in {"scale", "warnings"}}
    result = ask(Script(httpx.Response(200, json=older)), call)
    assert (result.labels, result.scale, result.warnings) == (("tumor",), None, ())


def test_a_spacing_goes_with_many_patches_and_with_outlines(ask):
    script = Script(httpx.Response(200, json={"results": [answer(FOUND)]}))
    assert len(ask(script, lambda client: client.segment_many([PATCH], mpp=2))) == 1
    assert dict(script.requests[0].url.params) == {"mpp": "2"}
    headers = {"Content-Type": "application/geo+json"}
    script = Script(httpx.Response(200, content=b'{"features": []}', headers=headers))
    ask(script, lambda client: client.geojson(PATCH, mpp=0.5, downsample=2))
    assert dict(script.requests[0].url.params) == {"mpp": "0.5", "downsample": "2"}


@pytest.mark.parametrize(
    "image", [plain((1, 2, 3), 5, 4), noise(5, 4)[..., 0], np.dstack([noise(5, 4), noise(5, 4)[..., 0]])]
)
def test_the_pixels_of_an_array_are_sent_as_they_are(ask, image):
    script = Script(segmented())
    ask(script, lambda client: client.segment(image))
    body = script.requests[0].content
    sent = Image.open(BytesIO(body[body.index(b"\x89PNG") :]))
    assert np.array_equal(np.asarray(sent), image)


@pytest.mark.parametrize("key", ["", "secret\n", "two secrets", "schlüssel"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_is_no_key_is_refused_at_once_and_not_quoted(kind, key):
    with pytest.raises(ValueError, match="a key is one word of ASCII") as refused:
        kind(URL, api_key=key)
    assert not key or key.strip() not in str(refused.value)


@pytest.mark.parametrize("image", ["patch.png", [1, 2], bytearray(b"x"), None])
def test_what_is_of_another_kind_is_refused_in_words(ask, image):
    script = Script()
    with pytest.raises(TypeError, match=f"a Path, a file's bytes or an array, not a {type(image).__name__}"):
        ask(script, lambda client: client.segment(image))
    assert not script.requests


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_image_is_refused_before_it_is_sent(ask, image):
    script = Script()
    with pytest.raises(ValueError, match="an image is uint8 of shape"):
        ask(script, lambda client: client.segment(image))
    assert not script.requests


def test_a_path_that_cannot_be_read_is_an_os_error_before_anything_is_sent(ask, tmp_path):
    script = Script()
    with pytest.raises(FileNotFoundError):
        ask(script, lambda client: client.segment(tmp_path / "nope.png"))
    assert not script.requests


def test_no_name_of_a_file_is_sent(ask, tmp_path):
    path = tmp_path / "DOE^JANE 1961.png"
    path.write_bytes(encoded(PATCH))
    script = Script(segmented())
    ask(script, lambda client: client.segment(path))
    request = script.requests[0]
    assert path.read_bytes() in request.content
    assert b"DOE" not in request.content
    assert "DOE" not in f"{request.url}{request.headers}"


@pytest.mark.parametrize(("key", "sent"), [("k", "Bearer k"), (None, None)])
def test_an_api_key_is_sent_where_one_is_given(ask, key, sent):
    script = Script(segmented())
    ask(script, segment, api_key=key)
    assert script.requests[0].headers.get("Authorization") == sent


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "localhost:8000", "http://", "http://[::1", "http://h:x", "", "ftp://h"]
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_is_no_address_of_a_service_is_refused_at_once_in_one_line(kind, url):
    with pytest.raises(ValueError, match=r"^url: a service's address is one as http://127\.0\.0\.1:8000, not '.*'$"):
        kind(url)


def test_all_tries_of_a_call_have_one_id_and_each_call_its_own(ask):
    script = Script(problem(503), httpx.ReadError("no"), segmented(), problem(429), segmented())
    for _ in range(2):
        ask(script, segment)
    ids = [request.headers["X-Request-ID"] for request in script.requests]
    assert ids == [ids[0]] * 3 + [ids[3]] * 2
    assert len({uuid.UUID(one) for one in ids}) == 2


@pytest.mark.parametrize("call", ["segment", "segment_many", "classify", "geojson"])
def test_an_id_that_the_caller_states_is_sent_with_each_try(ask, call):
    stated = uuid.uuid4()
    script = Script(problem(503), problem(422))
    with pytest.raises(Rejected):
        ask(script, lambda client: getattr(client, call)([PATCH] if "many" in call else PATCH, request_id=stated))
    assert [request.headers["X-Request-ID"] for request in script.requests] == [str(stated)] * 2


def segment_from(url: str, kind: str, **options: Any) -> Any:
    """Segment a patch over the network."""
    if kind == "sync":
        with Client(url, **options) as client:
            return client.segment(PATCH)

    async def awaited() -> Any:
        async with AsyncClient(url, **options) as client:
            return await client.segment(PATCH)

    return asyncio.run(awaited())


SENDS_AN_ANSWER = sends(200, json.dumps(answer(FOUND)).encode(), Content_Type="application/json")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_proxy_that_the_environment_names_gets_neither_pixels_nor_key(monkeypatch, kind):
    with serving(sends(502)) as proxy, serving(SENDS_AN_ANSWER) as service:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.upper(), proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert segment_from(service.url, kind, api_key="k").code == "T"
        assert (len(service.seen), proxy.seen) == (1, [])


def test_a_proxy_that_is_given_is_used():
    with serving(SENDS_AN_ANSWER) as proxy:
        given = httpx.HTTPTransport(proxy=proxy.url)
        assert segment_from("http://tessera.test", "sync", transport=given).code == "T"
        assert [path for path, _ in proxy.seen] == ["http://tessera.test/segment"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_certificates_are_checked_and_an_authority_is_named_as_ever(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(httpcore2, "default_ssl_context", httpcore2.default_ssl_context.__wrapped__)  # see `conftest`
    key, certificate = signed_by_itself()
    file = tmp_path / "both.pem"
    file.write_bytes(certificate + pem(key))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(file)
    with serving(SENDS_AN_ANSWER, tls) as service:
        with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
            segment_from(service.url, kind, retries=0)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert segment_from(service.url, kind).code == "T"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_when_it_said(ask, clock, status):
    script = Script(problem(status, Retry_After="3"), problem(status, Retry_After="7"), segmented())
    assert isinstance(ask(script, segment), Segmentation)
    assert clock.waits == [3, 7]
    assert all(request.content.count(b"\x89PNG") == 1 for request in script.requests)


def test_a_date_to_come_back_is_taken_by_the_services_own_clock(ask, clock):
    busy = problem(503, Retry_After="Wed, 21 Oct 2015 07:28:09 GMT", Date="Wed, 21 Oct 2015 07:28:00 GMT")
    assert isinstance(ask(Script(busy, segmented()), segment), Segmentation)
    assert clock.waits == [9]


@pytest.mark.parametrize("said", ["soon", "-5", "1.5", ""])
def test_without_a_time_to_come_back_waits_double(ask, clock, said):
    script = Script(*[problem(503, Retry_After=said) for _ in range(5)])
    with pytest.raises(Busy) as raised:
        ask(script, segment)
    assert raised.value.retry_after_seconds is None
    assert len(clock.waits) == 4
    for number, wait in enumerate(clock.waits):
        assert 0.25 * 2**number <= wait <= 0.5 * 2**number


def test_a_time_to_come_back_past_the_deadline_ends_the_call_at_once(ask, clock):
    script = Script(problem(429, Retry_After="31"))
    with pytest.raises(Busy) as raised:
        ask(script, segment, deadline_seconds=30)
    assert raised.value.retry_after_seconds == 31
    assert not clock.waits


def test_each_try_may_last_as_long_as_is_left(ask):
    script = Script(problem(429, Retry_After="20"), segmented())
    ask(script, segment, deadline_seconds=30)
    timeouts = [request.extensions["timeout"] for request in script.requests]
    assert [timeout["read"] for timeout in timeouts] == [30, 10]
    assert [timeout["connect"] for timeout in timeouts] == [5, 5]


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no"), httpx.ConnectTimeout("no"), httpx.ReadError("no"), httpx.WriteError("no")]
)
def test_a_lost_connection_is_tried_again(ask, clock, error):
    assert isinstance(ask(Script(error, segmented()), segment), Segmentation)
    assert len(clock.waits) == 1


def test_a_service_that_stays_away_is_given_up(ask, clock):
    script = Script(*[httpx.ConnectError("refused") for _ in range(3)])
    with pytest.raises(NoAnswer, match=r"tessera\.test.*refused") as raised:
        ask(script, segment, retries=2)
    assert isinstance(raised.value.__cause__, httpx.ConnectError)
    assert len(clock.waits) == 2


def test_an_answer_that_does_not_come_is_not_asked_for_twice(ask, clock):
    with pytest.raises(NoAnswer, match="ReadTimeout"):
        ask(Script(httpx.ReadTimeout("late")), segment)
    assert not clock.waits


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, Rejected), (401, Unauthorized), (403, Unauthorized), (413, Rejected), (500, Failed), (504, Busy)],
)
def test_a_problem_is_raised_as_what_it_is(ask, clock, status, kind):
    with pytest.raises(kind) as raised:
        ask(Script(problem(status)), segment)
    error = raised.value
    assert type(error) is kind
    assert (error.type, error.title, error.status, error.detail, error.request_id) == (
        "urn:problem-type:tessera:x",
        "Title",
        status,
        "what",
        "r",
    )
    assert str(error) == "Title: what"
    assert not clock.waits


def test_a_proxys_page_is_a_failure_in_words(ask):
    with pytest.raises(Failed, match="Bad Gateway: not said; a proxy may have answered") as raised:
        ask(Script(httpx.Response(502, html="<h1>nginx</h1>")), segment)
    assert raised.value.request_id is None


@pytest.mark.parametrize("body", ["null", "[1]", '"text"', "<h1>nginx</h1>", "", "{}", '{"title": 5, "status": "400"}'])
def test_what_only_calls_itself_a_problem_is_a_failure_in_words(ask, body):
    answered = httpx.Response(400, content=body, headers={"Content-Type": "application/problem+json"})
    with pytest.raises(Rejected, match=r"^Bad Request: not said; a proxy may have answered$") as raised:
        ask(Script(answered), segment)
    assert raised.value.status == 400


DAMAGED = encoded(noise(50, 50))
DAMAGED = DAMAGED[:200] + bytes(100) + DAMAGED[300:]
SECOND_CHUNK_LOST = b"\0\0\0\0".join(encoded(noise(300, 300)).rsplit(b"IDAT", 1))


@pytest.mark.parametrize("body", [b"", b"no picture", DAMAGED, DAMAGED[:150], SECOND_CHUNK_LOST])
def test_a_class_map_that_is_no_picture_is_not_tesseras(ask, body):
    said = answer(FOUND, mask={"base64": base64.b64encode(body).decode()})
    with pytest.raises(NotTessera, match="/segment"):
        ask(Script(httpx.Response(200, json=said)), segment)


def test_a_class_map_far_too_large_is_not_unpacked(ask, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(NotTessera):
        ask(Script(segmented()), segment)


def segment_many(client: Any) -> Any:
    return client.segment_many([PATCH])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        *[(segment, said) for said in ([], [1], None, "text", 5, {"classes": [1]})],
        *[(segment_many, said) for said in (5, {"results": 5}, {"results": [1]})],
        (lambda client: client.classify(PATCH), {"classes": [1]}),
        (lambda client: client.model(), [1]),
    ],
)
def test_json_of_another_shape_is_not_tesseras(ask, call, said):
    with pytest.raises(NotTessera):
        ask(Script(httpx.Response(200, json=said)), call)


def test_an_answer_that_does_not_unpack_is_none(ask, clock):
    def answered(request: httpx.Request) -> httpx.Response:
        stream = httpx.ByteStream(b"no gzip")
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=stream)

    with pytest.raises(NoAnswer, match="DecodingError"):
        ask(answered, segment)
    assert not clock.waits


@pytest.mark.parametrize(
    "what",
    [
        {"status_code": 200, "html": "<h1>Welcome</h1>"},
        {"status_code": 200, "json": {"ok": True}},
        {"status_code": 302},
    ],
)
def test_another_service_is_told_apart(ask, what):
    with pytest.raises(NotTessera):
        ask(Script(httpx.Response(**what)), segment)


def test_several_images_go_in_one_request_and_a_bad_one_has_its_problem(ask):
    bad = json.loads(problem(422).content)
    script = Script(httpx.Response(200, json={"results": [answer(FOUND), bad, answer(FOUND.T)]}))
    first, second, third = ask(script, lambda client: client.segment_many(iter([PATCH, b"bad", PATCH])))
    assert np.array_equal(first.class_map, FOUND)
    assert np.array_equal(third.class_map, FOUND.T)
    assert (type(second), second.status) == (Rejected, 422)
    assert script.requests[0].content.count(b'name="file"') == 3


def test_an_image_of_a_list_that_found_no_place_says_when_to_come_back(ask):
    full = {**json.loads(problem(429).content), "retry_after_seconds": 7}
    gone = json.loads(problem(503).content)
    script = Script(httpx.Response(200, json={"results": [answer(FOUND), full, gone]}))
    _, second, third = ask(script, lambda client: client.segment_many([PATCH] * 3))
    assert (type(second), second.retry_after_seconds) == (Busy, 7)
    assert (type(third), third.retry_after_seconds) == (Busy, None)


def test_a_list_of_one_is_answered_as_a_list(ask):
    assert [result.code for result in ask(Script(segmented()), lambda client: client.segment_many([PATCH]))] == ["T"]


def test_a_bad_image_by_itself_has_its_problem_as_one_of_several_has(ask):
    bad = {**json.loads(problem(422).content), "type": "urn:problem-type:tessera:unreadable-image"}
    script = Script(httpx.Response(422, json=bad, headers={"Content-Type": "application/problem+json"}))
    [found] = ask(script, lambda client: client.segment_many([b"bad"]))
    assert (type(found), found.status) == (Rejected, 422)
    script = Script(httpx.Response(422, json=bad, headers={"Content-Type": "application/problem+json"}))
    with pytest.raises(Rejected):
        ask(script, lambda client: client.segment(b"bad"))
    whole = {**bad, "type": "urn:problem-type:tessera:invalid-request"}
    script = Script(httpx.Response(400, json=whole, headers={"Content-Type": "application/problem+json"}))
    with pytest.raises(Rejected):
        ask(script, lambda client: client.segment_many([b"bad"]))


def test_a_date_beyond_all_calendars_is_no_time_to_come_back(ask):
    headers = {"Retry-After": "Thu, 01 Jan 99999999999 00:00:00 GMT"}
    script = Script(httpx.Response(503, headers=headers), segmented())
    assert ask(script, segment).code == "T"


def test_an_answer_that_is_nested_without_end_is_none_of_tesseras(ask):
    body = b"[" * 100_000
    with pytest.raises(NotTessera):
        ask(Script(httpx.Response(200, content=body, headers={"Content-Type": "application/json"})), segment)
    with pytest.raises(Rejected):
        ask(Script(httpx.Response(400, content=body, headers={"Content-Type": "application/problem+json"})), segment)


def test_no_image_needs_no_request():
    with Client(URL, transport=httpx.MockTransport(Script())) as client:
        assert client.segment_many([]) == []


def test_outlines_are_asked_for_as_given(ask):
    collection = {"type": "FeatureCollection", "features": []}
    body = httpx.Response(200, content=json.dumps(collection), headers={"Content-Type": "application/geo+json"})
    script = Script(body)
    assert ask(script, lambda client: client.geojson(PATCH, x=10.0, y=20.0, downsample=4.0)) == collection
    request = script.requests[0]
    assert request.headers["Accept"] == "application/geo+json"
    assert dict(request.url.params) == {"x": "10.0", "y": "20.0", "downsample": "4.0"}


@pytest.mark.parametrize(("status", "is_ready"), [(200, True), (503, False)])
def test_readiness_is_asked_once(ask, clock, status, is_ready):
    script = Script(httpx.Response(status, json={"status": "any"}))
    assert ask(script, lambda client: client.ready()) is is_ready
    assert not clock.waits


def test_both_clients_have_the_same_calls():
    def calls(kind: type) -> dict[str, list[str]]:
        public = {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and name[0] != "_"}
        return {
            name.replace("aclose", "close"): list(inspect.signature(call).parameters) for name, call in public.items()
        }

    assert calls(Client) == calls(AsyncClient)
