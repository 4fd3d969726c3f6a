"""Every refusal is an RFC 9457 problem document, and says nothing of the client's files."""

import asyncio
import gzip
import logging
import uuid
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api import segment
from app.api.problems import _STATUSES, RequestRejected
from app.api.running import Phase
from app.connections.load_shedding import LoadShedding
from app.errors import (
    ImageRejected,
    NotASlide,
    NotServed,
    OtherStain,
    ProcessEnded,
    SeriesNotFound,
    StartupError,
    TesseraError,
)
from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter, a_place_taken
from tests.pictures import encoded, noise, plain

CANARY = "JANE-DOE-1952"
ID = "6b1bd3ce-3ba2-4f62-8dbb-6f3ce5ea2a2d"
PNG = {"Content-Type": "image/png"}
OF_ARCHIVES = {NotASlide, OtherStain, SeriesNotFound}
"""Errors of `tessera dicomweb` alone, which no request meets."""


def post(client: TestClient, **request):
    return client.post("/segment", **request)


@pytest.mark.parametrize(
    ("request_", "status", "kind", "words"),
    [
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported-media-type", "image/webp"),
        ({"content": b"x", "headers": {"Content-Type": "image/gif"}}, 415, "unsupported-media-type", "image/png"),
        ({"content": b"x"}, 415, "unsupported-media-type", "no type that is accepted (Content-Type); send multipart/"),
        (
            {"content": gzip.compress(encoded(noise(4, 4))), "headers": {**PNG, "Content-Encoding": "gzip"}},
            415,
            "unsupported-content-encoding",
            "without Content-Encoding",
        ),
        (
            {"params": [("mpp", "0.25"), ("mpp", "0.5")], "content": encoded(noise(4, 4)), "headers": PNG},
            400,
            "invalid-request",
            "more than once",
        ),
        (
            {"content": encoded(noise(4, 4)), "headers": [*PNG.items(), *2 * [("X-Request-Timeout", "9")]]},
            400,
            "invalid-request",
            "X-Request-Timeout is one number",
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
                + bytes(5000)
                + b"\r\n--x--\r\n",
                "headers": {"Content-Type": "multipart/form-data; boundary=x"},
            },
            400,
            "invalid-request",
            'as in name="file"; filename="patch.png"',
        ),
        ({"content": b"", "headers": PNG}, 422, "unreadable-image", "empty"),
        ({"content": b"GIF89a...", "headers": PNG}, 415, "unsupported-image", "PNG, JPEG, TIFF, WebP, BMP or DICOM"),
        ({"content": encoded(noise(9, 9))[:200], "headers": PNG}, 422, "unreadable-image", "truncated"),
        ({"content": encoded(plain((1, 1, 1), 301, 2)), "headers": PNG}, 413, "image-too-large", "at most 300 px"),
        ({"content": bytes(200_001), "headers": PNG}, 413, "upload-too-large", "200000 bytes"),
        ({"files": [("file", b"x")] * 5}, 413, "upload-too-large", "more than 4 files"),
        ({"files": {"image": b"x"}}, 400, "invalid-request", "a part named 'file'"),
        ({"files": {"file[]": b"x"}}, 400, "invalid-request", "just this name, and a filename, as in name="),
        ({"files": {"file": (None, b"x")}}, 400, "invalid-request", 'name="file"; filename="patch.png"'),
        (
            {"data": {"mpp": "0.5"}, "files": {"file": encoded(noise(4, 4))}},
            400,
            "invalid-request",
            "no file named 'file'; mpp and all else that a request states are query parameters, as in ?mpp=0.5",
        ),
        ({"files": {"file": encoded(noise(4, 4)), "other": b"x"}}, 400, "invalid-request", "query parameters"),
        ({"data": {"file": "text"}, "files": {"other": b"x"}}, 400, "invalid-request", "a part named 'file'"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "invalid-request", "boundary"),
        (
            {"content": b"garbage", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "invalid-request",
            "form",
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhalf an im',
                "headers": {"Content-Type": "multipart/form-data; boundary=x"},
            },
            400,
            "invalid-request",
            "before its closing boundary",
        ),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\xff\r\n--x--\r\n',
                "headers": {"Content-Type": "multipart/form-data; boundary=x; charset=undefined"},
            },
            400,
            "invalid-request",
            "charset",
        ),
        (
            {"params": {"view": "heat"}, "content": b"x", "headers": PNG},
            400,
            "invalid-request",
            "'overlay' or 'confidence'",
        ),
        (
            {"params": {"downsampel": 4, "mpp": 0}, "content": b"x", "headers": PNG},
            400,
            "invalid-request",
            "not known; known here: mpp, view, opacity, x, y, downsample, simplify, min_area, dicom",
        ),
        (
            {"params": {"mpp": "40"}, "content": b"x", "headers": PNG},
            400,
            "invalid-request",
            "query mpp: the pixel size is a number from 0.05 to 10 um/px, as in 0.5",
        ),
        (
            {"params": {"mpp": "0"}, "content": b"x", "headers": PNG},
            400,
            "invalid-request",
            "query mpp: the pixel size is a number from 0.05 to 10 um/px, as in 0.5",
        ),
        ({"params": {"mpp": "nan"}, "content": b"x", "headers": PNG}, 400, "invalid-request", "from 0.05 to 10 um/px"),
        ({"params": {"mpp": "20x"}, "content": b"x", "headers": PNG}, 400, "invalid-request", "from 0.05 to 10 um/px"),
        ({"params": {"opacity": "2"}, "content": b"x", "headers": PNG}, 400, "invalid-request", "query opacity"),
        ({"content": b"x", "headers": PNG | {"Accept": "text/html"}}, 406, "not-acceptable", "image/png"),
        (
            {"files": [("file", encoded(noise(4, 4)))] * 2, "headers": {"Accept": "image/png"}},
            400,
            "invalid-request",
            "one image, not 2",
        ),
    ],
)
def test_each_bad_request_has_its_problem(client, request_, status, kind, words):
    response = post(client, **request_)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert problem["type"] == f"urn:problem-type:tessera:{kind}"
    assert problem["status"] == status
    assert words in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]


