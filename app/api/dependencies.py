"""What routes need: the running service, and the way in that every upload takes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect

from app.api.problems import RequestTimeout
from app.api.running import Service, running_of
from app.api.stated import seconds_allowed
from app.api.uploads import read_images, read_on
from app.api.visit import visit_of
from app.errors import STOPPING, ComeBackLater, DeadlineExceeded, ModelNotReady
from app.segmentation.admission import Held
from app.segmentation.deadline import answered_within


async def service_of(request: Request) -> Service:
    """Return the running service.

    Raises:
        ModelNotReady: It is not started yet, or stopping.
    """
    service = running_of(request.app).service
    if service is None or not service.segmenter.ready:
        raise ModelNotReady("the model is not ready; see /health/ready")
    return service


ServiceDependency = Annotated[Service, Depends(service_of)]


@asynccontextmanager
async def uploaded_images(request: Request, service: Service) -> AsyncIterator[tuple[list[bytes], Held]]:
    """Give the request's images, and the places that it holds for them, while those and the request's deadline last.

    The first place is taken before the body is read, so that a full service does not hold what it refuses; the others
    as soon as the body shows how many images it holds. A client that leaves ends the block, and what it waited for.

    Raises:
        QueueFull: The service has no place for them.
        RateExceeded: Their sender has sent too many of late.
        RequestTimeout: The body did not come in time.
        ModelNotReady: The service ends first.
        DeadlineExceeded: It did, and reading it and the block together took too long.
        UnsupportedMediaType, UploadTooLarge, InvalidRequest: See `read_images` and `seconds_allowed`.
        ClientDisconnect: The client left.
    """
    visit = visit_of(request)
    with visit.settled():
        seconds = seconds_allowed(request, service.request_timeout_seconds)
        is_read = False
        try:
            async with answered_within(seconds, "send fewer or smaller images, or try later"):
                with service.admission.admit(1) as held, visit.counted():
                    images = await read_images(request, service.limits)
                    is_read = True
                    await visit.received(images, service.workers)
                    held.grow(len(images) - 1)
                    async with while_connected(request):
                        yield images, held
        except asyncio.CancelledError:  # nobody but the server's end does that, once it waits no longer
            raise ModelNotReady(f"{STOPPING}, and could not wait for this request; send it again") from None
        except DeadlineExceeded:
            if is_read:
                raise
            raise RequestTimeout(f"the body did not come within {seconds:g} s; send fewer or smaller images") from None
        except ComeBackLater:
            if not is_read:
                await read_on(request)
            raise


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
