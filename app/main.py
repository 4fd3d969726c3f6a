"""Composition root of the service: settings in, application out."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CollectorRegistry

from app.access.gate import Access
from app.access_settings import access_of
from app.api import admin, documentation, operations, problems, redirects, segment
from app.api.access import AccessControl
from app.api.middleware import CLIENT_LEFT_STATUS, InternalErrors, RequestScope
from app.api.openapi import describe_common
from app.api.running import Running, Service
from app.api.security_headers import SecurityHeaders
from app.api.uploads import UploadLimits
from app.errors import ReloadRefused
from app.inference.segmenter import Segmenter
from app.libraries import require, silence_libraries
from app.pathology.manifest import ModelManifest
from app.segmentation.admission import Admission, Places
from app.segmentation.patch import PatchLimits, PatchSegmentation
from app.segmentation.workers import Workers
from app.settings import Settings
from app.software import software_version
from app.telemetry.merging import Snapshot, snapshot
from app.telemetry.metrics import Metrics
from app.viewer import page

_log = logging.getLogger(__name__)

_MOST_SECTRA_AREAS = 64
"""In one order, and no more than the service has places for: it would be told to come back for ever."""
_ALERTED_STATUSES = (CLIENT_LEFT_STATUS, 500, 503, 504)
"""Those that `docker/alerts.yml` asks of routes that take images."""
_NO_TRACES: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own hold each path and query, and go to whatever collector somebody's environment sets up."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an application shares with the service's other processes; see `alone` for one that is all of the service.

    Attributes:
        places: Where all fronts count their images, as this one sees it.
        access: Who may ask, how often over all of them, and where it is written down.
        everyones_metrics: Gives the metrics of all processes together.
        reload: Has all processes serve the bundle as it lies there now.
        stuck: Called when the model does not answer any more.
    """

    places: Places
    access: Access
    everyones_metrics: Callable[[], Awaitable[Snapshot]]
    reload: Callable[[], Awaitable[ModelManifest]]
    stuck: Callable[[], None]


