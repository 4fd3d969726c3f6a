"""Who may ask for what, what is said to those who may not, and what is written down."""

import asyncio
import json
import logging
import math
import threading
import time
import uuid
from contextlib import contextmanager
from hashlib import sha256
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from fastapi.testclient import TestClient

from app.access.callers import Caller, Scope
from app.access.keys import new_key
from app.api import segment
from app.connections.load_shedding import LoadShedding
from app.errors import QueueFull
from app.main import create_app
from app.settings import Settings
from tests.fakes import ColourSegmenter, a_place_taken
from tests.full_disk import full_at
from tests.issuer import AUDIENCE, issuing
from tests.keys_file import write_keys
from tests.pictures import encoded, noise, plain

PNG = {"Content-Type": "image/png"}
DATA = encoded(noise(8, 8))
CANARY = "JANE-DOE-1952"
KEYS = {scope.value: new_key() for scope in Scope} | {"slow": new_key()}
CHALLENGE = 'Bearer realm="tessera"'
PAGES = ("/", "/viewer", "/viewer/", "/viewer/main.js", "/docs", "/docs/", "/redoc", "/redoc/", "/openapi.json")
OPEN = ("/health/live", "/health/ready", *PAGES)


@contextmanager
def running(segmenter=None, address="10.1.7.22", **settings):
    app = create_app(Settings(**{"cores": 1, "max_side_px": 300, **settings}), segmenter or ColourSegmenter())
    with TestClient(app, client=(address, 50000)) as client:
        yield client


@pytest.fixture
def keys_file(tmp_path):
    callers = {name: Caller(name, frozenset({Scope(name)})) for name in Scope}
    callers["slow"] = Caller("slow", frozenset({Scope.SEGMENT}), 3)
    return write_keys(tmp_path / "keys", {KEYS[name]: caller for name, caller in callers.items()})


def bearer(name):
    return {"Authorization": f"Bearer {KEYS[name]}"}


def post(client, headers=None, path="/segment", **request):
    return client.post(path, headers=PNG | (headers or {}), **{"content": DATA, **request})


def kind(response):
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    return response.json()["type"].removeprefix("urn:problem-type:tessera:")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Who may


def test_without_keys_all_is_open_but_administration(client):
    assert post(client).status_code == 200
    assert client.get("/metrics").status_code == 200
    refused = client.post("/admin/reload")
    assert (refused.status_code, kind(refused)) == (403, "admin-closed")
    assert "TESSERA_KEYS_FILE" in refused.json()["detail"]
    assert client.post("/admin/reload", headers=bearer("admin")).status_code == 403


def test_with_keys_each_part_wants_its_own(keys_file):
    wants = {
        "/segment": "segment",
        "/classify": "segment",
        "/model": "segment",
        "/metrics": "metrics",
        "/admin/x": "admin",
    }
    with running(keys_file=keys_file) as client:
        for path in OPEN:
            assert client.get(path).status_code == 200, path
        for path, wanted in {**wants, "/nothing": "segment", "/admin": "admin"}.items():
            nobody = client.get(path)
            assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, CHALLENGE), path
            assert kind(nobody) == "credentials-missing"
            for scope in Scope:
                answer = client.get(path, headers=bearer(scope))
                if scope == wanted:
                    assert answer.status_code in (200, 404, 405), path
                    continue
                assert (answer.status_code, kind(answer)) == (403, "scope-missing"), path
                assert answer.headers["www-authenticate"].endswith(f'error="insufficient_scope", scope="{wanted}"')
        assert post(client, bearer("segment")).status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/metrics%0A", 403),
        ("/metrics/", 403),
        ("/admin/reload%0A", 403),
        ("/admin%2Freload", 403),
        ("/health/../metrics", 404),
        ("/health/%2e%2e/metrics", 404),
        ("/viewer/..%2fmetrics", 404),
        ("//metrics", 404),
        ("/METRICS", 404),
    ],
)
def test_a_path_written_otherwise_leads_nowhere_that_its_key_does_not(keys_file, path, status):
    async def scenario(app):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": unquote(path), "raw_path": path.encode(), "root_path": ""}
        headers = [(b"x-api-key", KEYS["segment"].encode())]
        await app({**scope, "query_string": b"", "headers": headers, "http_version": "1.1"}, receive, send)
        assert sent[0]["status"] == status

    with running(keys_file=keys_file) as client:
        client.portal.call(scenario, client.app)


