"""The pages of reference list what there is in the code: each name, and no other."""

import re

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from app.api.problems import _STATUSES, _slug
from app.imaging.plausibility import WARNING_CODES
from app.telemetry.metrics import Metrics
from app.telemetry.watching import WatchMetrics
from tests.conftest import ROOT
from tests.tables import rows_of

DOCS = ROOT / "docs"
OF_HTTP = {"not-found": 404, "method-not-allowed": 405, "internal-server-error": 500}
"""Problems that have no error of their own."""


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_page_of_the_api_lists_each_problem_with_its_status():
    listed = []
    for statuses, types, when in rows_of(DOCS / "api.md", "status | type | when"):
        kinds, numbers = named(types), [int(number) for number in statuses.split(", ")]
        each = numbers * len(kinds) if len(numbers) == 1 else numbers
        listed += zip(kinds, each, strict=True)
        assert when
    known = {_slug(kind.__name__): status for kind, status in _STATUSES.items()}
    assert len(dict(listed)) == len(listed)
    assert dict(listed) == known | OF_HTTP


def test_the_page_of_the_api_lists_each_warning():
    codes = [named(code) for code, _ in rows_of(DOCS / "api.md", "code | what")]
    assert codes == [[code] for code in WARNING_CODES]


def test_the_page_of_metrics_lists_those_of_the_service_and_of_the_watcher():
    listed = {
        tuple(named(name)): (kind, set(filter(None, labels.split(", "))))
        for name, kind, labels, meaning in rows_of(DOCS / "metrics.md", "metric | kind | labels | meaning")
        if meaning
    }
    registry = CollectorRegistry()
    attributes = (*vars(Metrics(registry)).values(), *vars(WatchMetrics(registry)).values())
    there = {}
    for metric in [one for one in attributes if isinstance(one, MetricWrapperBase)]:
        name = metric._name + ("_total" if metric._type == "counter" else "")
        there[(name,)] = (metric._type, set(metric._labelnames))
    assert len(there) > 15
    assert listed == there