EXTENDED = "filename*=UTF-8''gr%C3%B6%C3%9Fe.png"
"""Which forms may not have: RFC 7578, section 4.2."""


def form(disposition: str, data: bytes) -> dict[str, Any]:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\n'.encode()
    return {
        "content": head + data + b"\r\n--x--\r\n",
        "headers": {"Content-Type": "multipart/form-data; boundary=x"},
    }


@pytest.mark.parametrize("disposition", [f'filename="a.png"; {EXTENDED}', f'{EXTENDED}; filename="a.png"'])
def test_a_file_name_in_the_extended_form_is_ignored_beside_a_plain_one(client, disposition):
    assert post(client, **form(disposition, encoded(noise(4, 4)))).status_code == 200


@pytest.mark.parametrize("side", [4, 99], ids=["little", "much"])
def test_a_file_name_in_the_extended_form_alone_is_none_and_the_answer_shows_a_plain_one(client, side):
    refused = post(client, **form(EXTENDED, encoded(noise(side, side))))
    assert refused.status_code == 400
    assert 'as in name="file"; filename="patch.png"' in refused.json()["detail"]
    assert "UTF-8" not in refused.text


def test_a_body_of_undeclared_length_is_bounded_as_it_comes(client):
    def endless():
        for _ in range(10_000):
            yield bytes(1000)

    response = post(client, content=endless(), headers=PNG)
    assert response.status_code == 413


def of_length(length: int) -> bytes:
    """A file that any length does not spoil: what is behind a BMP's pixels is not looked at."""
    return encoded(noise(16, 16), "BMP").ljust(length, b"\0")


def as_it_is(length: int) -> dict[str, Any]:
    return {"content": of_length(length), "headers": PNG}


