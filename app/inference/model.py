"""The Segmenter on ONNX Runtime: a bundle, loaded and warmed up, behind a batcher."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeAlias

import numpy as np

from app.errors import InvalidBundle, ModelNotReady, OutOfMemory
from app.inference.batch import BatchLimits, batch_sizes
from app.inference.batcher import Batcher
from app.inference.bundle import Bundle, check_golden, find_precision, load_bundle, precisions_of
from app.inference.cores import Cores
from app.inference.result import WindowResult
from app.inference.segmenter import Device, DeviceChoice, ModelChoice
from app.inference.session import OnnxSession, open_session
from app.pathology.arrays import RgbBatch, RgbImage
from app.pathology.manifest import ModelManifest, Precision
from app.telemetry.metrics import SegmentationMetrics

_WARM_UP_SECONDS = 120.0
"""The warm-up runs no further form of batch after this time: whoever starts the service does not wait for ever."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Profile:
    """How a kind of device is used.

    Attributes:
        precision: The precision that it is fastest in.
        lanes: Batches that run at once; None for one on each core.
        batch_size: Windows in a batch, where nothing else is chosen.
        full_windows: A batch has no more pixels than this many windows of the model's largest size.
        first_seconds: How long the first batch of a size and shape may take, for which a runtime may load kernels and
            make plans. Readiness falls after `stall_seconds` all the same.
    """

    precision: Precision
    lanes: int | None
    batch_size: int
    full_windows: int
    first_seconds: float


_PROFILES: dict[Device, _Profile] = {
    # Batches of four windows are no faster than of two, and take more memory.
    "cpu": _Profile(precision="int8", lanes=None, batch_size=2, full_windows=1, first_seconds=0.0),
    # One batch computes while the next is copied; large ones keep it busy. `first_seconds` is a guess, not measured.
    "cuda": _Profile(precision="fp16", lanes=2, batch_size=32, full_windows=8, first_seconds=60.0),
}


