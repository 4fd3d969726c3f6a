"""A service for the page under test: in this process, on a free port, with what a network puts before a service."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

START_SECONDS = 60


@dataclass
class Upload:
    """One POST that came in."""

    at: float
    query: str
    accept: str
    body: bytes = b""


@dataclass
class Gateway:
    """Stands before the application: notes uploads, asks for a key, is busy.

    Attributes:
        app: The application.
        prefix: Where the application seems to lie; "" is the root.
        key: The key that requests for data must bear, or None.
        busy: How many uploads to refuse with 429 first.
        retry_after_seconds: What those refusals say.
        uploads: What came.
        inside: How many uploads are being answered now.
        most_inside: The most there ever were.
    """

    app: ASGIApp
    prefix: str = ""
    key: str | None = None
    busy: int = 0
    retry_after_seconds: int = 1
    uploads: list[Upload] = field(default_factory=list)
    inside: int = 0
    most_inside: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "path": scope["path"].removeprefix(self.prefix)}
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if (
            self.key
            and not scope["path"].startswith("/viewer")
            and headers.get("authorization") != f"Bearer {self.key}"
        ):
            await _refuse(send, 401, {"www-authenticate": "Bearer"})
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        else:
            await self._upload(scope, receive, send, headers)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        upload = Upload(time.monotonic(), scope["query_string"].decode(), headers.get("accept", ""))
        self.uploads.append(upload)

        async def noted() -> Message:
            message = await receive()
            upload.body += message.get("body", b"")
            return message

        if self.busy:
            self.busy -= 1
            await _refuse(send, 429, {"retry-after": str(self.retry_after_seconds)})
            return
        inside = True

        def leave() -> None:
            nonlocal inside
            self.inside -= inside
            inside = False

        async def told(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                leave()  # before the client can know that its answer is whole
            await send(message)

        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await self.app(scope, noted, told)
        finally:
            leave()


async def _refuse(send: Send, status: int, headers: dict[str, str]) -> None:
    problem = {"type": "about:blank", "title": "Refused", "status": status, "detail": "by the gateway"}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"content-type", b"application/problem+json"))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps(problem).encode()})


@dataclass(frozen=True)
class Serving:
    """A server that runs in a thread.

    Attributes:
        url: Where.
        loop: Its event loop, for `call_soon_threadsafe`.
    """

    url: str
    loop: asyncio.AbstractEventLoop


@contextmanager
def serving(app: ASGIApp) -> Iterator[Serving]:
    """Serve `app` on loopback, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="on", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []
    running = threading.Event()

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        running.set()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert running.wait(START_SECONDS)
        yield Serving(f"http://127.0.0.1:{listener.getsockname()[1]}", loops[0])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
