"""What is measured of tessera alone: a patch of many windows, other uploads, and memory over many requests."""

import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from app.inference.bundle import find_precision, load_bundle
from app.inference.session import open_session
from app.pathology.geometry import Size
from app.pathology.tiling import pad_to_stride, plan_windows
from benchmarks.serving.load import Target, closed_loop, fixed_count
from benchmarks.serving.processes import Memory, ServerFailed, memory
from benchmarks.serving.roofline import Roofline
from benchmarks.serving.servers import SERVERS, Launch, picked
from benchmarks.serving.uploads import Upload, big_patch, patch, write_form, write_jpeg, write_png
from benchmarks.serving.visit import drain, post, started

_TESSERA = SERVERS["tessera"]
_SOAK_WARM_UP = 2000
_SOAK_PARTS = 10
_CONNECTIONS = 32


def big(launch: Launch, folder: Path, rounds: int) -> dict[str, float]:
    """Return how long a 4096 px patch takes alone, and the sum of its windows' inference times in one thread.

    The two are measured in turns. Times are of the clock: what is asked is how long somebody waits.
    """
    image = big_patch()
    upload, small = write_png(folder, "big", image), write_png(folder, "patch", patch())
    bundle = load_bundle(find_precision(launch.bundle, picked(launch.bundle)))
    manifest = bundle.manifest
    session = open_session(bundle.model, "cpu")
    windows = [
        pad_to_stride(image[window.read.slices], manifest.stride)[None]
        for window in plan_windows(Size.of(image), manifest.window_px, manifest.margin_px, manifest.stride)
    ]
    latencies, sums = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        for window in windows:
            session.run(window)
        sums.append(time.perf_counter() - begun)
        with started(_TESSERA, "serve", launch, "", small) as (target, _):
            begun = time.perf_counter()
            status, body = post(replace(target, body=upload.file))
            latencies.append(time.perf_counter() - begun)
        if status != 200 or len(json.loads(body)["classes"]) != len(manifest.classes):
            raise ServerFailed(f"tessera answered the large patch with status {status}")
    latency, windows_sum = statistics.median(latencies), statistics.median(sums)
    return {
        "windows": len(windows),
        "bytes": upload.file.stat().st_size,
        "latency_seconds": latency,
        "windows_seconds": windows_sum,
        "ratio": latency / windows_sum,
        "ratio_of_cores": latency / (windows_sum / launch.cores),
    }


def uploads(launch: Launch, folder: Path, seconds: float) -> dict[str, Any]:
    """Return the closed loop's images a second of other ways to send a patch, each with its own roofline."""
    image = patch()
    png, jpeg = write_png(folder, "patch", image), write_jpeg(folder, "patch", image)
    kinds = {
        "PNG": (png, png),
        "JPEG": (jpeg, jpeg),
        "PNG in a form": (png, write_form(folder, png, 1)),
        "JPEG, 16 in a form": (jpeg, write_form(folder, jpeg, 16)),
    }
    found: dict[str, Any] = {}
    for name, (single, upload) in kinds.items():
        roofline = Roofline(launch.bundle, picked(launch.bundle), single.file.read_bytes())
        with started(_TESSERA, "serve", launch, "", upload) as (target, _):
            connections = max(2, _CONNECTIONS // upload.images)
            closed_loop(target, connections, 1)
            drain(target)
            roofline.sample(10)
            loop = closed_loop(target, connections, seconds)
            roofline.sample(10)
        limit = roofline.result(launch.cores)
        per_second = upload.images * loop.per_second
        found[name] = {
            **asdict(loop),
            "images_per_second": per_second,
            "roofline": limit,
            "share": per_second / limit["per_second"],
        }
    return found


def soak(launch: Launch, upload: Upload, requests: int) -> dict[str, Any]:
    """Return the memory along `requests` requests, after a warm-up.

    Raises:
        ServerFailed: Not every one was answered.
    """
    with started(_TESSERA, "serve", launch, "", upload) as (target, _):
        _sent(target, min(requests, _SOAK_WARM_UP))
        along: list[tuple[int, Memory]] = [(0, memory())]
        part = max(1, requests // _SOAK_PARTS)
        for sent in range(part, requests + 1, part):
            _sent(target, part)
            along.append((sent, memory()))
    return {"along": [{"requests": count, **asdict(weight)} for count, weight in along]}


def _sent(target: Target, requests: int) -> None:
    good = fixed_count(target, _CONNECTIONS, requests)
    if good != requests:
        raise ServerFailed(f"tessera answered {good} of {requests} requests well")
