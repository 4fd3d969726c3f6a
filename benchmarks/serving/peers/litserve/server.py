"""LitServe: two workers and, where its variant says so, dynamic batches."""

from typing import Annotated, Any

import litserve as ls
import numpy as np
from fastapi import Body, Response
from patch_work import PORT, VARIANT, WORKERS, Model, answer_bytes, decode

_BATCH = 4


class Segment(ls.LitAPI):
    """From an image's bytes, sent as the body, to JSON."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model; called in each worker."""
        self.model = Model()

    def decode_request(self, request: Annotated[bytes, Body(media_type="image/png")]) -> np.ndarray:
        """Return the pixels."""
        return decode(request)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Leave images as they are: `Model.run` stacks them."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Leave results as they are: there is one for each image."""
        return output

    def predict(self, x: Any) -> Any:
        """Run one image, or a batch of them."""
        return self.model.run(x) if isinstance(x, list) else self.model.run([x])[0]

    def encode_response(self, output: tuple[np.ndarray, np.ndarray]) -> Response:
        """Return the answer."""
        return Response(answer_bytes(*output), media_type="application/json")


if __name__ == "__main__":
    batching = {"max_batch_size": _BATCH, "batch_timeout": 0.005} if VARIANT == "batches" else {}
    server = ls.LitServer(
        Segment(api_path="/segment", **batching), accelerator="cpu", workers_per_device=WORKERS, timeout=60
    )
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False, access_log=False)
