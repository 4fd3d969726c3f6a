"""POST /segment: labels and masks. POST /classify: labels alone."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from app.api import schemas
from app.api.dependencies import Service, ServiceDependency, uploaded_images
from app.api.negotiation import choose
from app.api.problems import MEDIA_TYPE as PROBLEM
from app.api.problems import InvalidRequest, Problem, count_rejection, problem_of
from app.api.uploads import FORM, PART
from app.errors import TesseraError
from app.imaging.decode import MEDIA_TYPES
from app.pathology.classes import code
from app.segmentation.concurrently import all_of
from app.segmentation.patch import SegmentedPatch
from app.telemetry.logging import request_id

JSON, PNG = "application/json", "image/png"

router = APIRouter(tags=["patches"])
_T = TypeVar("_T")

_FILE = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {PART: {"type": "array", "items": _FILE, "description": "One or several images."}},
                }
            },
            **{media_type: {"schema": _FILE} for media_type in MEDIA_TYPES},
        },
    }
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, description in {
        400: "The request or its form cannot be understood.",
        406: "None of the media types in Accept is given.",
        413: "Too many bytes, files or pixels.",
        415: "Not one of the accepted media types or image formats.",
        422: "The image is truncated or damaged.",
        429: "The queue is full; Retry-After says when to come back.",
        503: "The model is not ready.",
        504: "The deadline passed.",
    }.items()
}


@router.post(
    "/segment",
    response_model=schemas.Segmentation | schemas.Segmentations,
    responses={200: {"content": {PNG: {"schema": _FILE}}}, **_PROBLEMS},
    openapi_extra=_BODY,
)
async def segment(
    request: Request,
    service: ServiceDependency,
    view: Annotated[
        Literal["mask", "overlay"],
        Query(description="The picture that image/png is; JSON holds the mask always, the overlay with view=overlay."),
    ] = "mask",
    opacity: Annotated[float, Query(ge=0, le=1, description="Opacity of the overlay's colours.")] = 0.4,
) -> Response:
    """Segment one or several H&E patches.

    Send one image as the body, or several as `file` parts of a form. `Accept: application/json` (the default) gives
    labels, fractions and the mask; `Accept: image/png` the picture itself, for one image.
    """
    media_type = choose(_accept(request), (JSON, PNG))
    async with uploaded_images(request, service) as images:
        if media_type == PNG:
            if len(images) != 1:
                raise InvalidRequest(f"image/png answers one image, not {len(images)}; ask for application/json")
            return await _picture(service, images[0], view, opacity)

        async def answer(data: bytes) -> schemas.Segmentation:
            async with service.patches.segmented(data) as patch:
                mask = await service.patches.mask(patch)
                overlay = await service.patches.overlay(patch, opacity) if view == "overlay" else None
                return schemas.segmentation(patch, service.segmenter.manifest, _current_id(), mask, overlay)

        if len(images) == 1:
            return _json(await answer(images[0]))
        return _json(schemas.Segmentations(results=await _each(service, images, answer)))


@router.post(
    "/classify",
    response_model=schemas.Classification | schemas.Classifications,
    responses=_PROBLEMS,
    openapi_extra=_BODY,
)
async def classify(request: Request, service: ServiceDependency) -> Response:
    """Say which tissues one or several H&E patches contain, without masks. Send them as to `/segment`."""
    choose(_accept(request), (JSON,))
    async with uploaded_images(request, service) as images:

        async def answer(data: bytes) -> schemas.Classification:
            async with service.patches.segmented(data) as patch:
                return schemas.classification(patch, service.segmenter.manifest, _current_id())

        if len(images) == 1:
            return _json(await answer(images[0]))
        return _json(schemas.Classifications(results=await _each(service, images, answer)))


async def _each(service: Service, images: list[bytes], answer: Callable[[bytes], Awaitable[_T]]) -> list[_T | Problem]:
    """Answer each image, in order; one that cannot be answered gets its problem and spares the others."""

    async def one(data: bytes) -> _T | Problem:
        try:
            return await answer(data)
        except TesseraError as error:
            count_rejection(error, service.metrics)
            return problem_of(error)

    return await all_of(one(data) for data in images)


async def _picture(service: Service, data: bytes, view: str, opacity: float) -> Response:
    async with service.patches.segmented(data) as patch:
        png = await (service.patches.mask(patch) if view == "mask" else service.patches.overlay(patch, opacity))
        return Response(png, media_type=PNG, headers={**_headers(service, patch), "Vary": "Accept"})


def _headers(service: Service, patch: SegmentedPatch) -> dict[str, str]:
    manifest = service.segmenter.manifest
    return {
        "Tessera-Labels": ", ".join(tissue.name for tissue in patch.labels),
        "Tessera-Code": code(patch.labels),
        "Tessera-Image-SHA256": patch.sha256,
        "Tessera-Model": manifest.name,
        "Tessera-Model-Version": manifest.version,
        "Tessera-Model-SHA256": manifest.sha256,
    }


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type=JSON, headers={"Vary": "Accept"})


def _accept(request: Request) -> str:
    return ",".join(request.headers.getlist("accept"))


def _current_id() -> str:
    return request_id.get() or ""