def test_parts_can_stay_open(keys_file):
    with running(keys_file=keys_file, public="metrics, model") as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/model").status_code == 200
        for path in PAGES:
            assert client.get(path, follow_redirects=False).status_code == 401, path
        assert post(client).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-API-Key": KEYS["segment"]}, 200),
        ({"Authorization": f"bearer  {KEYS['segment']} "}, 200),
        ({"Authorization": "Basic dTpw", "X-API-Key": KEYS["segment"]}, 200),
        ({"X-API-Key": KEYS["segment"], "Authorization": f"Bearer {KEYS['segment']}"}, 200),
        ({"X-API-Key": KEYS["segment"], "Authorization": f"Bearer {KEYS['admin']}"}, 401),
        ({"Authorization": KEYS["segment"]}, 401),
        ({"Authorization": "Basic dTpw"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Bearer {new_key()}"}, 401),
        ({"Authorization": f"Bearer {KEYS['segment']}".encode() + b"\xff"}, 401),
        ({"X-API-Key": "a.b.c"}, 401),
    ],
)
def test_a_key_comes_in_one_of_two_headers(keys_file, headers, status):
    with running(keys_file=keys_file) as client:
        answer = post(client, headers)
        assert answer.status_code == status
        assert ("www-authenticate" in answer.headers) == (status == 401)


def test_a_wrong_key_is_said_to_be_wrong(keys_file):
    with running(keys_file=keys_file) as client:
        refused = post(client, {"X-API-Key": new_key()})
    assert kind(refused) == "credentials-rejected"
    assert refused.headers["www-authenticate"] == f'{CHALLENGE}, error="invalid_token"'


def test_a_file_of_keys_that_others_may_write_to_lets_nobody_in(keys_file, monkeypatch):
    monkeypatch.setattr("app.access.keys._LOOK_SECONDS", 0)
    with running(keys_file=keys_file) as client:
        keys_file.chmod(0o666)
        refused = post(client, bearer("segment"))
        assert (refused.status_code, kind(refused)) == (503, "keys-unavailable")
        assert str(keys_file) not in refused.text
        assert client.get("/health/live").status_code == 200
        keys_file.chmod(0o600)
        assert post(client, bearer("segment")).status_code == 200


def test_nothing_of_a_body_is_read_of_somebody_unknown(keys_file):
    async def scenario(app):
        async def receive():
            raise AssertionError("the body was asked for")

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/segment", "root_path": "", "query_string": b"", "app": app}
        await app({**scope, "headers": [(b"content-type", b"image/png")], "http_version": "1.1"}, receive, send)
        assert sent[0]["status"] == 401

    with running(keys_file=keys_file) as client:
        client.portal.call(scenario, client.app)
        value = client.app.state.running.metrics.registry.get_sample_value
        assert value("tessera_requests_total", {"route": "/segment", "status": "401"}) == 1
        assert value("tessera_rejections_total", {"reason": "credentials-missing"}) == 1


def test_tokens_of_an_issuer_are_taken_beside_keys(keys_file):
    with (
        issuing() as issuer,
        running(keys_file=keys_file, oidc_issuer=issuer.url, oidc_audience=AUDIENCE) as client,
    ):
        issuer.is_down = True
        down = post(client, {"Authorization": f"Bearer {issuer.token()}"})
        assert (down.status_code, kind(down)) == (503, "issuer-unavailable")
        assert post(client, bearer("segment")).status_code == 200
    with issuing() as issuer, running(oidc_issuer=issuer.url, oidc_audience=AUDIENCE) as client:
        assert post(client, {"Authorization": f"Bearer {issuer.token()}"}).status_code == 200
        assert client.get("/metrics", headers={"Authorization": f"Bearer {issuer.token()}"}).status_code == 403
        wrong = post(client, {"Authorization": f"Bearer {issuer.token(aud='another')}"})
        assert (wrong.status_code, kind(wrong)) == (401, "credentials-rejected")
        assert post(client, bearer("segment")).status_code == 401