def create_app(
    settings: Settings | None = None,
    segmenter: Segmenter | None = None,
    metrics: Metrics | None = None,
    surroundings: Surroundings | None = None,
) -> FastAPI:
    """Put the service together.

    Args:
        settings: How to run; read from the environment when None.
        segmenter: The model to serve; the settings' bundle when None, loaded and warmed up here.
        metrics: Where to report; new ones when None.
        surroundings: What it shares with other processes; `alone` when None.

    Raises:
        StartupError: The bundle, the device, or a file of access cannot be used.
        ExtraMissing: What the settings ask for needs packages that are not installed.
    """
    settings = settings or Settings()
    metrics = metrics or Metrics(CollectorRegistry())
    surroundings = surroundings or alone(settings, metrics)
    access, places, stuck = surroundings.access, surroundings.places, surroundings.stuck
    model = segmenter or _load(settings)
    workers = Workers(-(-settings.cores // places.fronts), metrics)
    limits = PatchLimits(settings.max_side_px, settings.max_pixels_at_once // places.fronts)
    running = Running(
        metrics=metrics,
        access=access,
        reload=surroundings.reload,
        everyones_metrics=surroundings.everyones_metrics,
    )

    metrics.ready.set_function(lambda: float(running.told_readiness() is None))
    if (keys := access.keys) is not None:
        metrics.keys_faulty_lines.set_function(lambda: keys.faulty_lines)

    def stalled() -> None:
        _log.error("the model does not answer any more")
        running.stalled = True
        stuck()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        admission = Admission(settings.queue_capacity, settings.queue_pixels, metrics, places)
        await model.start(metrics, stalled)
        running.service = service = Service(
            segmenter=model,
            patches=PatchSegmentation(model, workers, metrics, limits, admission),
            workers=workers,
            admission=admission,
            metrics=metrics,
            limits=UploadLimits(settings.max_upload_bytes, settings.max_files),
            request_timeout_seconds=settings.request_timeout,
        )
        try:
            async with _sectra_orders(running, settings, service) if settings.sectra_hosts else nullcontext():
                yield
        finally:
            await model.close()
            await workers.close()

    app = FastAPI(
        title="tessera",
        version=software_version(),
        summary="Tissue maps of H&E patches.",
        description="Research use only. Errors are RFC 9457 problem documents, `application/problem+json`.",
        servers=[documentation.SERVER],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
        redirect_slashes=False,  # a redirect would repeat the query, and name the host that the client did
        telemetry=_NO_TRACES,
    )
    app.state.running = running
    routers = [segment.router, operations.router, admin.router, redirects.router, page.router, documentation.router]
    if settings.sectra_hosts:
        routers.append(_sectra_router())
        if access.is_guarded and "sectra" not in access.public:
            _log.warning("/sectra/hook asks for a key, and Sectra's server sends none: see docs/access.md")
    for router in routers:
        app.include_router(router)
    problems.install(app, metrics)
    for route, status in product(segment.router.routes, _ALERTED_STATUSES):
        if isinstance(route, APIRoute):  # at 0 from the start: an alert's rate sees the first one
            metrics.requests.labels(route.path, str(status))
    routes = [route for router in routers for route in router.routes]
    # The last added is the outermost.
    app.add_middleware(AccessControl, access=access, metrics=metrics, routes=routes)
    app.add_middleware(InternalErrors)
    if access.origins:
        app.add_middleware(CORSMiddleware, **_foreign_pages(access.origins))
    app.add_middleware(RequestScope, metrics=metrics)
    app.add_middleware(SecurityHeaders, has_tls=access.certificate is not None)
    describe_common(app)
    return app


def alone(settings: Settings, metrics: Metrics) -> Surroundings:
    """Return the surroundings of a process that is all of the service.

    Raises:
        AccessUnusable: A file of access cannot be used.
        ExtraMissing: What the settings ask for needs packages that are not installed.
    """
    return Surroundings(
        places=Places(),
        access=access_of(settings, settings.host),
        everyones_metrics=partial(_own_metrics, metrics),
        reload=_cannot_reload,
        stuck=lambda: None,
    )


def _foreign_pages(origins: tuple[str, ...]) -> dict[str, Any]:
    """Return what pages of other origins may send and read. No cookie is sent: a page has to know a key itself."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "POST"),
        "allow_headers": ("Authorization", "X-API-Key", "Content-Type", "X-Request-ID", "X-Request-Timeout"),
        "expose_headers": ("*",),
        "allow_private_network": True,  # a page from elsewhere may ask a service within the hospital
    }


def _load(settings: Settings) -> Segmenter:
    from app.inference.model import load_segmenter  # noqa: PLC0415  a front has no use for the runtime that it imports

    return load_segmenter(settings.model)


async def _cannot_reload() -> ModelManifest:
    raise ReloadRefused("a new bundle is taken by `tessera serve` on Linux alone; start the service anew")


async def _own_metrics(metrics: Metrics) -> Snapshot:
    return snapshot(metrics.registry)


def _sectra_router() -> APIRouter:
    require("Sectra", ("sectra_client", "urllib3"), "sectra")
    from app.api import sectra  # noqa: PLC0415

    return sectra.router


@asynccontextmanager
async def _sectra_orders(running: Running, settings: Settings, service: Service) -> AsyncIterator[None]:
    """Take Sectra's orders for the length of the block."""
    from app.segmentation.sectra.orders import SectraOptions, SectraOrders  # noqa: PLC0415

    silence_libraries()
    options = SectraOptions(
        ordered_on=settings.sectra_input,
        hosts=settings.sectra_hosts,
        areas=min(_MOST_SECTRA_AREAS, settings.queue_capacity),
        pixels=settings.sectra_max_pixels,
        slide_seconds=settings.sectra_slide_timeout,
    )
    # Its request has been answered long before a whole slide fails, so no answer counts that.
    failed = partial(problems.count_rejection, metrics=service.metrics)
    running.sectra = orders = SectraOrders(
        service.segmenter, service.workers, service.admission, service.metrics, options, failed
    )
    try:
        yield
    finally:
        await orders.close()
