"""Headers of every answer that tell a browser what it must not do with it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.middleware import path_of

_ALL = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_API = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
)
_DOCUMENTATION = (
    (b"cache-control", b"no-cache"),
    # FastAPI's pages start by a script in the page, and style themselves; ReDoc searches in a worker made of a blob.
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
        b" img-src 'self' data:; worker-src blob:; object-src 'none'; base-uri 'none'; form-action 'none';"
        b" frame-ancestors 'none'",
    ),
)
_DOCUMENTATION_PATHS = ("/docs", "/redoc", "/static-offline-docs/")
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class SecurityHeaders:
    """ASGI middleware that adds them, each unless the answer has its own, as the page at `/viewer` does.

    Args:
        app: What answers.
        has_tls: Whether browsers shall come back by TLS alone (RFC 6797).
    """

    def __init__(self, app: ASGIApp, has_tls: bool) -> None:
        self._app = app
        self._api = headers_of_answers(has_tls=has_tls)
        self._documentation = (*_always(has_tls), *_DOCUMENTATION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = self._documentation if path_of(scope).startswith(_DOCUMENTATION_PATHS) else self._api

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(one for one in wanted if one[0] not in own)]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def headers_of_answers(*, has_tls: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Return those of an answer that is no page."""
    return (*_always(has_tls), *_API)


def _always(has_tls: bool) -> tuple[tuple[bytes, bytes], ...]:
    return (*_ALL, _HSTS) if has_tls else _ALL