def test_sectras_server_which_has_no_key_is_let_in_where_that_is_said(keys_file, tmp_path, caplog):
    log, sectra = tmp_path / "audit.jsonl", {"sectra_hosts": "pacs.example", "keys_file": keys_file}
    with running(**sectra) as client:
        assert client.get("/sectra/hook/info").status_code == 401
        assert client.get("/sectra/hook/info", headers=bearer("segment")).status_code == 200
    assert "/sectra/hook asks for a key" in caplog.text
    caplog.clear()
    with running(**sectra, public="sectra", audit_log=log) as client:
        assert client.post("/sectra/hook", json={"action": "modify"}).status_code == 400
    assert not caplog.records
    (line,) = lines(log)
    assert (line["caller"], line["route"], line["problem"]) == ("anonymous", "/sectra/hook", "invalid-request")


def test_a_service_open_to_a_network_says_so_at_its_start(caplog, keys_file):
    create_app(Settings(host="0.0.0.0", keys_file=keys_file), ColourSegmenter())
    create_app(Settings(host="localhost"), ColourSegmenter())
    assert not caplog.records
    create_app(Settings(host="0.0.0.0"), ColourSegmenter())
    assert "whoever reaches 0.0.0.0 may use the service" in caplog.text


# How often


def test_the_rate_counts_images_and_says_when_to_come_back(keys_file):
    parts = [("file", DATA)] * 2
    with running(keys_file=keys_file) as client:
        began = time.monotonic()
        assert client.post("/segment", files=parts, headers=bearer("slow")).status_code == 200
        refused = client.post("/segment", files=parts, headers=bearer("slow"))
        assert (refused.status_code, kind(refused)) == (429, "rate-exceeded")
        assert 20 - math.ceil(time.monotonic() - began) <= int(refused.headers["retry-after"]) <= 20
        assert post(client, bearer("slow")).status_code == 200  # the refused two were not counted
        assert post(client, bearer("slow")).status_code == 429
        assert post(client, bearer("segment")).status_code == 200
        never = client.post("/segment", files=parts * 2, headers=bearer("segment"))
        assert never.status_code == 200


def test_more_images_than_a_minutes_worth_can_never_come_at_once():
    with running(rate_limit=2) as client:
        refused = client.post("/classify", files=[("file", DATA)] * 3)
        assert (refused.status_code, kind(refused)) == (413, "upload-too-large")
        assert "send fewer at a time" in refused.json()["detail"]
        assert client.post("/classify", files=[("file", DATA)] * 2).status_code == 200  # nothing was counted


def test_images_that_found_no_place_are_not_counted():
    with running(rate_limit=2, queue_capacity=2, max_files=2) as client:
        with a_place_taken(client):
            assert kind(client.post("/segment", files=[("file", DATA)] * 2)) == "queue-full"
        assert client.post("/segment", files=[("file", DATA)] * 2).status_code == 200
        assert post(client).status_code == 429


class TenSeconds(ColourSegmenter):
    """Takes ten seconds of `now` for each window."""

    def __init__(self, now):
        super().__init__()
        self.now = now

    async def segment(self, window):
        self.now[0] += 10
        return await super().segment(window)


def test_images_of_a_list_that_found_no_place_are_not_counted_while_the_others_are(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("app.segmentation.admission.time", SimpleNamespace(monotonic=lambda: now[0]))
    settings = {"rate_limit": 4, "queue_pixels": 100 * 100, "queue_capacity": 4, "max_files": 3}
    with running(TenSeconds(now), **settings) as client:
        admission = client.app.state.running.service.admission
        assert post(client).status_code == 200
        parts = [("file", encoded(noise(60, side))) for side in (60, 9, 60)]
        with admission.weigh(9000):
            results = client.post("/classify", files=parts).json()["results"]
        assert [result.get("status", 200) for result in results] == [429, 200, 429]
        with pytest.raises(QueueFull) as refused, admission.admit(4):
            admission.expect_place()
        assert refused.value.retry_after_seconds == 10  # one image is done in ten seconds
        assert client.post("/classify", files=parts[:2]).status_code == 200
        assert kind(post(client)) == "rate-exceeded"


def test_a_full_service_asks_for_the_key_first_and_writes_down_whom_it_refuses(keys_file, tmp_path):
    log = tmp_path / "audit.jsonl"
    with (
        running(keys_file=keys_file, audit_log=log, queue_capacity=1, max_files=1) as client,
        a_place_taken(client),
    ):
        assert post(client).status_code == 401
        assert kind(post(client, bearer("segment"))) == "queue-full"
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["caller"], line["route"], line["status"], line["problem"], line["images"]) for line in written] == [
        (None, "/segment", 401, "credentials-missing", []),
        ("segment", "/segment", 429, "queue-full", []),
    ]


