"""`/sectra/hook`: Sectra's image-analysis interface, as its published SDK has it. Off unless hosts are allowed.

Sectra's server calls these routes, and the SDK gives it no secret to show, so only its network should reach them. The
answers are those of the SDK's examples: the stored result to an order, `[]` to a cancellation, `{}` to a deletion, and
for what cannot be done a status and `error`, one line for the user, here as part of a problem document.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError
from sectra_client.schemas import CancelInvocation, CreateInvocation, DeleteInvocation, Invocation

from app.api.dependencies import Service, ServiceDependency
from app.api.problems import MEDIA_TYPE, InvalidRequest, UploadTooLarge, count_rejection, problem_of
from app.errors import QueueFull, TesseraError
from app.segmentation.sectra import SectraOrders
from app.slides.sectra_callback import API_VERSION

_MOST_BODY_BYTES = 2**20
"""An area drawn by hand has some thousand points of 50 bytes."""
_INVOCATION: TypeAdapter[Any] = TypeAdapter(Invocation)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "description": "An invocation of Sectra's SDK."}}
        },
    }
}

router = APIRouter(prefix="/sectra/hook", tags=["sectra"])


async def _orders_of(request: Request, _service: ServiceDependency) -> SectraOrders:
    orders: SectraOrders = request.app.state.sectra
    return orders


_Orders = Annotated[SectraOrders, Depends(_orders_of)]


@router.get("")
async def register(request: Request, orders: _Orders) -> JSONResponse:
    """Say what Sectra's configuration page fills in, for the address that it was given."""
    return _answer(orders, orders.registration(str(request.url.replace(query="", fragment=""))))


@router.get("/info")
async def info(orders: _Orders) -> JSONResponse:
    """Say which versions of the interface and of this program answer."""
    return _answer(orders, {"apiVersion": API_VERSION, "softwareVersion": orders.software_version})


@router.post("", openapi_extra=_BODY)
async def invoke(request: Request, service: ServiceDependency, orders: _Orders) -> JSONResponse:
    """Take an order, a cancellation or a deletion of Sectra's."""
    try:
        return _answer(orders, await _carry_out(orders, await _read_invocation(request)))
    except TesseraError as error:
        return _refusal(orders, service, error)


async def _read_invocation(request: Request) -> Any:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY_BYTES:
            raise UploadTooLarge(f"the body has more than {_MOST_BODY_BYTES} bytes")
    try:
        return _INVOCATION.validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = " ".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"not an invocation of Sectra's SDK: {where}: {first['msg']}") from None


async def _carry_out(orders: SectraOrders, invocation: Any) -> dict[str, Any] | list[Any]:
    match invocation:
        case CreateInvocation():
            return await orders.create(invocation)
        case CancelInvocation():
            orders.cancel(invocation.cancellationToken)
            return []
        case DeleteInvocation():
            return {}
        case _:
            raise InvalidRequest(f"{invocation.action.value} is not taken; delete the result and order it again")


def _answer(orders: SectraOrders, content: dict[str, Any] | list[Any]) -> JSONResponse:
    return JSONResponse(content, headers=_versions(orders))


def _refusal(orders: SectraOrders, service: Service, error: TesseraError) -> JSONResponse:
    count_rejection(error, service.metrics)
    problem = problem_of(error)
    retry = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, QueueFull) else {}
    content = {**problem.model_dump(), "error": problem.detail}
    return JSONResponse(content, problem.status, {**_versions(orders), **retry}, MEDIA_TYPE)


def _versions(orders: SectraOrders) -> dict[str, str]:
    return {"X-Sectra-ApiVersion": API_VERSION, "X-Sectra-SoftwareVersion": orders.software_version}
