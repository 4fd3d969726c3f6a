"""Many images a request, as a GPU wants them: end to end against the model's session alone, on either device.

A GPU's session is measured with its input on the device already and its outputs left there, which ONNX Runtime calls
I/O binding: what it does when nobody has to bring it images.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from app.inference.bundle import find_precision, load_bundle
from app.inference.session import Device
from app.pathology.manifest import GRAPH_INPUT, GRAPH_OUTPUTS, Precision
from benchmarks.serving.load import closed_loop, open_loop
from benchmarks.serving.processes import ServerFailed
from benchmarks.serving.servers import SERVERS, Launch, picked
from benchmarks.serving.uploads import patch, write_form, write_jpeg
from benchmarks.serving.visit import drain, started

IMAGES_A_REQUEST = 16
_CONNECTIONS = 8
_LEAST_REQUESTS = 10
"""Of the open loop, however slow the machine."""
_BATCHES = {"cpu": (1, 4), "cuda": (16, 32, 64)}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def batches(launch: Launch, folder: Path, seconds: float) -> dict[str, Any]:
    """Return images a second of forms of 16 JPEGs, those of the session alone, and the latency at half of the load."""
    device: Device = "cuda" if launch.device == "cuda" else "cpu"
    session = _session(launch.bundle, picked(launch.bundle, device), device)
    upload = write_form(folder, write_jpeg(folder, "patch", patch()), IMAGES_A_REQUEST)
    before = {batch: raw_images_per_second(session, device, batch, launch.cores, seconds) for batch in _BATCHES[device]}
    with started(SERVERS["tessera"], "serve", launch, "", upload) as (target, _):
        closed_loop(target, _CONNECTIONS, 2)
        drain(target)
        capacity = closed_loop(target, _CONNECTIONS, seconds)
        drain(target)
        rate = capacity.per_second / 2
        half = open_loop(target, rate, max(seconds, _LEAST_REQUESTS / rate))
    after = {batch: raw_images_per_second(session, device, batch, launch.cores, seconds) for batch in _BATCHES[device]}
    raw = {batch: (before[batch] + after[batch]) / 2 for batch in before}
    best = max(raw, key=raw.__getitem__)
    per_second = IMAGES_A_REQUEST * capacity.per_second
    return {
        "device": device,
        "images_a_request": IMAGES_A_REQUEST,
        "capacity": asdict(capacity),
        "images_per_second": per_second,
        "session_images_per_second": {str(batch): value for batch, value in raw.items()},
        "session_batch": best,
        "share": per_second / raw[best],
        "half_load": asdict(half),
    }


def raw_images_per_second(
    session: onnxruntime.InferenceSession, device: Device, batch: int, cores: int, seconds: float
) -> float:
    """Return what the session does with batches of `batch`: on a CPU in a thread for each core, on a GPU in one."""
    images = np.stack([patch()] * batch)
    run = _bound(session, device, images)
    threads = cores if device == "cpu" else 1
    for _ in range(3):
        run()
    counts = [0] * threads
    end = time.monotonic() + seconds

    def repeat(index: int) -> None:
        own = run if index == 0 else _bound(session, device, images)
        while time.monotonic() < end:
            own()
            counts[index] += 1

    begun = time.monotonic()
    workers = [threading.Thread(target=repeat, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rate = batch * sum(counts) / (time.monotonic() - begun)
    return rate if rate else math.nan


def _bound(session: onnxruntime.InferenceSession, device: Device, images: np.ndarray) -> Callable[[], None]:
    binding = session.io_binding()
    binding.bind_ortvalue_input(GRAPH_INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(images, device, 0))
    for name in GRAPH_OUTPUTS:
        binding.bind_output(name, device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def _session(bundle: Path, precision: Precision, device: Device) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    if device == "cuda":
        onnxruntime.preload_dlls()
    model = load_bundle(find_precision(bundle, precision)).model
    session = onnxruntime.InferenceSession(model, options, providers=[_PROVIDERS[device]])
    if session.get_providers()[0] != _PROVIDERS[device]:
        raise ServerFailed("CUDA cannot be used here: install requirements/cuda.txt on a machine with a GPU")
    return session
