"""Metrics of a watcher, beside those of segmenting: whether it still looks, and what came of the series.

docs/metrics.md explains them.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge


class WatchMetrics:
    """A watcher's metrics.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.last_poll = Gauge(
            "tessera_watch_last_poll_timestamp_seconds",
            "When the archive last gave its log of changes.",
            registry=registry,
        )
        self.last_progress = Gauge(
            "tessera_watch_last_progress_timestamp_seconds",
            "When a change of the archive was last finished, or none was left to do; the next one is open since then.",
            registry=registry,
        )
        self.last_answer = Gauge(
            "tessera_watch_last_answer_timestamp_seconds", "When a result was last stored.", registry=registry
        )
        self.last_change = Gauge(
            "tessera_watch_last_change", "Number of the last change of the archive that is finished.", registry=registry
        )
        self.series = Counter(
            "tessera_watch_series", "Slide series that are finished, by outcome.", ["outcome"], registry=registry
        )
        self.failures = Counter(
            "tessera_watch_failures", "Failed tries, by kind of error.", ["error"], registry=registry
        )

    def show(self, last_change: int, last_progress: float) -> None:
        """Show how far the watcher is: the last change that is finished, and when there was progress (since 1970)."""
        self.last_change.set(last_change)
        self.last_progress.set(last_progress)