@pytest.mark.parametrize(
    ("shown", "is_shed"),
    [({}, False), ({"X-API-Key": new_key()}, False), (bearer("metrics"), False), (bearer("segment"), True)],
)
def test_a_full_service_sheds_at_once_who_may_send_images_alone(keys_file, shown, is_shed):
    sent = [(name.lower().encode(), value.encode()) for name, value in {"Content-Length": "9", **shown}.items()]
    with (
        running(keys_file=keys_file, queue_capacity=1, max_files=1) as client,
        a_place_taken(client),
    ):
        shedding = LoadShedding(client.app.state.running, segment.router.routes)
        assert (shedding.shed(b"POST", b"/segment", sent) is not None) == is_shed


# What is written down


def test_each_request_for_images_is_a_line(keys_file, tmp_path):
    log, own = tmp_path / "audit.jsonl", str(uuid.uuid4())
    bad = encoded(noise(8, 8))[:60]
    with running(keys_file=keys_file, audit_log=log) as client:
        manifest = client.app.state.running.service.segmenter.manifest
        answer = client.post(
            "/segment?view=overlay",
            files=[("file", (f"{CANARY}.png", DATA)), ("file", (f"{CANARY}.png", bad))],
            headers={**bearer("segment"), "X-Request-ID": own, "User-Agent": CANARY},
        )
        assert answer.status_code == 200
        post(client, bearer("segment"), path="/classify")
        post(client, bearer("segment"), content=bad)
        post(client, bearer("segment"), path=f"/segment?{CANARY}={CANARY}")
        post(client)
        post(client, bearer("metrics"))
        client.get("/segment", headers=bearer("segment"))
        client.head("/segment", headers=bearer("segment"))
        client.request(CANARY, "/segment")
        client.post("/admin/reload", headers=bearer("segment"))
        for path in (*OPEN, "/model", "/metrics", f"/{CANARY}", f"/segment/{CANARY}", f"/admin/{CANARY}"):
            client.get(path)
            client.get(path, headers=bearer("admin"))
            client.get(path, headers=bearer("segment"))
    written = lines(log)
    good_digest = answer.json()["results"][0]["image"]["sha256"]
    bad_digest = written[0]["images"][1]["sha256"]
    model = {"name": manifest.name, "version": manifest.version, "sha256": manifest.sha256}
    assert {**written[0], "time": ""} == {
        "time": "",
        "caller": "segment",
        "address": "10.1.7.22",
        "method": "POST",
        "route": "/segment",
        "status": 200,
        "problem": None,
        "request_id": own,
        "images": [
            {"sha256": good_digest, "outcome": "answered"},
            {"sha256": bad_digest, "outcome": "unreadable-image"},
        ],
        "model": model,
    }
    assert written[0]["time"].endswith("+00:00")
    assert len(written[0]["time"]) == len("2026-01-02T03:04:05.678+00:00")
    assert written[2]["images"] == [{"sha256": bad_digest, "outcome": "unreadable-image"}]
    brief = [(one["caller"], one["method"], one["route"], one["status"], one["problem"]) for one in written]
    assert brief == [
        ("segment", "POST", "/segment", 200, None),
        ("segment", "POST", "/classify", 200, None),
        ("segment", "POST", "/segment", 422, "unreadable-image"),
        ("segment", "POST", "/segment", 400, "invalid-request"),
        (None, "POST", "/segment", 401, "credentials-missing"),
        ("metrics", "POST", "/segment", 403, "scope-missing"),
        ("segment", "GET", "/segment", 405, "method-not-allowed"),
        ("segment", "HEAD", "/segment", 405, "method-not-allowed"),
        (None, "other", "/segment", 401, "credentials-missing"),
        ("segment", "POST", "/admin/reload", 403, "scope-missing"),
    ]
    assert CANARY not in log.read_text()
    assert not any(key in log.read_text() for key in KEYS.values())


