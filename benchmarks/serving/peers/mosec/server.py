"""Mosec: its Rust front before Python processes.

`whole`: a process for each core does all of a patch. `stages`: one process decodes, one for each core infers batches
and encodes. `shared`: a process for each core decodes, and likewise for the rest, more processes than cores.
"""

import os
import sys

from mosec import Server, Worker
from patch_work import PORT, VARIANT, WORKERS, Model, answer_bytes, decode, segment

_BATCH = 4


class _Raw(Worker):
    """Takes a body's bytes and returns an answer's, with no JSON between."""

    resp_mime_type = "application/json"

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data


class Whole(_Raw):
    """All of a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, data: bytes) -> bytes:
        """Answer one image."""
        return segment(self.model, data)


class Decode(_Raw):
    """The first stage: bytes to pixels."""

    def forward(self, data: bytes) -> object:
        """Decode one image."""
        return decode(data)


class Infer(_Raw):
    """The second stage: batches of pixels to answers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()

    def forward(self, data: list) -> list:
        """Answer a batch of images."""
        return [answer_bytes(*result) for result in self.model.run(data)]


if __name__ == "__main__":
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning"]
    server = Server()
    environment = [dict(os.environ) for _ in range(WORKERS)]
    if VARIANT == "whole":
        server.append_worker(Whole, num=WORKERS, timeout=60, route="/segment", env=environment)
    else:
        decoders = 1 if VARIANT == "stages" else WORKERS
        server.append_worker(Decode, num=decoders, timeout=60, route="/segment")
        server.append_worker(Infer, num=WORKERS, max_batch_size=_BATCH, max_wait_time=2, timeout=60, route="/segment")
    server.run()
