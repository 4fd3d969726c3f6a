"""What an answer's pieces become on their way to the connection."""

import asyncio
import socket
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from app.connections.answers import AnswersTransport
from app.connections.limits import ConnectionLimits
from app.connections.protocol import Connection
from app.connections.sent import received_by, taken_from, waits_for
from app.connections.unread import Unread
from app.telemetry.metrics import Metrics

NONE_SHED = SimpleNamespace(shed=lambda *_: None, headers=())


@pytest.fixture
def connection():
    transport = Mock()
    transport.is_closing.return_value = False
    transport.get_extra_info.return_value = None
    transport.get_write_buffer_size.return_value = 0
    transport.attach_mock(Mock(), "end")
    return transport


@pytest.fixture
def answers(connection):
    return AnswersTransport(connection, connection.end, Unread(Mock(), connection, list))


def sent(connection):
    asked = ("is_closing", "get_extra_info", "get_write_buffer_size")
    return [one for one in connection.mock_calls if one[0] not in asked]


def test_a_head_goes_out_with_the_beginning_of_its_body(answers, connection):
    with answers.first_with_second():
        answers.write(b"head")
        assert not sent(connection)
        answers.write(b"body")
        assert sent(connection) == [call.writelines((b"head", b"body"))]
        answers.write(b"more")
    answers.write(b"another")
    assert sent(connection)[1:] == [call.write(b"more"), call.write(b"another")]


def test_a_head_without_a_body_goes_out_all_the_same(answers, connection):
    with answers.first_with_second():
        answers.write(b"head")
    assert sent(connection) == [call.write(b"head")]


def test_a_head_without_a_body_goes_out_before_the_connection_ends(answers, connection):
    with answers.first_with_second():
        answers.write(b"head")
        answers.close()
    assert sent(connection) == [call.write(b"head"), call.end()]


def test_a_connection_that_has_ended_is_sent_nothing(answers, connection):
    connection.is_closing.return_value = True
    with answers.first_with_second():
        answers.write(b"head")
        answers.write(b"body")
    answers.write(b"more")
    assert not sent(connection)


def test_an_error_between_the_two_loses_neither_the_head_nor_the_error(answers, connection):
    with pytest.raises(ZeroDivisionError), answers.first_with_second():
        answers.write(b"head")
        raise ZeroDivisionError
    assert sent(connection) == [call.write(b"head")]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    return asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run


async def app(scope, _receive, send):
    """Answer "ab" in two pieces; or, by the path, nothing, or half of it."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    if scope["path"] == "/broken":
        raise ZeroDivisionError
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    if scope["path"] == "/half":
        raise ZeroDivisionError
    await send({"type": "http.response.body", "body": b"b"})


def connections(header_seconds=20):
    """Return what makes connections."""
    limits = ConnectionLimits(3, header_seconds, 2)
    http = partial(Connection, limits, Metrics(CollectorRegistry()), NONE_SHED)
    config = uvicorn.Config(app, http=http, ws="none", lifespan="off", log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    return partial(config.http_protocol_class, config=config, server_state=state, app_state={})


async def all_that_comes(asked):
    protocol = connections()
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(asked)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            await writer.wait_closed()


GET, HEAD = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: t\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"


def test_answers_come_whole_and_in_order_with_and_without_a_body(run):
    came = run(all_that_comes(GET + HEAD + LAST))
    first, second, third, fourth = came.split(b"HTTP/1.1 200 OK\r\n")
    assert first == b""
    assert second.endswith(b"\r\n\r\nab")
    assert third.endswith(b"\r\n\r\n")
    assert fourth.endswith(b"\r\n\r\nab")


def test_a_refusal_does_not_overtake_a_head_without_a_body(run):
    came = run(all_that_comes(HEAD + b"nonsense\r\n\r\n"))
    assert came.startswith(b"HTTP/1.1 200 OK\r\n")
    assert came.count(b"HTTP/1.1 400 Bad Request\r\n") == 1


@pytest.mark.parametrize(("path", "end"), [(b"/broken", b"\r\n\r\n"), (b"/half", b"\r\n\r\na")])
def test_an_answer_that_breaks_off_is_what_was_counted_and_then_the_end(run, path, end):
    came = run(all_that_comes(GET.replace(b" / ", b" " + path + b" ")))
    assert came.startswith(b"HTTP/1.1 200 OK\r\n")
    assert came.endswith(end)
    assert came.count(b"HTTP/1.1") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="others are not asked")
def test_of_a_connection_that_is_closed_nothing_waits():
    """Python's own event loop closes the socket below TLS a turn before it says so."""
    closed = socket.socket()
    closed.close()
    assert (waits_for(closed), received_by(closed), taken_from(closed)) == (0, 0, None)


def test_a_server_that_stops_does_not_wait_for_the_farewell_of_a_tls_client():
    async def scenario():
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()),
            listener.accept()[0] as accepted,
        ):
            transport = Mock()
            transport.get_extra_info.side_effect = {"socket": accepted, "ssl_object": object()}.get
            transport.get_write_buffer_size.return_value = 0
            transport.is_closing.side_effect = lambda: transport.close.called
            connection = connections(header_seconds=3600)()
            connection.connection_made(transport)
            connection.shutdown()
            while not transport.abort.called:
                await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(scenario(), 30))
