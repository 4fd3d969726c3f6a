"""Plain FastAPI on uvicorn, a process for each core: what one writes first.

`inline` does the work on the event loop, which a process with nothing else to do can afford; `threads` does it in
Starlette's thread pool, so that the process goes on reading uploads.
"""

from fastapi import FastAPI, Request, Response
from patch_work import VARIANT, Model, segment
from starlette.concurrency import run_in_threadpool

app = FastAPI()
model = Model()


@app.post("/segment")
async def segment_patch(request: Request) -> Response:
    """Answer one image, sent as the body."""
    data = await request.body()
    content = segment(model, data) if VARIANT == "inline" else await run_in_threadpool(segment, model, data)
    return Response(content, media_type="application/json")
