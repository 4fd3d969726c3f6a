"""POST /segment: labels and masks. POST /classify: labels alone."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from app.api import schemas
from app.api.dependencies import ServiceDependency, uploaded_images
from app.api.negotiation import choose
from app.api.openapi import PROBLEM_CONTENT, RETRY_AFTER, RETRY_AFTER_SOME, described
from app.api.problems import AnswerTooLarge, InvalidRequest, Problem, count_rejection, problem_of
from app.api.renderings import MEDIA_TYPES, Rendering, View, check_uploaded, paint, render
from app.api.running import Service
from app.api.stated import Stated, documented, stated_as
from app.api.uploads import FORM, PART, UPLOADED
from app.api.visit import visit_of
from app.errors import QueueFull, TesseraError
from app.pathology.classes import code
from app.segmentation.admission import Held
from app.segmentation.concurrently import all_of
from app.segmentation.patch import SegmentedPatch
from app.segmentation.reading import Upload
from app.telemetry.logging import request_id

JSON = "application/json"

router = APIRouter(tags=["patches"])
_T = TypeVar("_T")

_SMALL_ANSWER_BYTES = 2**18
"""Of pictures: such an answer is put together in some 0.3 ms."""
_MOST_PICTURE_BYTES = 2**28
"""In one answer, which holds them in memory: overlays of 64 patches of 1024 px have about 2**27."""

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
            **{media_type: {"schema": _FILE} for media_type in UPLOADED},
        },
    }
}
_HEADERS = {
    "Tessera-Labels": "The names of the labels, in the model's order, separated by commas; empty if there are none.",
    "Tessera-Code": "The letters of the labels, as in T+S; empty if there are none.",
    "Tessera-Scale": "What JSON has as `scale`: `name=value`, separated by semicolons, without null values.",
    "Tessera-Warnings": "The codes of the warnings, separated by commas; empty if there are none.",
    "Tessera-Image-SHA256": "SHA-256 digest of the upload, in hexadecimal.",
    "Tessera-Model": "The model's name.",
    "Tessera-Model-Version": "The model's version.",
    "Tessera-Model-SHA256": "SHA-256 digest of the model file, in hexadecimal.",
}
"""What answers other than JSON say beside their content."""

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "content": PROBLEM_CONTENT}
    for status, description in {
        400: "The request or its form cannot be understood.",
        406: "The upload cannot be answered in any of the media types in Accept.",
        408: "The body did not arrive in time.",
        413: "Too many bytes, files or pixels, in the request or its answer.",
        415: "The media type, image format or Content-Encoding is not accepted.",
        422: "The image is truncated or damaged, or its class map has too many regions for polygons.",
        429: "The service is full, or the caller has sent too many images; Retry-After says when to come back.",
        500: "The model failed on the image, or the service had another fault; its log has the cause.",
        501: "The service was installed without the packages that this request needs.",
        503: "The model is not ready, memory or connections are short, or keys, their issuer or the audit log cannot be"
        " used; `type` says which.",
        504: "The request was not answered before its deadline.",
    }.items()
}
_PROBLEMS[429]["headers"] = RETRY_AFTER
_PROBLEMS[503]["headers"] = RETRY_AFTER_SOME


@router.post(
    "/segment",
    response_model=schemas.Segmentation | schemas.Segmentations,
    responses={
        200: {
            "description": "The answer. Forms other than JSON give labels, scale, warnings, digests and model in"
            " `Tessera-` headers.",
            "content": {media_type: {"schema": _FILE} for media_type in MEDIA_TYPES},
            "headers": described(_HEADERS),
        },
        **_PROBLEMS,
    },
    openapi_extra={**_BODY, "parameters": documented(Rendering)},
)
async def segment(
    request: Request, service: ServiceDependency, how: Annotated[Rendering, Depends(stated_as(Rendering))]
) -> Response:
    """Segment one or several H&E patches.

    Send one image as the body, or several as `file` parts of a form. `Accept: application/json` (the default) gives
    labels, fractions and the mask of each. Each other media type answers exactly one image, with a picture (PNG),
    polygons for QuPath and the Digital Slide Archive (GeoJSON), polygons for the Digital Slide Archive alone, polygons
    for ASAP (XML), or, if the upload is DICOM, a DICOM object.
    """
    media_type = choose(_accept(request), (JSON, *MEDIA_TYPES))
    async with uploaded_images(request, service) as (images, held):
        if media_type != JSON:
            if len(images) != 1:
                raise InvalidRequest(f"{media_type} answers one image, not {len(images)}; ask for {JSON}")
            return await _rendered(service, images[0], media_type, how)

        held_bytes = 0

        async def answer(upload: Upload) -> schemas.Segmentation:
            nonlocal held_bytes
            manifest = service.segmenter.manifest
            async with service.patches.segmented(upload) as patch:
                pictures: dict[View, bytes] = {"mask": await service.patches.encode_mask(patch)}
                if how.view != "mask":
                    painting = partial(paint, how.view, patch, manifest, how.opacity)
                    pictures[how.view] = await service.workers.run("encode", painting)
                size_bytes = sum(map(len, pictures.values()))
                held_bytes += size_bytes
                if held_bytes > _MOST_PICTURE_BYTES:
                    raise AnswerTooLarge(
                        f"the pictures of this answer have more than {_MOST_PICTURE_BYTES} bytes;"
                        " send fewer images, or each by itself for image/png"
                    )
                build = partial(schemas.segmentation, patch, manifest, _current_id(), pictures)
                return await _put_together(service, build, size_bytes)

        uploads = [Upload(data, how.mpp) for data in images]
        if len(uploads) == 1:
            return await _json(service, await answer(uploads[0]), held_bytes)
        results = await _each(request, service, held, uploads, answer)
        return await _json(service, schemas.Segmentations(results=results), held_bytes)


@router.post(
    "/classify",
    response_model=schemas.Classification | schemas.Classifications,
    responses=_PROBLEMS,
    openapi_extra={**_BODY, "parameters": documented(Stated)},
)
async def classify(
    request: Request, service: ServiceDependency, stated: Annotated[Stated, Depends(stated_as(Stated))]
) -> Response:
    """Say which tissues one or several H&E patches contain, without masks. Send them as for `/segment`."""
    choose(_accept(request), (JSON,))
    async with uploaded_images(request, service) as (images, held):

        async def answer(upload: Upload) -> schemas.Classification:
            async with service.patches.segmented(upload) as patch:
                return schemas.classification(patch, service.segmenter.manifest, _current_id())

        uploads = [Upload(data, stated.mpp) for data in images]
        if len(uploads) == 1:
            return await _json(service, await answer(uploads[0]))
        results = await _each(request, service, held, uploads, answer)
        return await _json(service, schemas.Classifications(results=results))


async def _each(
    request: Request, service: Service, held: Held, uploads: list[Upload], answer: Callable[[Upload], Awaitable[_T]]
) -> list[_T | Problem]:
    """Answer each image, in order; one that cannot be answered gets its problem and spares the others.

    All at once; those for whose pixels there is no place beside the others' come after them, in rounds, until a round
    finds a place for none.
    """
    visit = visit_of(request)

    def refused(index: int, error: TesseraError) -> Problem:
        count_rejection(error, service.metrics)
        visit.refused(index, error)
        return problem_of(error)

    async def one(index: int) -> _T | Problem | QueueFull:
        try:
            return await answer(uploads[index])
        except AnswerTooLarge:  # whichever image is the last one too many
            raise
        except QueueFull as error:
            return error.with_traceback(None)  # whose frames hold the image
        except TesseraError as error:
            return refused(index, error)

    answers: dict[int, _T | Problem | QueueFull] = {}
    waiting = list(range(len(uploads)))
    while True:
        answers |= zip(waiting, await all_of(map(one, waiting)), strict=True)
        without_place = [index for index in waiting if isinstance(answers[index], QueueFull)]
        if len(without_place) == len(waiting):
            break
        waiting = without_place
    held.undone += len(without_place)
    return [
        refused(index, found) if isinstance(found, QueueFull) else found for index, found in sorted(answers.items())
    ]


async def _rendered(service: Service, data: bytes, media_type: str, how: Rendering) -> Response:
    check_uploaded(media_type, data)
    async with service.patches.segmented(Upload(data, how.mpp)) as patch:
        content = await render(service, media_type, data, patch, how)
        return Response(content, media_type=media_type, headers={**_headers(service, patch), "Vary": "Accept"})


def _headers(service: Service, patch: SegmentedPatch) -> dict[str, str]:
    manifest = service.segmenter.manifest
    return {
        "Tessera-Labels": ", ".join(tissue.name for tissue in patch.labels),
        "Tessera-Code": code(patch.labels),
        "Tessera-Scale": "; ".join(f"{name}={value}" for name, value in schemas.scale(patch) if value is not None),
        "Tessera-Warnings": ", ".join(warning.code for warning in patch.warnings),
        "Tessera-Image-SHA256": patch.sha256,
        "Tessera-Model": manifest.name,
        "Tessera-Model-Version": manifest.version,
        "Tessera-Model-SHA256": manifest.sha256,
    }


async def _json(service: Service, body: BaseModel, picture_bytes: int = 0) -> Response:
    write = body.__pydantic_serializer__.to_json  # bytes, where the model's own method makes text
    content = await _put_together(service, partial(write, body), picture_bytes)
    return Response(content, media_type=JSON, headers={"Vary": "Accept"})


async def _put_together(service: Service, work: Callable[[], _T], picture_bytes: int) -> _T:
    """Return what `work` makes of pictures of so many bytes: at once where they are few, else in a worker thread."""
    return work() if picture_bytes <= _SMALL_ANSWER_BYTES else await service.workers.run(None, work)


def _accept(request: Request) -> str:
    return ",".join(request.headers.getlist("accept"))


def _current_id() -> str:
    return request_id.get() or ""
