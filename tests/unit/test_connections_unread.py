"""Answers that wait to be read, on all connections of a front together; on both event loops, with TLS and without."""

import asyncio
import logging
import socket
import ssl
import sys
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from app.connections import unread
from app.connections.limits import ConnectionLimits
from app.connections.protocol import Connection
from app.telemetry.metrics import Metrics
from tests.certificates import signed_by_itself
from tests.issuer import pem

NONE_SHED = SimpleNamespace(shed=lambda *_: None, headers=())
MIB = 2**20
MOST_BYTES = 12 * MIB
"""Systems hold up to three quarters of a MiB of each answer, which do not count."""
SMALL_BUFFER_BYTES = 2**16


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request, monkeypatch):
    monkeypatch.setattr(unread, "_MOST_BYTES", MOST_BYTES)
    loop = asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run
    return lambda scenario: loop(asyncio.wait_for(scenario, 60))


@pytest.fixture(scope="module")
def own_certificate(tmp_path_factory):
    key, certificate = signed_by_itself()
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(certificate + pem(key))
    return path


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="others do not tell what waits below TLS")


@pytest.fixture(params=["plain", pytest.param("tls", marks=only_linux)])
def certificate(request, own_certificate):
    return own_certificate if request.param == "tls" else None


async def app(scope, _receive, send):
    """Answer with as many MiB as the path says."""
    size = int(scope["path"][1:]) * MIB
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": bytes(size)})


async def until(is_so):
    while not is_so():
        await asyncio.sleep(0.02)


class Client:
    """Asks, and reads when it is told to."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer

    async def ask(self, *sizes_mib):
        for size in sizes_mib:
            self._writer.write(b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n" % size)
        await self._reader.readuntil(b"\r\n\r\n")  # of the first answer, all of which has been written then

    async def reads(self, size_mib):
        """Return whether it gets so much more of what it asked for."""
        try:
            return len(await self._reader.readexactly(size_mib * MIB)) == size_mib * MIB
        except (asyncio.IncompleteReadError, ConnectionError):
            return False

    def leave(self):
        self._writer.transport.abort()


class Front:
    def __init__(self, address, connections, certificate):
        self._address, self.connections, self._certificate = address, connections, certificate
        self._clients = []

    async def client(self):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, self._address)
        tls = {}
        if self._certificate is not None:
            trusting = ssl.create_default_context(cafile=self._certificate)
            tls = {"ssl": trusting, "server_hostname": "127.0.0.1"}
        streams = await asyncio.open_connection(sock=connection, limit=SMALL_BUFFER_BYTES, **tls)
        self._clients.append(Client(*streams))
        return self._clients[-1]

    async def asked(self, *sizes_mib):
        client = await self.client()
        await client.ask(*sizes_mib)
        return client

    @property
    def unread_bytes(self):
        return sum(one._answers.unread.size_bytes for one in self.connections)

    def leave(self):
        for client in self._clients:
            client.leave()


@asynccontextmanager
async def front(certificate):
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    http = partial(Connection, ConnectionLimits(20, 20, 60), Metrics(CollectorRegistry()), NONE_SHED)
    config = uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None, timeout_keep_alive=60)
    config.load()
    state = uvicorn.server.ServerState()
    protocol = partial(config.http_protocol_class, config=config, server_state=state, app_state={})
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
    server = await asyncio.get_running_loop().create_server(protocol, sock=listener, ssl=context)
    one = Front(listener.getsockname(), state.connections, certificate)
    try:
        yield one
    finally:
        one.leave()
        server.close()
        await until(lambda: not state.connections)


def test_who_has_the_most_unread_is_cut_off_and_the_others_get_all(run, certificate, caplog):
    async def scenario():
        async with front(certificate) as here:
            others = [await here.asked(size) for size in (3, 1)]
            most = await here.asked(7)
            assert len(here.connections) == 3
            assert not caplog.records

            others.append(await here.asked(5))
            assert [await client.reads(size) for client, size in zip(others, (3, 1, 5), strict=True)] == [True] * 3
            assert not await most.reads(7)
            await until(lambda: len(here.connections) == 3)

    with caplog.at_level(logging.WARNING, "app.connections"):
        run(scenario())
    (record,) = caplog.records
    assert "cut off" in record.getMessage()
    assert "127.0.0.1" not in record.getMessage()


def test_of_one_after_the_other_as_many_are_cut_off_as_are_too_much(run, certificate):
    async def scenario():
        async with front(certificate) as here:
            clients = [await here.asked(5) for _ in range(5)]
            await until(lambda: len(here.connections) == 2)
            assert here.unread_bytes <= MOST_BYTES
            assert [await client.reads(5) for client in clients].count(True) == 2

    run(scenario())


def test_what_is_read_and_who_leaves_counts_no_longer(run, certificate):
    async def scenario():
        async with front(certificate) as here:
            for _ in range(2):
                reader, leaver = await here.asked(5), await here.asked(5)
                assert here.unread_bytes > 8 * MIB
                assert await reader.reads(5)
                await until(lambda: here.unread_bytes < 6 * MIB)
                leaver.leave()
                await until(lambda: here.unread_bytes == 0)
            assert len(here.connections) == 2, "of whom nobody was cut off"

    run(scenario())


def test_an_answer_that_waits_for_the_one_before_it_counts(run, certificate):
    async def scenario():
        async with front(certificate) as here:
            two_answers = await here.asked(5, 5)
            await until(lambda: here.unread_bytes > 8 * MIB)
            other = await here.asked(6)
            assert await other.reads(6)
            assert not await two_answers.reads(5)

    run(scenario())


def test_one_that_is_cut_off_while_it_is_answered_ends_like_any_other(run, certificate):
    async def scenario():
        async with front(certificate) as here:
            too_much = await here.client()
            too_much._writer.write(b"POST /16 HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\nhalf")
            assert not await too_much.reads(16)
            await until(lambda: not here.connections)

    run(scenario())
