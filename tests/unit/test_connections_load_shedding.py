import asyncio
from functools import partial

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from app.connections import protocol
from app.connections.limits import ConnectionLimits
from app.connections.load_shedding import ShedRequest
from app.connections.protocol import Connection
from app.errors import QueueFull
from app.telemetry.metrics import Metrics

HEADER_SECONDS, IDLE_SECONDS = 0.3, 1
SOON_SECONDS = 0.2
ID = "6b1bd3ce-3ba2-4f62-8dbb-6f3ce5ea2a2d"
BODY = b"x" * 100_000


def request(path=b"/full", body=b"", more=b""):
    head = b"POST %s HTTP/1.1\r\nHost: t\r\n%sContent-Length: %d\r\n\r\n" % (path, more, len(body))
    return head + body


LAST = request(b"/", more=b"Connection: close\r\n")


class Server:
    """Sheds what is posted to /full; its application answers "ab", to /slow after a while."""

    def __init__(self):
        self.metrics = Metrics(CollectorRegistry())
        self.state = uvicorn.server.ServerState()
        self.handed_on = []
        self.leaves = False

    def shed(self, method, target, headers):
        assert method == b"POST"
        assert (b"host", b"t") in headers
        full = QueueFull("full", 7)
        return ShedRequest(full, "/full", ID, self.metrics, [(b"x-all", b"have it")]) if target == b"/full" else None

    def keeps_connections(self):
        return not self.leaves

    async def app(self, scope, _receive, send):
        self.handed_on.append(scope["path"])
        if scope["path"] == "/slow":
            await asyncio.sleep(IDLE_SECONDS + 0.5)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ab"})

    def counted(self, status):
        labels = {"route": "/full", "status": str(status)}
        return self.metrics.registry.get_sample_value("tessera_requests_total", labels)

    async def __aenter__(self):
        config = uvicorn.Config(
            self.app,
            http=partial(Connection, ConnectionLimits(3, HEADER_SECONDS, 2), self.metrics, self),
            ws="none",
            lifespan="off",
            log_config=None,
            interface="asgi3",
            timeout_keep_alive=IDLE_SECONDS,
        )
        config.load()
        protocol = partial(config.http_protocol_class, config=config, server_state=self.state, app_state={})
        self._server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        self.reader, self.writer = await asyncio.open_connection(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *error):
        self.writer.close()
        self._server.close()

    async def rest(self):
        return await asyncio.wait_for(self.reader.read(), 20)

    async def answer(self):
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await self.reader.readexactly(int(length.split(b":")[1]))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request, monkeypatch):
    monkeypatch.setattr(protocol, "SOON_SECONDS", SOON_SECONDS)
    run_it = asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run

    def run_with_server(scenario):
        async def whole():
            async with Server() as server:
                await scenario(server)

        run_it(whole())

    return run_with_server


@pytest.fixture
def patient(run, monkeypatch):
    """As `run`, but what is not whole is waited for, longer than a busy machine takes over it."""
    monkeypatch.setattr(protocol, "SOON_SECONDS", 20)
    return run


def statuses(came):
    return [int(piece[:3]) for piece in came.split(b"HTTP/1.1 ")[1:]]


def test_one_that_is_shed_is_never_the_applications_and_keeps_its_connection(patient):
    async def scenario(server):
        whole = request(body=BODY)
        for piece in (whole[:40], whole[40:500], whole[500:]):
            server.writer.write(piece)
            await asyncio.sleep(0.02)
        came = await server.answer()
        assert statuses(came) == [429]
        head, _, body = came.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        assert {b"retry-after: 7", b"x-all: have it", b"x-request-id: " + ID.encode()} <= set(lines)
        assert b"connection: close" not in lines
        assert b'"request_id":"' + ID.encode() in body
        server.writer.write(LAST)
        assert statuses(await server.rest()) == [200]
        assert server.handed_on == ["/"]
        assert server.counted(429) == 1

    patient(scenario)


def test_a_connection_whose_request_was_shed_is_idle_not_late(run):
    async def scenario(server):
        server.writer.write(request())
        await server.answer()
        await asyncio.sleep(HEADER_SECONDS + 0.1)
        server.writer.write(request(body=BODY[:10]))
        assert statuses(await server.answer()) == [429]
        started = asyncio.get_running_loop().time()
        assert await server.rest() == b""
        assert asyncio.get_running_loop().time() - started > IDLE_SECONDS / 2

    run(scenario)


def test_of_many_at_once_one_is_shed_and_all_are_answered_in_order(run):
    async def scenario(server):
        server.writer.write(request() * 3 + LAST)
        assert statuses(await server.rest()) == [429, 200, 200, 200]
        assert server.handed_on == ["/full", "/full", "/"]

    run(scenario)


def test_what_comes_with_one_that_is_shed_has_all_the_time_that_it_needs(run):
    async def scenario(server):
        server.writer.write(request() + request(b"/slow", more=b"Connection: close\r\n"))
        assert statuses(await server.rest()) == [429, 200]

    run(scenario)


def test_none_is_shed_before_the_one_before_it_is_answered(run):
    async def scenario(server):
        server.writer.write(request(b"/slow"))
        while not server.handed_on:
            await asyncio.sleep(0.01)
        server.writer.write(request() + LAST)
        assert statuses(await server.rest()) == [200, 200, 200]

    run(scenario)


@pytest.mark.parametrize(
    "last", [request(more=b"Connection: close\r\n"), request().replace(b"HTTP/1.1", b"HTTP/1.0")], ids=["close", "1.0"]
)
def test_a_client_that_wants_no_more_is_answered_and_the_connection_ends(run, last):
    async def scenario(server):
        server.writer.write(last)
        came = await server.rest()
        assert statuses(came) == [429]
        assert b"\r\nconnection: close\r\n" in came.lower()

    run(scenario)


def test_one_whose_rest_does_not_come_is_answered_all_the_same_and_the_connection_ends(run):
    async def scenario(server):
        server.writer.write(request(body=BODY)[:-1])
        came = await server.rest()
        assert statuses(came) == [429]
        assert b"\r\nconnection: close\r\n" in came.lower()
        assert server.counted(429) == 1

    run(scenario)


def test_a_client_that_leaves_before_its_request_is_shed_is_counted_as_one_that_left(patient):
    async def scenario(server):
        server.writer.write(request(body=BODY)[:-1])
        await asyncio.sleep(0.05)
        server.writer.close()
        async with asyncio.timeout(15):
            while server.state.connections:
                await asyncio.sleep(0.01)
        assert (server.counted(429), server.counted(499)) == (None, 1)

    patient(scenario)


@pytest.mark.parametrize("is_over", [False, True], ids=["begins to leave", "ends"])
def test_a_server_that_leaves_answers_what_it_sheds_and_keeps_no_connection(run, is_over):
    async def scenario(server):
        whole = request(body=BODY)
        server.writer.write(whole[:-1])
        await asyncio.sleep(0.05)
        server.leaves = not is_over
        if is_over:
            [connection] = server.state.connections
            connection.shutdown()
        server.writer.write(whole[-1:])
        came = await server.rest()
        assert statuses(came) == [429]
        assert b"\r\nconnection: close\r\n" in came.lower()

    run(scenario)
