"""Ray Serve: a replica for each core.

`inline` does the work on a replica's event loop, `threads` beside it.
"""

import asyncio
import signal

import ray
from patch_work import PORT, VARIANT, WORKERS, Model, segment
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=32, ray_actor_options={"num_cpus": 1})
class Segment:
    """From an image's bytes, sent as the body, to JSON."""

    def __init__(self) -> None:
        self.model = Model()

    async def __call__(self, request: Request) -> Response:
        """Answer one image."""
        data = await request.body()
        if VARIANT == "inline":
            content = segment(self.model, data)
        else:
            content = await asyncio.to_thread(segment, self.model, data)
        return Response(content, media_type="application/json")


if __name__ == "__main__":
    # Ray's proxy and controller ask for no core of their own, so that the replicas may have them all.
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "access_log": False}, proxy_location="HeadOnly")
    serve.run(Segment.bind(), route_prefix="/segment")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