def in_chunks(length: int) -> dict[str, Any]:
    body = of_length(length)
    return {"content": (body[at : at + 9999] for at in range(0, length, 9999)), "headers": PNG}


def as_a_form(length: int) -> dict[str, Any]:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    tail = b"\r\n--x--\r\n"
    content = head + of_length(length - len(head) - len(tail)) + tail
    return {"content": content, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


@pytest.mark.parametrize("how", [as_it_is, in_chunks, as_a_form])
def test_a_body_may_have_as_many_bytes_as_are_allowed_and_not_one_more(client, how):
    request = how(200_000)
    assert ("content-length" in client.build_request("POST", "/segment", **request).headers) == (how is not in_chunks)
    assert post(client, **how(200_000)).status_code == 200
    refused = post(client, **how(200_001))
    assert (refused.status_code, refused.json()["detail"]) == (413, "the body has more than 200000 bytes")


@pytest.mark.parametrize("mpp", ["10", "10.0", "0.05"])
def test_the_largest_and_the_smallest_spacing_are_taken(client, mpp):
    answer = post(client, params={"mpp": mpp}, content=encoded(noise(16, 16)), headers=PNG)
    assert answer.status_code == 200
    assert answer.json()["scale"]["um_per_px"] == float(mpp)


@pytest.mark.parametrize("mpp", ["10.000001", "0.049999"])
def test_a_spacing_beyond_them_is_not(client, mpp):
    answer = post(client, params={"mpp": mpp}, content=encoded(noise(16, 16)), headers=PNG)
    assert (answer.status_code, answer.json()["detail"][:9]) == (400, "query mpp")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/segment", 405)])
def test_unknown_routes_and_methods_are_problems_too(client, method, path, status):
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


def test_a_full_queue_refuses_with_a_time_to_come_back():
    gate = asyncio.Event()
    with TestClient(create_app(Settings(queue_capacity=1, max_files=1), ColourSegmenter(gate=gate))) as client:
        data = encoded(noise(16, 16))
        with a_place_taken(client):
            refused = post(client, content=data, headers=PNG)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) == refused.json()["retry_after_seconds"] >= 1
        assert refused.json()["type"] == "urn:problem-type:tessera:queue-full"
        gate.set()
        assert post(client, content=data, headers=PNG).status_code == 200


def shedding_of(client: TestClient) -> LoadShedding:
    """Return what a server of this application would shed."""
    return LoadShedding(client.app.state.running, segment.router.routes)


FULL = [(b"host", b"t"), (b"content-type", b"image/png"), (b"content-length", b"9")]


def test_a_full_service_sheds_images_as_the_routes_would_refuse_them():
    with TestClient(create_app(Settings(queue_capacity=1, max_files=1), ColourSegmenter())) as client:
        shed = shedding_of(client).shed
        assert shed(b"POST", b"/segment", FULL) is None
        with a_place_taken(client):
            own_id = [*FULL, (b"x-request-id", ID.encode())]
            turned = shed(b"POST", b"/segment?colour=red", own_id).answer(is_last=False)
            refused = client.post("/segment", content=b"x" * 9, headers={**PNG, "X-Request-ID": ID})
            assert (turned.status_code, turned.body) == (refused.status_code, refused.content)
            assert turned.status_code == 429
            assert dict(turned.headers) == dict(refused.headers)
            assert shed(b"POST", b"/classify", FULL).answer(is_last=True).headers["connection"] == "close"
            shed(b"POST", b"/classify", FULL).left()
            metrics = client.get("/metrics").text
        for counted in (
            'requests_total{route="/segment",status="429"} 2.0',
            'requests_total{route="/classify",status="429"} 1.0',
            'requests_total{route="/classify",status="499"} 1.0',
            'request_duration_seconds_count{route="/classify"} 2.0',
            'rejections_total{reason="queue-full"} 3.0',
        ):
            assert f"tessera_{counted}" in metrics


