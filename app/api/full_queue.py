"""Refuses images while the service has no place for one, before the way to their route, which costs as much again."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.dependencies import Service
from app.api.middleware import path_of
from app.api.problems import refuse
from app.api.uploads import read_on
from app.errors import QueueFull


class FullQueue:
    """ASGI middleware before the routes that take images.

    It takes no place: whoever passes it may still find none in `uploaded_images`.

    Args:
        app: What is behind it.
        routes: Those that take images.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = {route.path: route for route in routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self._routes.get(path_of(scope))
            service: Service | None = getattr(scope["app"].state, "service", None)
            if route is not None and service is not None and service.segmenter.ready:
                try:
                    service.admission.expect_place()
                except QueueFull as error:
                    scope["route"] = route
                    await read_on(Request(scope, receive))
                    await refuse(scope, error, service.metrics)(scope, receive, send)
                    return
        await self._app(scope, receive, send)
