"""Several processes' metrics as those of one service. Each keeps its own; they meet when somebody asks."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Metric

Snapshot: TypeAlias = list[Metric]
"""What one process counts at a moment; it can be sent to another."""

_LEAST = frozenset(
    {
        "tessera_ready",
        "tessera_tls_certificate_expiry_timestamp_seconds",
        "process_start_time_seconds",
        "process_max_fds",
    }
)
"""Not sums: ready when all are, started when the first was, and the limit is each process's own."""
_MOST = frozenset({"tessera_device_info", "tessera_model_info", "tessera_keys_faulty_lines", "process_open_fds"})
"""1 wherever it is said; each process reads the same file of keys; and has a limit of its own, which is reached first
where most are open."""


def snapshot(registry: CollectorRegistry) -> Snapshot:
    """Return what `registry` counts now."""
    return list(registry.collect())


def lasting(taken: Snapshot) -> Snapshot:
    """Return of a process's last metrics what still holds when it is gone: what it counted."""
    return [family for family in taken if family.type in ("counter", "histogram")]


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the metrics of all processes together: sums, but for the few gauges that no sum makes sense of.

    A series' `_created` time is that of the first process that had it.
    """
    families: dict[str, list[Metric]] = defaultdict(list)
    for taken in snapshots:
        for family in taken:
            families[family.name].append(family)
    return [_merged(same) for same in families.values()]


def _merged(families: Sequence[Metric]) -> Metric:
    first = families[0]
    values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
    for family in families:
        for sample in family.samples:
            values[sample.name, tuple(sample.labels.items())].append(sample.value)
    together = Metric(first.name, first.documentation, first.type, first.unit)
    for (name, labels), found in values.items():
        together.add_sample(name, dict(labels), _rule(first, name)(found))
    return together


def _rule(family: Metric, sample_name: str) -> Callable[[Iterable[float]], float]:
    if family.name in _LEAST or sample_name.endswith("_created"):
        return min
    return max if family.name in _MOST else sum