def test_a_large_upload_is_written_down_though_no_thread_can_be_started(tmp_path, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    log, data = tmp_path / "audit.jsonl", encoded(noise(700, 700))
    assert len(data) > 2**20
    with running(audit_log=log, max_side_px=700) as client, monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        assert post(client, content=data).status_code == 200
    assert [line["images"] for line in lines(log)] == [[{"sha256": sha256(data).hexdigest(), "outcome": "answered"}]]


@pytest.mark.parametrize(
    ("said", "address"), [("2001:DB8::7", "2001:db8::7"), (CANARY, None), (f"fe80::1%{CANARY}", "fe80::1"), ("", None)]
)
def test_an_address_is_one_or_is_left_out(tmp_path, said, address):
    log = tmp_path / "audit.jsonl"
    with running(address=said, audit_log=log) as client:
        post(client)
    assert [line["address"] for line in lines(log)] == [address]


def test_digests_are_of_the_bytes_that_were_sent_also_of_many(tmp_path):
    log = tmp_path / "audit.jsonl"
    pictures = [encoded(plain((9, 9, shade), 300, 300), "BMP") for shade in range(5)]
    assert sum(map(len, pictures)) > 2**20  # hashed in a thread
    with running(audit_log=log) as client:
        assert client.post("/segment", files=[("file", picture) for picture in pictures]).status_code == 200
    (line,) = lines(log)
    assert [image["sha256"] for image in line["images"]] == [sha256(picture).hexdigest() for picture in pictures]


def test_an_image_past_its_deadline_is_written_down_as_that(tmp_path):
    log = tmp_path / "audit.jsonl"
    with running(ColourSegmenter(gate=asyncio.Event()), audit_log=log, request_timeout=0.05) as client:
        assert post(client).status_code == 504
    (line,) = lines(log)
    assert (line["caller"], line["status"], line["problem"]) == ("anonymous", 504, "deadline-exceeded")
    assert [image["outcome"] for image in line["images"]] == ["deadline-exceeded"]


def test_a_fault_and_a_refusal_by_rate_are_written_down(tmp_path):
    class Broken(ColourSegmenter):
        async def segment(self, window):
            raise KeyError("a bug")

    log = tmp_path / "audit.jsonl"
    with running(Broken(), audit_log=log, rate_limit=1) as client:
        assert post(client).status_code == 500
        assert post(client).status_code == 429
    assert [(line["status"], line["problem"], len(line["images"])) for line in lines(log)] == [
        (500, "internal-server-error", 1),
        (429, "rate-exceeded", 0),
    ]


def test_a_client_that_left_is_written_down(tmp_path):
    log = tmp_path / "audit.jsonl"

    async def scenario(app):
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": DATA, "more_body": False}]

        async def receive():
            return messages.pop() if messages else await asyncio.Event().wait()

        async def send(message):
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/segment", "raw_path": b"/segment", "root_path": ""}
        headers = [(b"content-type", b"image/png")]
        await app({**scope, "query_string": b"", "headers": headers, "http_version": "1.1"}, receive, send)

    with running(ColourSegmenter(gate=asyncio.Event()), audit_log=log) as client:
        client.portal.call(scenario, client.app)
    (line,) = lines(log)
    assert (line["status"], line["problem"], line["images"][0]["outcome"]) == (499, "client-left", "client-left")


def test_the_line_is_there_before_the_answer_begins(tmp_path):
    log = tmp_path / "audit.jsonl"
    seen = []

    async def scenario(app):
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            seen.append((message["type"], len(lines(log))))

        scope = {"type": "http", "method": "POST", "path": "/segment", "raw_path": b"/segment", "root_path": ""}
        await app({**scope, "query_string": b"", "headers": [], "http_version": "1.1"}, receive, send)

    with running(audit_log=log) as client:
        client.portal.call(scenario, client.app)
    assert seen == [("http.response.start", 1), ("http.response.body", 1)]


def test_nothing_is_answered_that_cannot_be_written_down(caplog):
    with running(audit_log="/dev/full") as client:
        refused = post(client, headers={"Accept": "image/png"})
        assert (refused.status_code, kind(refused)) == (503, "audit-unavailable")
        assert "tessera-labels" not in refused.headers
        assert client.get("/health/live").status_code == 200
        assert kind(post(client)) == "audit-unavailable"
    assert [level for level, _ in told_of_readiness(caplog)] == ["WARNING"], "once, however many ask"


def test_what_cannot_be_written_down_is_not_answered_though_it_was_computed(tmp_path, caplog):
    with running(audit_log=tmp_path / "audit.jsonl") as client:
        with full_at(0):  # a quota, of which the free space of the disk says nothing
            refused = post(client, headers={"Accept": "image/png"})
            assert (refused.status_code, kind(refused)) == (503, "audit-unavailable")
            assert "tessera-labels" not in refused.headers
        registry = client.app.state.running.metrics.registry
        assert registry.get_sample_value("tessera_images_total") == 1
        assert kind(post(client)) == "audit-unavailable"  # for ten seconds nothing is tried
        assert registry.get_sample_value("tessera_images_total") == 1
    assert [record.levelno for record in caplog.records if record.name == "app.api.access"] == [logging.ERROR]


# What browsers are told


def test_every_answer_says_what_a_browser_must_not_do(client):
    for answer in (post(client), client.get("/nothing"), client.post("/admin/reload"), client.get("/metrics")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "strict-transport-security" not in answer.headers
    for path in ("/docs", "/redoc", "/static-offline-docs/swagger-ui.css"):
        answer = client.get(path)
        assert "default-src 'self'; script-src 'self' 'unsafe-inline'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
    page = client.get("/viewer")
    assert len(page.headers.get_list("content-security-policy")) == 1
    assert page.headers["cache-control"] == "no-cache"


def test_an_unforeseen_error_has_the_headers_too():
    class Broken(ColourSegmenter):
        async def segment(self, window):
            raise KeyError("a bug")

    with running(Broken()) as client:
        answer = post(client)
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"


ORIGIN = "https://lis.example"


def preflight(client, origin, **more):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "Authorization, Content-Type"}
    return client.options("/segment", headers={"Origin": origin, **asked, **more})


def test_pages_of_other_origins_may_not_ask_unless_they_are_named(keys_file):
    with running(keys_file=keys_file) as client:
        assert preflight(client, ORIGIN).status_code == 401
        assert "access-control-allow-origin" not in post(client, {"Origin": ORIGIN, **bearer("segment")}).headers
    with running(keys_file=keys_file, cors_origins=f"{ORIGIN}, http://127.0.0.1:3000") as client:
        allowed = preflight(client, ORIGIN)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in allowed.headers
        assert preflight(client, "https://elsewhere.example").status_code == 400
        assert preflight(client, ORIGIN, **{"Access-Control-Request-Headers": "X-Other"}).status_code == 400
        within = {"Access-Control-Request-Private-Network": "true"}  # as browsers ask for an address of a hospital
        assert preflight(client, ORIGIN, **within).headers["access-control-allow-private-network"] == "true"
        assert preflight(client, ORIGIN, **within).status_code == 200
        assert preflight(client, "https://elsewhere.example", **within).status_code == 400
        for headers, status in ((bearer("segment"), 200), ({}, 401)):
            answer = post(client, {"Origin": ORIGIN, **headers})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == ORIGIN
            assert answer.headers["access-control-expose-headers"] == "*"


def test_pages_of_other_origins_can_read_an_unforeseen_error():
    class Broken(ColourSegmenter):
        async def segment(self, window):
            raise KeyError("a bug")

    with running(Broken(), cors_origins=ORIGIN) as client:
        answer = post(client, {"Origin": ORIGIN})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


# What the service refuses to start with


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"public": "viewer,root"}, "root is none of viewer, docs"),
        ({"cors_origins": "*"}, r"\* is no origin"),
        ({"cors_origins": "https://lis.example/"}, "is no origin"),
        ({"oidc_issuer": "https://login.example"}, "come together"),
        ({"oidc_issuer": "http://login.example", "oidc_audience": "x"}, "must begin with https"),
        ({"oidc_jwks": "https://login.example/keys"}, "needs --oidc-issuer"),
        ({"tls_key": "key.pem"}, "needs --tls-cert"),
        ({"rate_limit": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Settings(**settings)


# Health


def ready(client):
    """Return what the service says, and what its metrics say of it."""
    value = client.app.state.running.metrics.registry.get_sample_value("tessera_ready")
    status = client.get("/health/ready").status_code
    assert value == (status == 200)
    return status


def told_of_readiness(caplog):
    found = [record for record in caplog.records if record.name == "app.api.running"]
    return [(record.levelname, record.getMessage()) for record in found]


def test_a_service_that_cannot_write_its_audit_log_is_not_ready_until_it_can(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    log = tmp_path / "audit.jsonl"
    with running(audit_log=log) as client:
        assert ready(client) == 200
        log.unlink()
        log.mkdir()
        assert kind(post(client)) == "audit-unavailable"
        assert ready(client) == 503
        assert client.get("/health/ready").json() == {"status": "not ready", "reason": "audit-unavailable"}
        assert client.get("/health/live").status_code == 200
        log.rmdir()
        assert ready(client) == 200
        assert post(client).status_code == 200
    why = (
        f"the audit log {log} cannot be written: is a directory; images are refused until a line can be appended to it"
    )
    assert told_of_readiness(caplog) == [("WARNING", f"not ready: {why}"), ("INFO", "ready again")]


def test_nothing_is_computed_while_the_audit_log_cannot_be_written(tmp_path):
    log = tmp_path / "audit.jsonl"
    with running(audit_log=log) as client:
        log.unlink()
        log.mkdir()
        assert kind(post(client)) == "audit-unavailable"
        registry = client.app.state.running.metrics.registry
        assert registry.get_sample_value("tessera_images_total") == 0
        assert registry.get_sample_value("tessera_rejections_total", {"reason": "audit-unavailable"}) == 1
        assert registry.get_sample_value("tessera_requests_total", {"route": "/segment", "status": "503"}) == 1
        assert client.get("/model").status_code == 200
        log.rmdir()
        assert post(client).status_code == 200
        assert registry.get_sample_value("tessera_images_total") == 1


def test_a_service_that_cannot_tell_which_keys_are_valid_is_not_ready_until_it_can(keys_file, caplog):
    caplog.set_level(logging.INFO)
    with running(keys_file=keys_file) as client:
        assert ready(client) == 200
        keys_file.chmod(0o666)
        time.sleep(1.1)  # it is looked at once a second
        assert kind(post(client, bearer("segment"))) == "keys-unavailable"
        assert ready(client) == 503
        assert client.get("/health/ready").json() == {"status": "not ready", "reason": "keys-unavailable"}
        keys_file.chmod(0o600)
        time.sleep(1.1)
        assert ready(client) == 200
    (level, said), returned = told_of_readiness(caplog)
    assert level == "WARNING"
    assert said.startswith(f"not ready: no API key is taken: {keys_file}: others may write to it")
    assert returned == ("INFO", "ready again")


def test_a_slip_in_the_file_of_keys_is_counted_until_it_is_mended(keys_file, monkeypatch):
    monkeypatch.setattr("app.access.keys._LOOK_SECONDS", 0)
    with running(keys_file=keys_file) as client:
        whole = keys_file.read_text()

        def counted():
            return client.app.state.running.metrics.registry.get_sample_value("tessera_keys_faulty_lines")

        assert counted() == 0
        keys_file.write_text(whole + "a slip\n")
        assert counted() == 1
        assert post(client, bearer("segment")).status_code == 200
        assert ready(client) == 200
        keys_file.write_text(whole)
        assert counted() == 0


def test_a_path_that_is_not_there_and_a_method_that_does_not_fit_say_what_would(client):
    assert "/viewer" in client.get("/nothing").json()["detail"]
    refused = client.get("/segment")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert "takes POST" in refused.json()["detail"]
