"""How one server leaves; the processes around it are in tests/integration."""

import asyncio
import json
import signal
import socket
from collections.abc import Callable

import pytest

from app import server
from app.api.running import Phase
from app.errors import AccessUnusable, AddressUnavailable
from app.main import create_app
from app.server import Server, bind, bind_each
from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.certificates import signed_by_itself
from tests.fakes import ColourSegmenter
from tests.issuer import pem

SETTINGS = Settings(cores=1, shutdown_grace=0)


class Stuck(ColourSegmenter):
    """A model that gets stuck as soon as it has begun."""

    had_to_be_told = False

    async def start(self, metrics: Metrics, stalled: Callable[[], None] = lambda: None) -> None:
        await super().start(metrics, stalled)
        asyncio.get_running_loop().call_soon(stalled)
        asyncio.get_running_loop().call_later(20, self.end_it)

    def end_it(self) -> None:
        self.had_to_be_told = True
        signal.raise_signal(signal.SIGINT)


def test_a_service_of_one_process_whose_model_is_stuck_ends_by_itself(monkeypatch, caplog):
    class Ended(BaseException):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(server.os, "_exit", end)
    model = Stuck()
    with pytest.raises(Ended, match="1"), bind("127.0.0.1", 0) as listener:
        server.run(create_app(SETTINGS, model), listener, SETTINGS)
    assert not model.had_to_be_told
    assert "the model does not answer any more" in caplog.text


def test_a_name_of_both_kinds_of_address_is_bound_where_clients_of_the_older_kind_find_it(monkeypatch):
    local = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]
    found = [(family, socket.SOCK_STREAM, 6, "", address) for family, address in local]
    monkeypatch.setattr(server.socket, "getaddrinfo", lambda *_, **__: found)
    with bind("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_of_two_services_that_start_together_one_has_the_address():
    listeners = bind_each("127.0.0.1", 0, 2)
    port = listeners[0].getsockname()[1]
    with pytest.raises(AddressUnavailable, match="address already in use"):
        bind_each("127.0.0.1", port, 2)
    with socket.create_connection(("127.0.0.1", port)) as early:
        for listener in listeners:
            listener.close()
        early.settimeout(10)
    for listener in bind_each("127.0.0.1", port, 2):  # at once, whatever of the last one's connections is still known
        listener.close()


def test_where_no_tls_is_to_be_had_the_service_says_so(monkeypatch, tmp_path):
    key, certificate = signed_by_itself()
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(pem(key))
    settings = Settings(cores=1, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    app = create_app(settings, ColourSegmenter())
    Server(app, settings, lambda: None)
    monkeypatch.setattr(server, "_LISTENS_BY_UVICORN", True)
    with pytest.raises(AccessUnusable, match="let a proxy speak it"):
        Server(app, settings, lambda: None)


@pytest.mark.anyio
@pytest.mark.parametrize("by_uvicorn", [False, True])
async def test_one_that_retires_is_ready_for_as_long_as_connections_may_still_come_and_then_ends(
    monkeypatch, by_uvicorn
):
    monkeypatch.setattr(server, "_LISTENS_BY_UVICORN", by_uvicorn)
    app = create_app(SETTINGS, ColourSegmenter())

    async with asyncio.timeout(20):
        with bind("127.0.0.1", 0) as listener:
            started = asyncio.Event()
            retiring = Server(app, SETTINGS, started.set, signals=())
            serving = asyncio.create_task(retiring.serve([listener]))
            await started.wait()
            before = asyncio.get_running_loop().time()
            retiring.retire()
            retiring.retire()
            assert app.state.running.phase is Phase.RETIRING
            assert app.state.running.told_readiness() is None
            await serving
            assert 0.9 < asyncio.get_running_loop().time() - before < 5.5
    assert not app.state.running.service.segmenter.ready


@pytest.mark.parametrize("told", [False, True])
def test_whose_model_is_stuck_waits_for_no_client_that_is_slow(monkeypatch, caplog, told):
    """By what it sees itself, or as the supervisor tells it: its own model, or that of an engine."""
    monkeypatch.setattr(server, "MARGIN_SECONDS", 1)
    app = create_app(SETTINGS, ColourSegmenter())

    async def scenario() -> None:
        with bind("127.0.0.1", 0) as listener:
            started = asyncio.Event()
            serving = Server(app, SETTINGS, started.set, signals=())
            ending = asyncio.create_task(serving.serve([listener]))
            await started.wait()
            answer, slow = await asyncio.open_connection(*listener.getsockname())
            slow.write(
                b"POST /segment HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nhalf"
            )
            while not serving.server_state.tasks:
                await asyncio.sleep(0.01)
            if told:
                serving.leave(signal.SIGINT, within_seconds=1)
            else:
                app.state.running.stalled = True
            await ending
            head, _, body = (await answer.read()).partition(b"\r\n\r\n")
            slow.close()
            assert head.startswith(b"HTTP/1.1 503 ")
            assert json.loads(body)["type"] == "urn:problem-type:tessera:model-not-ready"

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert "Exception in ASGI application" not in caplog.text
