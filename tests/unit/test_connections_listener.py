"""Connections of TLS before the two sides have settled, on both event loops that the service runs on."""

import asyncio
import socket
import ssl
import time
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from app.connections.limits import ConnectionLimits
from app.connections.listener import Listener
from app.connections.protocol import Connection
from app.telemetry.metrics import Metrics
from tests.certificates import signed_by_itself
from tests.issuer import pem

NONE_SHED = SimpleNamespace(shed=lambda *_: None, headers=())
MOST = 3
SECONDS = 1.0


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, data):
        self._transport.write(data)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    key, certificate = signed_by_itself()
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(certificate + pem(key))
    return path


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    return asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run


@asynccontextmanager
async def listening(certificate, header_seconds=SECONDS, protocol=Echo):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)  # so that most of an answer waits in this process
    address = listener.getsockname()
    limits = ConnectionLimits(MOST, header_seconds, 1)
    private = Listener(listener, protocol, (), limits, 100, context, balancer=None)
    try:
        yield address, private
    finally:
        private.close()
        await private.wait_closed()


async def silent(address, words=b""):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(words)
    return reader, writer


async def ended(connection):
    reader, writer = connection
    try:
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def echoed(address, certificate):
    trusting = ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection(*address, ssl=trusting)
    writer.write(b"hello")
    answer = await asyncio.wait_for(reader.readexactly(5), 20)
    writer.close()
    return answer


def answering(body, unread_seconds):
    """Return what speaks HTTP and answers `body`, and its connections."""

    async def app(_scope, _receive, send):
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    limits = ConnectionLimits(MOST, 20, unread_seconds)
    config = uvicorn.Config(
        app,
        http=partial(Connection, limits, Metrics(CollectorRegistry()), NONE_SHED),
        ws="none",
        lifespan="off",
        log_config=None,
    )
    config.load()
    state = uvicorn.server.ServerState()
    return partial(config.http_protocol_class, config=config, server_state=state, app_state={}), state.connections


def read_slowly(address, certificate, bytes_a_second):
    """Ask for the answer, read all or as much as comes, and say goodbye in no way; return how much it was."""
    trusting = ssl.create_default_context(cafile=certificate)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        connection.settimeout(20)
        connection.connect(address)
        with trusting.wrap_socket(connection, server_hostname="127.0.0.1") as private:
            private.sendall(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            found, started = 0, time.monotonic()
            while part := private.recv(2**14):
                found += len(part)
                time.sleep(max(0, found / bytes_a_second - (time.monotonic() - started)))
            return found


def test_whoever_reads_slowly_gets_all_of_an_answer(run, certificate):
    async def scenario():
        protocol, connections = answering(b"x" * 2**21, unread_seconds=20)
        async with listening(certificate, 60, protocol) as (address, _):
            assert await asyncio.to_thread(read_slowly, address, certificate, 2**21 / 4) > 2**21
            while connections:
                await asyncio.sleep(0.1)

    run(asyncio.wait_for(scenario(), 60))


def test_whoever_does_not_read_is_cut_off(run, certificate):
    async def scenario():
        protocol, connections = answering(b"x" * 2**22, unread_seconds=1)
        async with listening(certificate, 60, protocol) as (address, _):
            reader, writer = await asyncio.open_connection(
                *address, ssl=ssl.create_default_context(cafile=certificate), limit=2**14
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            assert await reader.readexactly(1)
            assert connections
            while connections:
                await asyncio.sleep(0.1)
            writer.transport.abort()

    run(asyncio.wait_for(scenario(), 60))


def test_who_speaks_is_heard_and_who_is_silent_is_not_waited_for(run, certificate):
    async def scenario():
        async with listening(certificate) as (address, _):
            mute, slow = await silent(address), await silent(address, b"\x16\x03\x01")
            assert await echoed(address, certificate) == b"hello"
            await asyncio.gather(ended(mute), ended(slow))

    run(scenario())


def test_what_is_no_tls_is_ended(run, certificate):
    async def scenario():
        async with listening(certificate, 60) as (address, _):
            assert b"HTTP" not in await ended(await silent(address, b"GET / HTTP/1.1\r\n\r\n"))

    run(scenario())


def test_in_a_crowd_the_oldest_gives_way_to_who_speaks(run, certificate):
    async def scenario():
        async with listening(certificate, 60) as (address, _):
            sockets = [socket.create_connection(address) for _ in range(10 * MOST)]  # all before one is taken
            crowd = [await asyncio.open_connection(sock=one) for one in sockets]
            assert await echoed(address, certificate) == b"hello"
            await asyncio.gather(*map(ended, crowd[: 9 * MOST]))
            assert not crowd[-1][0].at_eof()
            for _, writer in crowd:
                writer.close()

    run(scenario())


def test_after_its_end_it_takes_nobody_and_keeps_nobody(run, certificate):
    async def scenario():
        async with listening(certificate, 60) as (address, private):
            waiting = await silent(address)
            assert await echoed(address, certificate) == b"hello"  # so that the one before was taken too
            private.close()
            await private.wait_closed()
            await ended(waiting)
            with pytest.raises(ConnectionError):
                await silent(address)

    run(scenario())
