"""`/sectra/hook`: Sectra's image-analysis interface, as its published SDK has it. Off unless hosts are allowed.

Sectra's server calls these routes, and the SDK gives it no secret to show, so only its network should reach them. The
answers are those of the SDK's examples: the stored result to an order, `[]` to a cancellation, `{}` to a deletion, and
for what cannot be done a status and `error`, one line for the user, here as part of a problem document.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from sectra_client.schemas import CancelInvocation, CreateInvocation

from app.api.dependencies import ServiceDependency, while_connected
from app.api.openapi import PROBLEM_CONTENT, RETRY_AFTER, RETRY_AFTER_SOME
from app.api.problems import MEDIA_TYPE, InvalidRequest, RequestTimeout, UploadTooLarge, refuse
from app.api.running import Service, running_of
from app.errors import DeadlineExceeded, ModelNotReady, TesseraError
from app.segmentation.deadline import answered_within
from app.segmentation.sectra.orders import SectraOrders
from app.slides.sectra_callback import API_VERSION
from app.software import software_version

_MOST_ORDER_BYTES = 2**20
"""Areas drawn by hand have some thousand points of 50 bytes. Only a deletion has more: it holds the stored result."""
_VERSIONS = {"X-Sectra-ApiVersion": API_VERSION, "X-Sectra-SoftwareVersion": software_version()}
_M = TypeVar("_M", bound=BaseModel)


class _Invocation(BaseModel):
    action: str


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "description": "An invocation as Sectra's SDK has it."}}
        },
    }
}

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "description": "One line for the user; not in a refused key or token."}},
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"allOf": [PROBLEM_CONTENT[MEDIA_TYPE]["schema"], _ERROR]}}},
    }
    for status, description in {
        400: "Not an invocation as Sectra's SDK has it, or not one that is taken.",
        403: "The call-back is not allowed, or the key or token, where the service asks for one.",
        408: "The body did not arrive in time.",
        409: "The user cancelled the order.",
        413: "The body is too long, or the order has too many areas, or too large ones.",
        422: "The slide gives no pixels, an area lies outside it, or its tissue falls into too many regions.",
        429: "The service is full; Retry-After says when to come back.",
        500: "The model failed on the slide, or the service had another fault; its log has the cause.",
        502: "The call-back cannot be reached, does not accept the token, or refuses what was asked.",
        503: "The service cannot answer now, and `type` says why.",
        504: "The order was not carried out before its deadline.",
    }.items()
}
_PROBLEMS[429]["headers"] = RETRY_AFTER
_PROBLEMS[503]["headers"] = RETRY_AFTER_SOME

router = APIRouter(prefix="/sectra/hook", tags=["sectra"])


async def _orders_of(request: Request, _service: ServiceDependency) -> SectraOrders:
    orders = running_of(request.app).sectra
    if orders is None:
        raise ModelNotReady("orders are not taken yet; see /health/ready")
    return orders


_Orders = Annotated[SectraOrders, Depends(_orders_of)]


@router.get("")
async def register(request: Request, orders: _Orders) -> JSONResponse:
    """Return the registration for Sectra's configuration page, with the address at which it was asked for."""
    return _answer(orders.registration(str(request.url.replace(query="", fragment=""))))


@router.get("/info")
async def info(_orders: _Orders) -> JSONResponse:
    """Return the versions of the interface and of this program."""
    return _answer({"apiVersion": API_VERSION, "softwareVersion": software_version()})


@router.post("", responses=_PROBLEMS, openapi_extra=_BODY)
async def invoke(request: Request, service: ServiceDependency, orders: _Orders) -> Response:
    """Take an order, a cancellation or a deletion from Sectra."""
    seconds = service.request_timeout_seconds
    is_read = False
    try:
        async with answered_within(seconds, "order a smaller area, or try later"):
            async with _body(request, service) as body:
                invocation = _read(body)
            is_read = True
            async with while_connected(request):
                return _answer(await _carry_out(orders, invocation))
    except TesseraError as error:
        came_late = isinstance(error, DeadlineExceeded) and not is_read
        told = RequestTimeout(f"the body did not come within {seconds:g} s") if came_late else error
        refusal = refuse(request.scope, told, service.metrics, {"error": str(told)})
        refusal.headers.update(_VERSIONS)
        return refusal


@asynccontextmanager
async def _body(request: Request, service: Service) -> AsyncIterator[bytes]:
    """Give the body. A long one needs a place in the service; a short one none: it may cancel what fills the service.

    Raises:
        UploadTooLarge: It is longer than any upload may be.
        QueueFull: It is long, and the service has no place for it.
    """
    body = bytearray()
    async with AsyncExitStack() as held:
        async for chunk in request.stream():
            if len(body) <= _MOST_ORDER_BYTES < len(body) + len(chunk):
                held.enter_context(service.admission.admit(1))
            body += chunk
            if len(body) > service.limits.max_bytes:
                raise UploadTooLarge(f"the body has more than {service.limits.max_bytes} bytes")
        yield bytes(body)


def _read(body: bytes) -> CreateInvocation | CancelInvocation | None:
    """Return what is to be done; for a deletion nothing is, and what was deleted is not looked at."""
    action = _as(_Invocation, body).action
    if action == "delete":
        return None
    if len(body) > _MOST_ORDER_BYTES:
        raise UploadTooLarge(f"the body has more than {_MOST_ORDER_BYTES} bytes; order fewer areas, or simpler ones")
    if action == "create":
        return _as(CreateInvocation, body)
    if action == "cancel":
        return _as(CancelInvocation, body)
    if action == "modify":
        raise InvalidRequest("modify is not taken; delete the result and order it again")
    raise InvalidRequest("this action is not taken; order (create) on a slide, cancel an order or delete a result")


def _as(kind: type[_M], body: bytes) -> _M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:  # its message holds what was sent; a place in the schema is none of that
        place = error.errors(include_input=False, include_url=False)[0]["loc"]
        where = " ".join(str(part) for part in place) or "the body as a whole"
        raise InvalidRequest(f"not an invocation as Sectra's SDK has it; wrong or missing: {where}") from None


async def _carry_out(
    orders: SectraOrders, invocation: CreateInvocation | CancelInvocation | None
) -> dict[str, Any] | list[Any]:
    if isinstance(invocation, CreateInvocation):
        return await orders.create(invocation)
    if isinstance(invocation, CancelInvocation):
        orders.cancel(invocation.cancellationToken)
        return []
    return {}


def _answer(content: dict[str, Any] | list[Any]) -> JSONResponse:
    return JSONResponse(content, headers=_VERSIONS)