class BatchedSegmenter:
    """A bundle on ONNX Runtime, behind a batcher.

    Args:
        manifest: The bundle's contract.
        session: Its graph, loaded.
        limits: How much it may run at once.
        cores: As `Batcher` has them.
    """

    def __init__(
        self, manifest: ModelManifest, session: OnnxSession, limits: BatchLimits, cores: Cores | None = None
    ) -> None:
        self._cores = cores
        self.manifest = manifest
        self.device: str = session.device
        self.provider = session.provider
        full_windows = max(1, min(limits.windows, limits.pixels // manifest.window_px**2))
        self.window_concurrency = 2 * limits.lanes * full_windows
        self._session = session
        self._smallest = np.zeros((1, manifest.stride, manifest.stride, 3), np.uint8)
        self._limits = limits
        self._batcher: Batcher | None = None

    @property
    def ready(self) -> bool:
        """Whether windows are answered now."""
        return self._batcher is not None and self._batcher.open

    @property
    def late(self) -> bool:
        """Whether a batch has run for longer than it should."""
        return self._batcher is not None and self._batcher.late

    def sharing(self, cores: Cores) -> "BatchedSegmenter":
        """Return the same, not started, for one of several processes that share the cores."""
        return BatchedSegmenter(self.manifest, self._session, replace(self._limits, lanes=cores.lanes), cores)

    async def start(self, metrics: SegmentationMetrics, stalled: Callable[[], None] = lambda: None) -> None:
        """Open the queue; the model was warmed up when it was loaded. See `Segmenter.start`."""
        metrics.device.labels(self.device, self.provider).set(1)
        metrics.model.labels(self.manifest.name, self.manifest.version, self.manifest.sha256).set(1)
        self._batcher = Batcher(self._session.run, self._limits, metrics, self._cores, stalled, self._works)

    async def segment(self, window: RgbImage) -> WindowResult:
        """Return what the model says of a window; see `Segmenter.segment`."""
        return await self._started().submit(window)

    def enqueue(self, window: RgbImage, queued_at: float) -> asyncio.Future[WindowResult]:
        """Return what the model will say of a window; see `Batcher.enqueue`."""
        return self._started().enqueue(window, queued_at)

    def give_back(self) -> None:
        """Have the runtime give back what memory it does not use; see `Segmenter.give_back`."""
        self._session.give_back(self._smallest)

    async def close(self) -> None:
        """Answer what is running, refuse what waits."""
        batcher, self._batcher = self._batcher, None
        if batcher is not None:
            await batcher.close()

    def _works(self) -> bool:
        """Whether the session still runs anything, or may again once there is memory: a GPU's faults are for good."""
        try:
            self._session.run(self._smallest)
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base of their own
            return isinstance(error, OutOfMemory)
        return True

    def _started(self) -> Batcher:
        if self._batcher is None:
            raise ModelNotReady("the model is not started")
        return self._batcher


def load_segmenter(choice: ModelChoice) -> BatchedSegmenter:
    """Load a bundle onto a device and warm it up with its golden pair.

    Args:
        choice: Which, and where.

    Raises:
        StartupError: The bundle or the device cannot be used; see `app/errors.py`.
    """
    bundle, session, seconds_per_pixel = _load(choice)
    manifest = bundle.manifest
    _log.info(
        "model loaded",
        extra={
            "model": manifest.name,
            "version": manifest.version,
            "sha256": manifest.sha256,
            "precision": manifest.precision,
            "device": session.device,
            "provider": session.provider,
        },
    )
    profile = _PROFILES[session.device]
    limits = BatchLimits(
        lanes=profile.lanes or choice.cores,
        windows=choice.max_batch_size or profile.batch_size,
        pixels=profile.full_windows * manifest.window_px**2,
        stall_seconds=choice.stall_seconds,
        seconds_per_pixel=seconds_per_pixel,
        first_seconds=profile.first_seconds,
    )
    if session.device == "cuda":
        limits = _warmed_up(session, bundle.golden_image[:1], manifest.stride, limits)
    return BatchedSegmenter(manifest, session, limits)


_Warm: TypeAlias = tuple[Bundle, OnnxSession, float]
"""A bundle, its session, and how many seconds that takes for a pixel."""


def _load(choice: ModelChoice) -> _Warm:
    """Return a bundle in the precision of choice, on its device, and warm."""
    if choice.precision != "auto":
        return _warm(load_bundle(find_precision(choice.bundle, choice.precision)), choice.device)
    whole = load_bundle(choice.bundle)  # so that its files are checked, also where a variant runs
    device: Device = "cpu" if choice.device == "cpu" else open_session(whole.model, choice.device).device
    suited = _PROFILES[device].precision
    if suited in precisions_of(choice.bundle) and whole.manifest.precision != suited:
        place = find_precision(choice.bundle, suited)
        try:
            return _warm(load_bundle(place), device)
        except InvalidBundle as error:  # what it was made on can do what this device cannot
            _log.warning("%s is not used on this device; running in %s: %s", suited, whole.manifest.precision, error)
    return _warm(whole, choice.device)


def _warm(bundle: Bundle, device: DeviceChoice) -> _Warm:
    session = open_session(bundle.model, device)
    check_golden(bundle, session)
    start = time.perf_counter()
    check_golden(bundle, session)  # once more: the first time a device also gets ready
    return bundle, session, (time.perf_counter() - start) / bundle.golden.class_maps.size


def _warmed_up(session: OnnxSession, image: RgbBatch, stride: int, limits: BatchLimits) -> BatchLimits:
    """Run the smallest window, then batches of (1, H, W, 3) `image` of each size; return the limits that hold then.

    A GPU gets ready for each form anew. For windows of another shape, and what there was no time or memory for, it does
    so when the first of them come.
    """
    warm: set[tuple[int, ...]] = set()
    ends = time.monotonic() + _WARM_UP_SECONDS
    sizes = batch_sizes(min(limits.windows, limits.pixels // image[..., 0].size))
    smallest = np.zeros((1, stride, stride, 3), np.uint8)
    for batch in chain([smallest], (np.repeat(image, size, axis=0) for size in sizes)):
        if time.monotonic() > ends:
            _log.warning("the device is slow to get ready: batches of %d windows were not tried before", len(batch))
            break
        try:
            session.run(batch)
        except OutOfMemory as error:  # as beside the model of before a reload, which soon ends
            _log.warning("there is no memory now for batches of %d windows: %s", len(batch), error)
            break
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no base of their own
            fewer = max(1, len(batch) // 2)
            _log.warning("batches of %d windows cannot be run, so they have at most %d: %s", len(batch), fewer, error)
            limits = replace(limits, windows=fewer)
            break
        warm.add(batch.shape)
    return replace(limits, warm=frozenset(warm))
