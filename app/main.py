"""Composition root of the service: settings in, application out."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry

from app.api import operations, problems, segment
from app.api.dependencies import Service
from app.api.middleware import RequestScope
from app.api.uploads import UploadLimits
from app.errors import ExtraMissing
from app.inference.segmenter import Segmenter
from app.segmentation.admission import Admission, Places
from app.segmentation.patch import PatchLimits, PatchSegmentation
from app.segmentation.workers import Workers
from app.settings import Settings
from app.telemetry.merging import Snapshot, snapshot
from app.telemetry.metrics import Metrics
from app.viewer import page

_MOST_SECTRA_AREAS = 64
"""In one order, and no more than the service has places for: it would be told to come back for ever."""


@dataclass(frozen=True, slots=True)
class OneOfSeveral:
    """What an application has to know that is one of several fronts.

    Attributes:
        places: Where all of them count their images, as this one sees it.
        everyones_metrics: Gives the metrics of all processes together.
    """

    places: Places
    everyones_metrics: Callable[[], Awaitable[Snapshot]]


def create_app(
    settings: Settings | None = None,
    segmenter: Segmenter | None = None,
    metrics: Metrics | None = None,
    front: OneOfSeveral | None = None,
) -> FastAPI:
    """Put the service together.

    Args:
        settings: How to run; read from the environment when None.
        segmenter: The model to serve; the settings' bundle when None, loaded and warmed up here.
        metrics: Where to report; new ones when None.
        front: What it shares with others; None where it is all of the service.

    Raises:
        StartupError: The bundle or the device cannot be used.
        ExtraMissing: Sectra's call-backs are allowed, and the packages for them are not installed.
    """
    settings = settings or Settings()
    metrics = metrics or Metrics(CollectorRegistry())
    model = segmenter or _load(settings, metrics)
    places = front.places if front else Places()
    limits = PatchLimits(settings.max_side_px, settings.max_pixels_at_once // places.fronts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        workers = Workers(-(-settings.cores // places.fronts), metrics)
        await model.start()
        app.state.service = service = Service(
            segmenter=model,
            patches=PatchSegmentation(model, workers, metrics, limits),
            admission=Admission(settings.queue_capacity, metrics, places),
            metrics=metrics,
            limits=UploadLimits(settings.max_upload_bytes, settings.max_files),
            request_timeout_seconds=settings.request_timeout,
        )
        metrics.ready.set(1)
        try:
            async with _sectra_orders(app, settings, service, workers) if settings.sectra_hosts else nullcontext():
                yield
        finally:
            metrics.ready.set(0)
            await model.close()
            await workers.close()

    # Documentation from packaged files: a hospital's network does not reach the usual content delivery networks.
    app: FastAPI = FastAPIOffline(
        title="tessera",
        version=version("tessera"),
        summary="Tissue maps of H&E patches.",
        description="Research use only. Problems come as RFC 9457 documents, `application/problem+json`.",
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    app.state.metrics = metrics
    app.state.everyones_metrics = front.everyones_metrics if front else partial(_own_metrics, metrics)
    app.add_middleware(RequestScope, metrics=metrics)
    problems.install(app, metrics)
    app.include_router(segment.router)
    app.include_router(operations.router)
    app.include_router(page.router)
    if settings.sectra_hosts:
        app.include_router(_sectra_router())
    return app


def _load(settings: Settings, metrics: Metrics) -> Segmenter:
    from app.inference.model import load_segmenter  # noqa: PLC0415  a front has no use for the runtime that it imports

    return load_segmenter(settings.model, metrics)


async def _own_metrics(metrics: Metrics) -> Snapshot:
    return snapshot(metrics.registry)


def _sectra_router() -> APIRouter:
    try:
        from app.api import sectra  # noqa: PLC0415  it imports an extra's packages
    except ModuleNotFoundError as error:
        raise ExtraMissing("Sectra", "sectra") from error
    return sectra.router


@asynccontextmanager
async def _sectra_orders(app: FastAPI, settings: Settings, service: Service, workers: Workers) -> AsyncIterator[None]:
    """Take Sectra's orders for the length of the block."""
    from app.segmentation.sectra.orders import SectraOptions, SectraOrders  # noqa: PLC0415

    # The HTTP library that asks call-backs logs whole paths, and a path holds a slide's id.
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    options = SectraOptions(
        ordered_on=settings.sectra_input,
        hosts=tuple(host.strip() for host in settings.sectra_hosts.split(",")),
        areas=min(_MOST_SECTRA_AREAS, settings.queue_capacity),
        pixels=settings.sectra_max_pixels,
        slide_seconds=settings.sectra_slide_timeout,
    )
    orders = SectraOrders(service.segmenter, workers, service.admission, service.metrics, options, app.version)
    app.state.sectra = orders
    try:
        yield
    finally:
        await orders.close()
