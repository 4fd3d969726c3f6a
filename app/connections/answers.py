"""How an answer goes out on its connection: its beginning in one piece, and nothing once the connection has ended."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.connections.unread import Unread


class AnswersTransport(asyncio.Transport):
    """A connection's transport as an answer sees it, which ends the connection and not the transport.

    Args:
        transport: The connection's.
        close: Ends the connection.
        unread: Told what is written.

    Attributes:
        unread: The same.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], unread: Unread) -> None:
        super().__init__()
        self.unread = unread
        self._transport = transport
        self._close = close
        self._keeps_next = False
        self._kept: bytes | None = None

    @contextmanager
    def first_with_second(self) -> Iterator[None]:
        """Send the first piece that the block writes together with its second: one call of the system, one packet."""
        self._keeps_next = True
        try:
            yield
        finally:
            self._keeps_next = False
            self.send_kept()

    def write(self, data: Any) -> None:
        """Send a piece of an answer; in vain once the connection has ended."""
        if self._keeps_next:
            self._keeps_next = False
            self._kept = data
            return
        kept, self._kept = self._kept, None
        if self._transport.is_closing():
            return
        with self.unread.writing(len(kept or b"") + len(data)):
            if kept is None:
                self._transport.write(data)
            elif data:
                self._transport.writelines((kept, data))
            else:  # asyncio's own transport of Python 3.12 and 3.13 never ends with a list whose last piece is empty
                self._transport.write(kept)

    def send_kept(self) -> None:
        """Send a piece to which no second came."""
        if self._kept is not None:
            self.write(b"")

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection."""
        self.send_kept()
        self._close()


async def in_one_piece(app: ASGIApp, answers: AnswersTransport, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request; the answer's head waits for the first piece of its body, to go out with it.

    Args:
        app: What answers.
        answers: What the answer is written to.
        scope: The request's, and so are the others.
        receive: Gives the request's body.
        send: Takes the answer.
    """
    head: Message | None = None

    async def send_together(message: Message) -> None:
        nonlocal head
        if head is None and message["type"] == "http.response.start":
            head = message
            return
        beginning, head = head, None
        with answers.unread.holding(len(message.get("body", b""))):
            if beginning is None:
                await send(message)
                return
            with answers.first_with_second():
                await send(beginning)
                await send(message)

    try:
        await app(scope, receive, send_together)
    finally:
        if head is not None:  # it has been counted and written down: so the client gets it, and then the end
            await send(head)
