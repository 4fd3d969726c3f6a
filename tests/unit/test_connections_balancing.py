"""Connections that fronts hand to each other, on both event loops that the service runs on."""

import asyncio
import errno
import os
import resource
import socket
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress

import pytest

from app.connections import listener as listener_module
from app.connections.balancing import Balance
from app.connections.limits import ConnectionLimits
from app.connections.listener import Listener

LIMITS = ConnectionLimits(100, 20, 20)


class Named(asyncio.Protocol):
    """Says whose it is when it is asked anything."""

    def __init__(self, name, connections):
        self._name = name
        self._connections = connections

    def connection_made(self, transport):
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, _):
        self._connections.discard(self)

    def data_received(self, _):
        self._transport.write(self._name)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    loop = asyncio.run if request.param == "asyncio" else pytest.importorskip("uvloop").run
    return lambda scenario: loop(asyncio.wait_for(scenario(), 20))


@pytest.fixture
def two():
    """The parts of two fronts, without anybody who listens."""
    balance = Balance(2)
    balancers = balance.seen_by(0), balance.seen_by(1)
    balance.close()
    yield balancers
    for balancer in balancers:
        balancer.close()


class Clients:
    """Connections of clients, kept until they are let go of."""

    def __init__(self):
        self._writers = []

    async def connect(self, address):
        """Return whose a new connection is."""
        reader, writer = await asyncio.open_connection(*address)
        name = None
        try:
            writer.write(b"whose?")
            name = await reader.readexactly(1)
        finally:
            self._writers.append((name, writer))
        return name

    async def connect_in_turn(self, address, count):
        return [await self.connect(address) for _ in range(count)]

    async def let_go(self, of=None):
        for name, writer in self._writers:
            if of in (None, name):
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()


@asynccontextmanager
async def fronts(count, limits=LIMITS):
    """Listen with as many fronts, each at an address of its own, which the system would have dealt connections to."""
    balance = Balance(count)
    addresses, listeners = [], []
    for index in range(count):
        bound = socket.create_server(("127.0.0.1", 0))
        addresses.append(bound.getsockname())
        connections = set()
        make = lambda name=b"%d" % index, connections=connections: Named(name, connections)  # noqa: E731
        listeners.append(Listener(bound, make, connections, limits, 100, None, balance.seen_by(index)))
    balance.close()
    clients = Clients()
    try:
        yield addresses, listeners, clients
    finally:
        await clients.let_go()
        for listener in listeners:
            listener.close()
            await listener.wait_closed()


def test_each_goes_to_the_front_that_has_the_fewest(run):
    async def scenario():
        async with fronts(3) as (addresses, _, clients):
            found = await clients.connect_in_turn(addresses[0], 9)
            assert sorted(found) == [b"0"] * 3 + [b"1"] * 3 + [b"2"] * 3

    run(scenario)


def test_where_memory_is_short_what_was_handed_over_waits_and_is_not_asked_for_again_and_again(run, monkeypatch):
    monkeypatch.setattr(listener_module, "_PAUSE_SECONDS", 0.3)

    async def scenario():
        async with fronts(2) as (addresses, listeners, clients):
            assert await clients.connect(addresses[0]) == b"0"
            balancer, asked = listeners[1]._balancer, []

            def receive():
                asked.append(time.monotonic())
                if len(asked) == 1:
                    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
                return type(balancer).receive(balancer)

            monkeypatch.setattr(balancer, "receive", receive)
            assert await clients.connect(addresses[0]) == b"1"
            assert asked[1] - asked[0] > 0.2

    run(scenario)


def test_a_crowd_that_comes_at_once_is_shared_out_too(run):
    async def scenario():
        async with fronts(3) as (addresses, _, clients):
            names = await asyncio.gather(*(clients.connect(addresses[index % 2]) for index in range(30)))
            counts = [names.count(b"%d" % index) for index in range(3)]
            assert max(counts) - min(counts) <= 2, "one that just begins may count twice for a moment"

    run(scenario)


def test_who_has_lost_some_gets_the_next(run):
    async def scenario():
        async with fronts(2) as (addresses, listeners, clients):
            await clients.connect_in_turn(addresses[0], 8)
            await clients.let_go(of=b"1")
            await asyncio.sleep(0.1)
            listeners[1].publish()
            found = await clients.connect_in_turn(addresses[0], 4)
            assert found == [b"1"] * 4

    run(scenario)


