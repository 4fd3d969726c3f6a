"""Who may ask for which path, before anything of a body is read; and the audit line, written before the answer."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.audit import NOT_WRITTEN, AuditLog
from app.access.callers import ANYBODY
from app.access.callers import Scope as Allowed
from app.access.gate import Access
from app.access.rates import Allowance
from app.api.middleware import CLIENT_LEFT_STATUS, METHOD, METHODS, path_of
from app.api.problems import PROBLEM, refuse
from app.api.running import running_of
from app.api.visit import CLIENT_LEFT_OUTCOME, FAULT, VISIT, Visit
from app.errors import (
    AdminClosed,
    AuditUnavailable,
    CredentialsMissing,
    CredentialsRejected,
    ScopeMissing,
    TesseraError,
)
from app.telemetry.logging import request_id
from app.telemetry.metrics import Metrics

_PARTS = {
    "health": "health",
    "viewer": "viewer",
    "docs": "docs",
    "redoc": "docs",
    "openapi.json": "docs",
    "static-offline-docs": "docs",
    "model": "model",
    "metrics": "metrics",
    "sectra": "sectra",
    "admin": "admin",
}
"""Parts of the service by what a path begins with."""
_IMAGES = "images"
"""All else, whatever may be added: it wants a key until it is said here that it does not."""
_NEEDS = {"health": None, "metrics": Allowed.METRICS, "admin": Allowed.ADMIN}
_AUDITED = frozenset({_IMAGES, "sectra", "admin"})

_log = logging.getLogger(__name__)


class AccessControl:
    """ASGI middleware that lets callers in, or does not, and writes down who asked for what.

    Args:
        app: What is behind it.
        access: Who may.
        metrics: Told of refusals.
        routes: All routes there are: of a path that is refused, only a name of theirs is written down.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._routes = tuple(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = path_of(scope)
        part = _part_of(path)
        audit = self._access.audit if part in _AUDITED else None
        if audit is None:
            await self._serve(scope, receive, send, part, is_audited=False)
            return
        if audit.trouble is not None:  # nothing is computed whose answer could not be given
            running_of(scope["app"]).told_readiness()  # the log is told why, once
            await self._refuse(scope, receive, send, AuditUnavailable(NOT_WRITTEN))
            return
        writing = _Writing(audit, scope, receive, send, self._metrics)
        try:
            await self._serve(scope, receive, writing.send, part, is_audited=True)
        except (ClientDisconnect, asyncio.CancelledError):
            writing.write_unanswered(CLIENT_LEFT_STATUS, CLIENT_LEFT_OUTCOME)
            raise
        except Exception:
            writing.write_unanswered(500, FAULT)
            raise

    async def _serve(self, scope: Scope, receive: Receive, send: Send, part: str, *, is_audited: bool) -> None:
        try:
            needed = self._needed(part)
            caller = ANYBODY if needed is None else await self._access.caller_of(_credential(scope["headers"]))
            scope[VISIT] = Visit(caller, Allowance(self._access.rates, caller), is_audited)
            if needed is not None and needed not in caller.scopes:
                raise ScopeMissing(f"this key or token does not allow {needed}", needed)
        except TesseraError as error:
            await self._refuse(scope, receive, send, error)
            return
        await self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: TesseraError) -> None:
        scope["route"] = next((route for route in self._routes if route.matches(scope)[0] != Match.NONE), None)
        await refuse(scope, error, self._metrics)(scope, receive, send)

    def _needed(self, part: str) -> Allowed | None:
        """Return what a caller has to be allowed for this part; None where it is open to everybody.

        Raises:
            AdminClosed: It is open to nobody, since there are neither keys nor an issuer.
        """
        access = self._access
        if not access.is_guarded:
            if part == "admin":
                raise AdminClosed("administration needs a key: set TESSERA_KEYS_FILE or TESSERA_OIDC_ISSUER")
            return None
        return None if part in access.public else _NEEDS.get(part, Allowed.SEGMENT)


class _Writing:
    """One request's line: written when its answer is about to begin, which it does not where that fails."""

    def __init__(self, audit: AuditLog, scope: Scope, receive: Receive, send: Send, metrics: Metrics) -> None:
        self._audit = audit
        self._scope = scope
        self._receive = receive
        self._send = send
        self._metrics = metrics
        self._begun = False
        self._replaced = False

    async def send(self, message: Message) -> None:
        """Hand a message on."""
        if message["type"] == "http.response.start" and not self._begun:
            self._begun = True
            try:
                self._write(message["status"], self._scope.get(PROBLEM))
            except AuditUnavailable as error:
                _log.error("%s: %s", error, error.__cause__)
                self._replaced = True
                await refuse(self._scope, error, self._metrics)(self._scope, self._receive, self._send)
        if not self._replaced:
            await self._send(message)

    def write_unanswered(self, status: int, problem: str) -> None:
        """Write the line of a request that ended without an answer."""
        if self._begun:
            return
        try:
            self._write(status, problem)
        except AuditUnavailable as error:
            _log.error("%s: %s", error, error.__cause__)

    def _write(self, status: int, problem: str | None) -> None:
        scope = self._scope
        route = getattr(scope.get("route"), "path", None)
        if route is None:  # it reached nothing, and its path is the client's own text
            return
        visit: Visit | None = scope.get(VISIT)
        method = scope.get(METHOD, scope["method"])
        self._audit.write(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "caller": visit.caller.name if visit else None,
                "address": _address(scope),
                "method": method if method in METHODS else "other",
                "route": route,
                "status": status,
                "problem": problem,
                "request_id": request_id.get(),
                "images": [{"sha256": image.sha256, "outcome": image.outcome} for image in visit.images]
                if visit
                else [],
                "model": _model(scope),
            }
        )


def _part_of(path: str) -> str:
    if path == "/":
        return "viewer"  # where it leads to
    return _PARTS.get(path.split("/", 2)[1] if path.startswith("/") else "", _IMAGES)


def _address(scope: Scope) -> str | None:
    """Return where the request came from; a proxy's header, which may have said so, can hold any text."""
    host, _ = scope.get("client") or ("", 0)
    try:
        return str(ip_address(host.partition("%")[0]))  # the zone of an IPv6 address is free text too
    except ValueError:
        return None


def _model(scope: Scope) -> dict[str, Any] | None:
    service = running_of(scope["app"]).service
    return service.segmenter.manifest.model_dump(include={"name", "version", "sha256"}) if service else None


def may_send_images(access: Access, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether it can be told at once, by a key or for want of any, that a request with these headers may."""
    if not access.is_guarded:
        return True
    try:
        caller = access.keys.caller_of(_credential(headers)) if access.keys else None
    except TesseraError:
        return False
    return caller is not None and Allowed.SEGMENT in caller.scopes


def _credential(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the one key or token that a request shows.

    Raises:
        CredentialsMissing: It shows none.
        CredentialsRejected: It shows several, and which of them counts would be a guess.
    """
    shown: set[bytes] = set()
    for name, value in headers:
        if name == b"x-api-key":
            shown.add(value.strip())
        elif name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                shown.add(token.strip())
    if not shown:
        raise CredentialsMissing("send a key, or a token, as Authorization: Bearer KEY, or as X-API-Key: KEY")
    if len(shown) > 1:
        raise CredentialsRejected("several keys or tokens came with this request; send one")
    return shown.pop().decode("latin-1")
