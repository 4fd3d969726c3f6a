"""What administrators do to the running service. Never open without a key: see `app/api/access.py`."""

from fastapi import APIRouter, Request

from app.api.openapi import PROBLEM_CONTENT
from app.api.running import running_of
from app.api.schemas import ModelReference

router = APIRouter(prefix="/admin", tags=["admin"])


@router.post(
    "/reload",
    responses={
        409: {
            "description": "The reload is refused, and `detail` says why; the previous model keeps serving.",
            "content": PROBLEM_CONTENT,
        }
    },
)
async def reload(request: Request) -> ModelReference:
    """Serve the model bundle that is now in its folder, without a pause. SIGHUP does the same."""
    return ModelReference.of(await running_of(request.app).reload())