@pytest.mark.parametrize(
    ("method", "target", "more", "settings"),
    [
        (b"GET", b"/segment", [], {}),
        (b"POST", b"/nothing", [], {}),
        (b"POST", b"/%73egment", [], {}),
        (b"POST", b"/segment", [(b"expect", b"100-continue")], {}),
        (b"POST", b"/segment", [(b"origin", b"https://viewer.example")], {"cors_origins": "https://viewer.example"}),
        (b"POST", b"/segment", [], {"audit_log": "audit.jsonl"}),
    ],
)
def test_what_is_no_image_or_is_to_be_looked_at_is_not_shed(tmp_path, method, target, more, settings):
    if "audit_log" in settings:
        settings = {"audit_log": tmp_path / settings["audit_log"]}
    with TestClient(create_app(Settings(queue_capacity=1, max_files=1, **settings), ColourSegmenter())) as client:
        shedding = shedding_of(client)
        with a_place_taken(client):
            assert shedding.shed(method, target, [*FULL, *more]) is None


@pytest.mark.parametrize("length", [None, b"1048577", b"x", b"1" * 5000])
def test_a_body_that_would_not_come_soon_is_not_shed(length):
    headers = [] if length is None else [(b"content-length", length)]
    with TestClient(create_app(Settings(queue_capacity=1, max_files=1), ColourSegmenter())) as client:
        shedding = shedding_of(client)
        with a_place_taken(client):
            assert shedding.shed(b"POST", b"/segment", headers) is None
            assert shedding.shed(b"POST", b"/segment", FULL) is not None
            assert shedding.shed(b"POST", b"/segment", [(b"content-length", b"0" * 5000 + b"9")]) is not None
            assert shedding.keeps_connections()
            client.app.state.running.phase = Phase.LEAVING
            assert not shedding.keeps_connections()


def test_more_images_than_places_left_are_refused_together():
    with TestClient(create_app(Settings(queue_capacity=3, max_files=3), ColourSegmenter())) as client:
        parts = [("file", encoded(noise(8, 8)))] * 3
        with a_place_taken(client):
            assert post(client, files=parts).status_code == 429
            assert post(client, files=parts[:2]).status_code == 200
        assert post(client, files=parts).status_code == 200


def test_a_request_past_its_deadline_is_answered_504_and_frees_its_place():
    segmenter = ColourSegmenter(gate=asyncio.Event())
    settings = Settings(request_timeout=0.05, queue_capacity=1, max_files=1)
    with TestClient(create_app(settings, segmenter)) as client:
        for _ in range(2):
            late = post(client, content=encoded(noise(16, 16)), headers=PNG)
            assert late.status_code == 504
            assert late.json()["type"] == "urn:problem-type:tessera:deadline-exceeded"


