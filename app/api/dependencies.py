"""What routes need: the running service, and the way in that every upload takes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from app.api.uploads import UploadLimits, read_images
from app.errors import ModelNotReady
from app.inference.segmenter import Segmenter
from app.segmentation.admission import Admission
from app.segmentation.deadline import answered_within
from app.segmentation.patch import PatchSegmentation
from app.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that the composition root put together, for routes to use."""

    segmenter: Segmenter
    patches: PatchSegmentation
    admission: Admission
    metrics: Metrics
    limits: UploadLimits
    request_timeout_seconds: float


async def service_of(request: Request) -> Service:
    """Return the running service.

    Raises:
        ModelNotReady: It is not started yet, or stopping.
    """
    service: Service | None = getattr(request.app.state, "service", None)
    if service is None or not service.segmenter.ready:
        raise ModelNotReady("the model is not ready; see /health/ready")
    return service


ServiceDependency = Annotated[Service, Depends(service_of)]


@asynccontextmanager
async def uploaded_images(request: Request, service: Service) -> AsyncIterator[list[bytes]]:
    """Give the request's images while their places in the service and the request's deadline last.

    The first place is taken before the body is read, so that a full service refuses without reading; the others as
    soon as the body shows how many images it holds. A client that leaves ends the block, and what it still waited for.

    Raises:
        QueueFull: The service has no place for them.
        DeadlineExceeded: Reading and the block together took too long.
        UnsupportedMediaType, UploadTooLarge, InvalidRequest: See `read_images`.
        ClientDisconnect: The client left.
    """
    async with answered_within(service.request_timeout_seconds, "send fewer or smaller images, or try later"):
        with service.admission.admit(1):
            images = await read_images(request, service.limits)
            with service.admission.admit(len(images) - 1):
                async with while_connected(request):
                    yield images


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client leaves; the request's body has been read.

    Raises:
        ClientDisconnect: It left.
    """
    serving = asyncio.current_task()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        if serving is not None:
            serving.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and serving is not None and serving.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
