"""BentoML: service processes, as its command `bentoml serve` runs them.

`whole`: a process for each core does all of a patch. `batches`: processes that decode before processes that infer, with
BentoML's adaptive batching between them, which its documentation has as the pattern for uploads.
"""

from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType
from patch_work import VARIANT, WORKERS, Model, answer, decode

Upload = Annotated[Path, ContentType("image/png")]
_SETTINGS = {"workers": WORKERS, "traffic": {"timeout": 60}, "logging": {"access": {"enabled": False}}}
_BATCH = 4


@bentoml.service(**_SETTINGS)
class Infer:
    """From batches of pixels to answers."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=_BATCH, max_latency_ms=60_000)
    def infer(self, images: np.ndarray) -> list[dict]:
        """Answer (N, H, W, 3) uint8 images."""
        return [answer(*result) for result in self.model.run(list(images))]


if VARIANT == "batches":

    @bentoml.service(**_SETTINGS)
    class Segment:
        """From an image's bytes, sent as the body, to JSON."""

        infer = bentoml.depends(Infer)

        @bentoml.api(route="/segment")
        async def segment(self, image: Upload, /) -> dict:
            """Answer one image."""
            return (await self.infer.to_async.infer(decode(image.read_bytes())[None]))[0]

else:

    @bentoml.service(**_SETTINGS)
    class Segment:
        """From an image's bytes, sent as the body, to JSON."""

        def __init__(self) -> None:
            self.model = Model()

        @bentoml.api(route="/segment")
        def segment(self, image: Upload, /) -> dict:
            """Answer one image."""
            return answer(*self.model.run([decode(image.read_bytes())])[0])