def test_a_front_without_others_to_take_them_keeps_its_own(run):
    async def scenario():
        async with fronts(2) as (addresses, listeners, clients):
            listeners[1].close()
            found = await clients.connect_in_turn(addresses[0], 4)
            assert found == [b"0"] * 4
            with pytest.raises(ConnectionError):
                await clients.connect(addresses[1])

    run(scenario)


def test_what_was_handed_over_before_a_front_closed_is_served(run):
    async def scenario():
        async with fronts(2) as (addresses, listeners, clients):
            await clients.connect(addresses[0])
            with socket.create_connection(addresses[0]) as waiting:
                listeners[0]._take()  # hands it over; the other front has not looked yet
                listeners[1].close()
                waiting.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(waiting, b"whose?")
                assert await asyncio.get_running_loop().sock_recv(waiting, 1) == b"1"

    run(scenario)


def test_a_crowd_at_once_is_all_begun_with(run):
    """What is too many is for the protocol to refuse, which says so."""

    async def scenario():
        limits = ConnectionLimits(2, 20, 20)
        async with fronts(2, limits) as (_, listeners, clients):
            with socket.create_server(("127.0.0.1", 0)) as elsewhere:
                connecting = [asyncio.create_task(clients.connect(elsewhere.getsockname())) for _ in range(20)]
                await asyncio.sleep(0.1)
                for _ in range(20):  # between two turns of the event loop
                    listeners[0]._begin(elsewhere.accept()[0])
                assert await asyncio.gather(*connecting) == [b"0"] * 20
            assert len(listeners[0]._connections) == 20

    run(scenario)


def test_it_knows_itself_when_it_looks(run):
    async def scenario():
        async with fronts(2) as (addresses, listeners, clients):
            listeners[0]._balancer.publish(50)  # of which all have ended since
            assert await clients.connect(addresses[0]) == b"0"

    run(scenario)


def test_a_front_that_has_not_begun_gets_none(run):
    async def scenario():
        balance = Balance(2)
        with socket.create_server(("127.0.0.1", 0)) as bound:
            connections, clients = set(), Clients()
            address = bound.getsockname()
            only = Listener(bound, lambda: Named(b"0", connections), connections, LIMITS, 100, None, balance.seen_by(0))
            assert await clients.connect_in_turn(address, 3) == [b"0"] * 3
            await clients.let_go()
            only.close()
            await only.wait_closed()
        balance.close()

    run(scenario)


def test_the_last_of_the_fronts_does_not_listen_for_others(run):
    async def scenario():
        async with fronts(2) as (addresses, listeners, clients):
            listeners[1].close()
            await asyncio.sleep(0.05)
            before = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - before < 0.25
            assert await clients.connect(addresses[0]) == b"0"

    run(scenario)


def test_what_lies_in_the_way_can_be_received_after_more_was_refused(two):
    giver, taker = two
    giver.publish(5)
    taker.publish(0)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as clients:
        for _ in range(2):
            clients.enter_context(socket.create_connection(listener.getsockname()))
        assert giver.hand_over(listener.accept()[0])
        taker.refuse_more()
        with listener.accept()[0] as kept:
            assert not giver.hand_over(kept)
        taker.receive().close()
        with pytest.raises(EOFError):
            taker.receive()


@contextmanager
def no_more_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_one_that_there_is_no_room_for_is_lost_and_the_next_is_not(two):
    giver, taker = two
    giver.publish(1)
    taker.publish(0)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as first,
        socket.create_connection(listener.getsockname()) as second,
    ):
        assert giver.hand_over(listener.accept()[0])
        with no_more_descriptors(), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            taker.receive()
        assert first.recv(1) == b"", "its client is told at once"

        assert giver.hand_over(listener.accept()[0])
        with taker.receive() as received:
            assert received.getpeername() == second.getsockname()
        assert taker.receive() is None


@pytest.mark.parametrize("index", [0, 1])
def test_nobody_hands_over_to_who_has_as_many(two, index):
    giver, taker = two[index], two[1 - index]
    giver.publish(2)
    taker.publish(2)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as taken,
    ):
        assert not giver.hand_over(taken)
        assert taken.fileno() >= 0