@pytest.mark.anyio
async def test_who_is_refused_at_the_door_has_sent_a_small_body_by_then_and_keeps_the_connection():
    """Spoken to the application directly: what it reads of a body that it refuses."""
    app = create_app(Settings(cores=1, queue_capacity=1, max_files=1), ColourSegmenter())

    async def left_unread(length: int) -> int:
        pieces = [{"type": "http.request", "body": b"x" * (length // 2), "more_body": True}]
        pieces.append({"type": "http.request", "body": b"x" * (length - length // 2), "more_body": False})
        sent = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/segment",
            "query_string": b"",
            "headers": [(b"content-type", b"image/png"), (b"content-length", str(length).encode())],
        }

        async def receive():
            return pieces.pop(0)

        async def send(message):
            sent.append(message)

        with app.state.running.service.admission.admit(1):
            await app(scope, receive, send)
        assert sent[0]["status"] == 429
        return len(pieces)

    async with app.router.lifespan_context(app):
        assert await left_unread(100_000) == 0
        assert await left_unread(2**20 + 1) == 2


def test_a_request_may_lower_its_deadline_and_not_raise_it():
    segmenter = ColourSegmenter(gate=asyncio.Event())
    with TestClient(create_app(Settings(request_timeout=0.2, queue_capacity=1, max_files=1), segmenter)) as client:
        for stated, seconds in (("0.03", "0.03"), ("1e6", "0.2")):
            late = post(client, content=encoded(noise(16, 16)), headers={**PNG, "X-Request-Timeout": stated})
            assert late.status_code == 504
            assert f"no answer within {seconds} s" in late.json()["detail"]


@pytest.mark.parametrize("stated", ["0", "-1", "soon", "nan", "inf", "1 s", "", "1_0", "1.2.3", "1e999"])
def test_a_deadline_that_is_no_number_of_seconds_is_refused(client, stated):
    answer = post(client, content=encoded(noise(16, 16)), headers={**PNG, "X-Request-Timeout": stated})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "X-Request-Timeout is one number of seconds above 0, as in 2.5"


@pytest.mark.parametrize("query", ["mpp=0_5", "x=-1_0", "min_area=1_000"])
def test_a_number_with_an_underscore_is_refused_and_not_read_as_another(client, query):
    answer = client.post(f"/segment?{query}", content=encoded(noise(16, 16)), headers=PNG)
    assert answer.status_code == 400
    name = query.partition("=")[0]
    assert answer.json()["detail"] == f"query {name}: a number has no underscore; it is written as in 0.5"


def test_images_of_more_pixels_than_the_service_may_hold_at_once_are_told_to_come_back():
    settings = Settings(cores=1, queue_pixels=100 * 100, queue_capacity=4, max_files=3)
    with TestClient(create_app(settings, ColourSegmenter())) as client:
        admission = client.app.state.running.service.admission
        parts = [("file", encoded(noise(100, 60)))] * 2
        with admission.weigh(6000):
            results = post(client, files=parts).json()["results"]
            refused = post(client, content=parts[0][1], headers=PNG)
        assert [result["status"] for result in results] == [429, 429]
        assert [result["retry_after_seconds"] for result in results] == [1, 1]
        assert results[1]["detail"] == (
            "there is no room now: 6000 of 10000 pixels are taken, and this needs 6000 more; try again later"
        )
        assert refused.status_code == 429
        assert post(client, content=encoded(noise(100, 60)), headers=PNG).status_code == 200


def test_images_of_one_request_wait_for_each_others_pixels():
    settings = Settings(cores=1, queue_pixels=100 * 100, queue_capacity=4, max_files=4)
    with TestClient(create_app(settings, ColourSegmenter())) as client:
        parts = [("file", encoded(noise(100, side))) for side in (60, 50, 60, 40)]
        results = post(client, files=parts).json()["results"]
        assert [result["image"]["height"] for result in results] == [60, 50, 60, 40]
        assert 'tessera_rejections_total{reason="queue-full"} 0.0' in client.get("/metrics").text


def test_an_unforeseen_error_is_a_500_with_its_id_and_its_cause_in_the_log(caplog):
    class Broken(ColourSegmenter):
        async def segment(self, window):
            raise KeyError("a bug")

    with TestClient(create_app(Settings(), Broken())) as client:
        response = post(client, content=encoded(noise(8, 8)), headers=PNG)
    assert response.status_code == 500
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "a bug" not in response.text
    assert "a bug" in caplog.text


def test_every_error_of_the_tree_that_a_request_can_meet_has_a_problem():
    def leaves(kind: type[TesseraError]) -> set[type[TesseraError]]:
        below = kind.__subclasses__()
        return set().union(*(leaves(one) for one in below)) if below else {kind}

    assert leaves(TesseraError) - leaves(StartupError) - {ProcessEnded} - OF_ARCHIVES == set(_STATUSES)
    assert (leaves(RequestRejected) | leaves(ImageRejected) | leaves(NotServed)) - OF_ARCHIVES < set(_STATUSES)


def test_a_client_that_leaves_costs_no_more_inference_and_is_no_error(caplog):
    """Spoken to the application directly: a client that has sent its image and hangs up before the answer."""
    caplog.set_level(logging.INFO)
    gate = asyncio.Event()
    segmenter = ColourSegmenter(gate=gate)
    app = create_app(Settings(cores=1, queue_capacity=1, max_files=1), segmenter)
    sent: list[str] = []

    async def scenario() -> None:
        async with app.router.lifespan_context(app):
            left = asyncio.Event()
            body = [{"type": "http.request", "body": encoded(noise(400, 400)), "more_body": False}]

            async def receive():
                if body:
                    return body.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                sent.append(message["type"])

            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "path": "/segment",
                "raw_path": b"/segment",
                "query_string": b"",
                "root_path": "",
                "headers": [(b"content-type", b"image/png")],
                "app": app,
            }
            serving = asyncio.create_task(app(scope, receive, send))
            while not segmenter.windows:
                await asyncio.sleep(0)
            started = len(segmenter.windows)
            left.set()
            await serving
            gate.set()
            assert len(segmenter.windows) == started
            assert app.state.running.metrics.registry.get_sample_value("tessera_images_in_flight") == 0

    asyncio.run(scenario())
    assert sent == []
    value = app.state.running.metrics.registry.get_sample_value
    assert value("tessera_requests_total", {"route": "/segment", "status": "499"}) == 1
    assert "unforeseen" not in caplog.text


def test_a_client_that_leaves_during_its_upload_is_no_error(client, caplog):
    async def scenario() -> None:
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"\x89PNG", "more_body": True}]

        async def receive():
            return messages.pop()

        async def send(message):
            raise AssertionError(message)

        headers = [(b"content-type", b"image/png")]
        scope = {"type": "http", "method": "POST", "path": "/segment", "query_string": b"", "headers": headers}
        await client.app({**scope, "http_version": "1.1", "root_path": "", "raw_path": b"/segment"}, receive, send)

    client.portal.call(scenario)
    assert "unforeseen" not in caplog.text


def test_a_callers_uuid_is_kept_and_anything_else_replaced(client):
    own = str(uuid.uuid4())
    assert client.get("/health/live", headers={"X-Request-ID": own}).headers["x-request-id"] == own
    given = client.get("/health/live", headers={"X-Request-ID": CANARY}).headers["x-request-id"]
    assert uuid.UUID(given)


def test_no_name_reaches_a_log_a_metric_or_an_answer(client, caplog):
    tiff = encoded(noise(12, 12), "TIFF", tiffinfo={269: CANARY, 270: CANARY, 315: CANARY})
    caplog.set_level(logging.DEBUG)  # not before: Pillow tells of what it writes
    answers = [
        client.post(
            f"/segment{query}",
            files={"file": (f"{CANARY}.png", content), **more},
            headers={"X-Request-ID": CANARY, "User-Agent": CANARY},
        )
        for more in ({}, {CANARY: (None, CANARY)})
        for query in ("", f"?{CANARY}={CANARY}", f"?view={CANARY}")
        for content in (encoded(noise(12, 12)), b"broken", tiff)
    ]
    answers.append(client.request(CANARY, "/segment"))
    answers.append(client.get(f"/{CANARY}"))
    everything = "".join(f"{answer.text} {answer.headers}" for answer in answers) + client.get("/metrics").text
    ours = [record.getMessage() + str(vars(record)) for record in caplog.records if not record.name.startswith("http")]
    assert len(ours) >= 5
    assert CANARY not in everything + "".join(ours)


def test_a_body_that_says_it_is_not_compressed_is_taken(client: TestClient) -> None:
    assert (
        post(client, content=encoded(noise(4, 4)), headers={**PNG, "Content-Encoding": "identity"}).status_code == 200
    )


def test_what_encoding_would_be_right_is_said(client: TestClient) -> None:
    answer = post(client, content=b"x", headers={**PNG, "Content-Encoding": "br"})

    assert answer.headers["Accept-Encoding"] == "identity"  # RFC 9110, section 15.5.16
