"""Every metric of the service, and which of them segmenting elsewhere counts too. docs/metrics.md explains them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

Stage = Literal["wait", "decode", "queue", "infer", "encode"]

_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class SegmentationMetrics:
    """What segmenting counts, wherever that happens.

    Args:
        registry: Where they are registered; a new one for each process, so that two can live in one.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.stage_duration = Histogram(
            "tessera_stage_duration_seconds",
            "Time in one stage: wait, decode or encode of an image, queue of a window, infer of a batch.",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "tessera_batch_size", "Windows in a batch.", buckets=_BATCH_BUCKETS, registry=registry
        )
        self.queue_depth = Gauge("tessera_queue_depth", "Windows waiting for a lane.", registry=registry)
        self.images = Counter("tessera_images", "Images segmented.", registry=registry)
        self.warnings = Counter(
            "tessera_warnings", "Warnings given for segmented images, by code.", ["code"], registry=registry
        )
        self.predicted_pixels = Counter(
            "tessera_predicted_pixels", "Pixels predicted, by class.", ["class"], registry=registry
        )
        self.device = Gauge(
            "tessera_device_info",
            "The device in use, as the runtime's session reports it.",
            ["device", "provider"],
            registry=registry,
        )
        self.model = Gauge(
            "tessera_model_info", "The model being served.", ["name", "version", "sha256"], registry=registry
        )

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Observe how long the block takes as one duration of `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stage_duration.labels(stage).observe(time.perf_counter() - start)


class Metrics(SegmentationMetrics):
    """The service's metrics: those of segmenting, and what it counts of requests.

    Args:
        registry: Where they are registered; a new one for each service, so that two can live in one process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self.requests = Counter("tessera_requests", "Finished HTTP requests.", ["route", "status"], registry=registry)
        self.request_duration = Histogram(
            "tessera_request_duration_seconds",
            "Time from the end of a request's headers until the last byte of its answer is in the connection's buffer.",
            ["route"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        self.images_in_flight = Gauge(
            "tessera_images_in_flight", "Images taken in and not yet answered.", registry=registry
        )
        self.pixels_in_flight = Gauge(
            "tessera_pixels_in_flight",
            "Pixels of the images taken in and not yet answered, as far as their sizes are known.",
            registry=registry,
        )
        self.rejections = Counter(
            "tessera_rejections", "Images and requests not served, by reason.", ["reason"], registry=registry
        )
        self.ready = Gauge("tessera_ready", "1 while the service takes images.", registry=registry)
        self.keys_faulty_lines = Gauge(
            "tessera_keys_faulty_lines",
            "Lines of the file of keys that do not count; with one of them, no service starts.",
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "tessera_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is served expires.",
            registry=None,  # without TLS there is no such moment
        )

    def show_certificate(self, expires_at_seconds: float) -> None:
        """Report from now on when the certificate that is served expires."""
        self.certificate_expiry.set(expires_at_seconds)
        self.registry.register(self.certificate_expiry)
