"""PyTriton: Triton Inference Server before Python functions, one for each core.

`whole` answers each upload by itself, `batches` lets Triton collect up to four.
"""

import logging

import numpy as np
from patch_work import PORT, VARIANT, WORKERS, Model, answer_bytes, decode
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

_BATCH = 4


class Segment:
    """From images' bytes to the bytes of JSON."""

    def __init__(self) -> None:
        self.model = Model()

    @batch
    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Answer (N, 1) images' bytes."""
        results = self.model.run([decode(data) for data in image[:, 0]])
        return {"answer": np.array([[answer_bytes(*result)] for result in results], dtype=np.object_)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    batcher = DynamicBatcher(max_queue_delay_microseconds=2000) if VARIANT == "batches" else DynamicBatcher()
    config = TritonConfig(
        http_address="127.0.0.1", http_port=PORT, allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="segment",
            infer_func=[Segment() for _ in range(WORKERS)],
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=np.bytes_, shape=(1,))],
            config=ModelConfig(max_batch_size=_BATCH if VARIANT == "batches" else 1, batcher=batcher),
        )
        triton.serve()
