"""What operators and clients ask about the service itself: model, health, metrics."""

from collections.abc import Iterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder

from app.api.dependencies import ServiceDependency
from app.api.running import running_of
from app.api.schemas import Health, ModelCard, NotReady, Ready
from app.telemetry.merging import Snapshot

router = APIRouter(tags=["operations"])


@router.get("/model")
async def model(service: ServiceDependency) -> ModelCard:
    """Describe the model being served: classes and colours, scores, training data, device."""
    segmenter = service.segmenter
    known = segmenter.manifest.model_dump(include=set(ModelCard.model_fields))
    return ModelCard(**known, device=segmenter.device, provider=segmenter.provider)


@router.get("/health/live")
async def live() -> Health:
    """Report that the process is alive; if this does not answer, restart the process."""
    return Health(status="live")


@router.get("/health/ready", responses={200: {"model": Ready}, 503: {"model": NotReady}})
async def ready(request: Request) -> JSONResponse:
    """Report whether the service takes images now; send none while this answers 503, which says why."""
    reason = running_of(request.app).told_readiness()
    if reason is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": reason}, 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Expose the service's metrics to Prometheus."""
    taken = await running_of(request.app).everyones_metrics()
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(_Taken(taken)), headers={"Content-Type": content_type})


class _Taken(CollectorRegistry):
    """A snapshot, as the encoders want it."""

    def __init__(self, taken: Snapshot) -> None:
        super().__init__()
        self._taken = taken

    def collect(self) -> Iterator[Metric]:
        """Give what was taken."""
        yield from self._taken
