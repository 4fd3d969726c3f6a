"""Connections before the two sides have settled on TLS, on both event loops that the service runs on."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager

import pytest

from app.connections.limits import ConnectionLimits
from app.connections.tls import PrivateListener
from tests.certificates import signed_by_itself
from tests.issuer import pem

MOST = 3
SECONDS = 0.5


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
async def listening(certificate, header_seconds=SECONDS):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    limits = ConnectionLimits(MOST, header_seconds, 1)
    private = PrivateListener(listener, Echo, context, limits, backlog=100)
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
