"""What wakes somebody and what does not. There is no Prometheus here: rules of several kinds are worked out by hand."""

import re
from itertools import pairwise
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from app.api.middleware import CLIENT_LEFT_STATUS
from app.processes.children import Child
from tests.conftest import ROOT
from tests.tables import rows_of

[GROUP] = yaml.safe_load((ROOT / "docker/alerts.yml").read_text(encoding="utf-8"))["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}

SCRAPE_SECONDS = 15
SECONDS = {"m": 60, "h": 3600, "d": 86400}


def fires(name: str, value_at: dict[int, float]) -> bool:
    """Return whether an alert on changes fires in some moment of a day.

    Args:
        name: Which.
        value_at: What its metric is, from which second on.
    """
    found = re.fullmatch(r"changes\(\w+\{[^}]*\}\[(\d+)([mh])\]\) >= (\d+)", RULES[name]["expr"])
    assert found, name
    length = int(found[1]) * SECONDS[found[2]] // SCRAPE_SECONDS
    changed = [earlier != later for earlier, later in pairwise(scraped(value_at))]
    return any(sum(changed[at : at + length - 1]) >= int(found[3]) for at in range(len(changed)))


def scraped(value_at: dict[int, float]) -> list[float]:
    return [
        next(value for since, value in reversed(value_at.items()) if since <= second)
        for second in range(0, 86400, SCRAPE_SECONDS)
    ]


def most_spans(value_at: dict[int, float]) -> int:
    """Return in how many of six spans of five minutes in a row a counter grows at most; it may begin anew."""
    grown = [later > (0 if later < earlier else earlier) for earlier, later in pairwise(scraped(value_at))]
    length = 300 // SCRAPE_SECONDS
    spans = [any(grown[at : at + length]) for at in range(0, len(grown), length)]
    return max(sum(spans[at : at + 6]) for at in range(len(spans)))


def fires_by_share(
    name: str, requests_a_minute: float, failed_every: int, minutes: int, asked_minutes: int = 60
) -> bool:
    """Return whether an alert on a share of requests fires.

    Args:
        name: Which.
        requests_a_minute: To the routes that take images, evenly.
        failed_every: Each so-manieth of them fails, the first one too.
        minutes: For how long they do; afterwards none does.
        asked_minutes: For how long there are requests, of the hour that is looked at.
    """
    of_failed = r"tessera_requests_total\{[^}]*, status=[^}]*\}"
    found = re.fullmatch(
        rf"sum by \(instance\) \(rate\(({of_failed})\[(\d+)m\]\)\)\s+"
        r"/ sum by \(instance\) \(rate\(tessera_requests_total\{[^}]*\}\[\2m\]\)\)\s+> ([\d.]+)\s+"
        r"and sum by \(instance\) \(increase\(\1\[1h\]\)\)\s+>= (\d+)\n",
        RULES[name]["expr"],
    )
    assert found
    lasts_minutes = int(RULES[name]["for"].removesuffix("m"))
    begins = [60 * number / requests_a_minute for number in range(round(asked_minutes * requests_a_minute))]
    fails = [second for second in begins[::failed_every] if second < 60 * minutes]
    window, lasts = (60 * number // SCRAPE_SECONDS for number in (int(found[2]), lasts_minutes))
    firing = []
    for at in range(window, 3600 // SCRAPE_SECONDS):
        since, until = (at - window + 1) * SCRAPE_SECONDS, at * SCRAPE_SECONDS
        failed, asked = (sum(since < second <= until for second in seconds) for seconds in (fails, begins))
        in_the_hour = sum(0 < second <= until for second in fails)  # before this hour none did
        firing.append(failed > float(found[3]) * asked and in_the_hour >= int(found[4]))
    return any(all(firing[at : at + lasts + 1]) for at in range(len(firing) - lasts))


def every(minutes: int, times: int) -> dict[int, float]:
    """Return a value that changes so often."""
    return {0: 0.0} | {count * minutes * 60: float(count) for count in range(1, times + 1)}


def test_a_batch_that_gets_stuck_now_and_then_makes_a_ticket_and_wakes_nobody() -> None:
    assert not fires("TesseraRestarting", every(8, 100))
    assert fires("TesseraRestartingSlowly", every(8, 3))
    assert not fires("TesseraRestartingSlowly", every(240, 6))
    assert RULES["TesseraRestartingSlowly"]["labels"] == {"severity": "ticket"}


def test_a_service_that_starts_again_and_again_wakes_somebody() -> None:
    assert fires("TesseraRestarting", every(2, 3))
    assert RULES["TesseraRestarting"]["labels"] == {"severity": "page"}


@pytest.mark.parametrize("name", ["TesseraRestarting", "TesseraRestartingSlowly"])
def test_restarts_are_told_of_service_and_watcher(name: str) -> None:
    found = re.search(r'job=~"([^"]+)"', RULES[name]["expr"])
    assert found
    jobs = ("tessera", "tessera-watcher", "prometheus")
    assert [bool(re.fullmatch(found[1], job)) for job in jobs] == [True, True, False]
    assert "{{ $labels.job }}" in RULES[name]["annotations"]["summary"]


def test_one_image_that_fails_wakes_nobody_and_a_model_that_fails_does() -> None:
    expr = RULES["TesseraInferenceFails"]["expr"]
    found = re.fullmatch(r"sum_over_time\(\(increase\(\w+\{[^}]*\}\[5m\]\) > bool 0\)\[30m:5m\]\) >= (\d)\n", expr)
    assert found
    wakes = int(found[1])
    assert most_spans({0: 0.0, 600: 1.0}) < wakes
    assert most_spans({0: 0.0, 585: 20.0, 600: 40.0, 615: 64.0}) < wakes  # a list, in one request
    assert most_spans({0: 0.0, 600: 1.0, 900: 0.0, 1200: 1.0}) < wakes  # with a start in between
    assert most_spans(every(5, 3)) >= wakes


@pytest.mark.parametrize(
    ("requests_a_minute", "failed_every", "minutes"),
    [
        (1, 60, 60),  # one image alone
        (1 / 4, 1, 16),  # four of the few that come
        (600, 50, 60),  # 2 %
        (600, 1, 3),  # not for five minutes
    ],
)
def test_failures_of_an_idle_service_and_few_among_many_wake_nobody(requests_a_minute, failed_every, minutes) -> None:
    assert not fires_by_share("TesseraServerErrors", requests_a_minute, failed_every, minutes)


@pytest.mark.parametrize(
    ("requests_a_minute", "failed_every", "minutes"),
    [(2, 1, 15), (6, 3, 15), (600, 10, 15), (1, 2, 60), (1 / 4, 1, 60)],
)
def test_failures_that_go_on_wake_somebody(requests_a_minute, failed_every, minutes) -> None:
    assert fires_by_share("TesseraServerErrors", requests_a_minute, failed_every, minutes)
    assert RULES["TesseraServerErrors"]["labels"] == {"severity": "page"}


@pytest.mark.parametrize(
    ("requests_a_minute", "failed_every", "minutes"),
    [
        (1 / 15, 1, 60),  # four of the few that come
        (6, 6, 60),  # one in six
        (600, 1, 4),  # a run that is broken off
    ],
)
def test_clients_that_leave_now_and_then_are_no_ticket(requests_a_minute, failed_every, minutes) -> None:
    assert not fires_by_share("TesseraClientsLeave", requests_a_minute, failed_every, minutes)


def test_many_that_leave_at_once_and_silence_after_them_are_no_ticket() -> None:
    assert not fires_by_share("TesseraClientsLeave", 16, 1, 1, asked_minutes=1)


@pytest.mark.parametrize(("requests_a_minute", "failed_every", "minutes"), [(1 / 4, 1, 60), (6, 4, 60), (600, 1, 30)])
def test_clients_that_go_on_leaving_make_a_ticket(requests_a_minute, failed_every, minutes) -> None:
    assert fires_by_share("TesseraClientsLeave", requests_a_minute, failed_every, minutes)
    assert RULES["TesseraClientsLeave"]["labels"] == {"severity": "ticket"}
    assert 'status="499"' in RULES["TesseraClientsLeave"]["expr"]
    assert CLIENT_LEFT_STATUS == 499


def of_the_stuck() -> tuple[set[str], int]:
    """Return which labels the alert on a stuck watcher ignores, and for how many seconds it remembers progress."""
    found = re.fullmatch(
        r"time\(\) - max without \(([^)]*)\) \(\s+max_over_time\(\w+\{[^}]*\}\[(\d+)([hd])\]\)\s+\) > 1800\n",
        RULES["TesseraWatcherStuck"]["expr"],
    )
    assert found
    return set(found[1].split(", ")), int(found[2]) * SECONDS[found[3]]


def stuck_since(*progress: tuple[dict[str, str], float]) -> list[float]:
    """Return for how long each watcher has been stuck that the alert tells of.

    Args:
        progress: The labels that a target has or had, and how many seconds ago its last progress was.
    """
    ignored, kept_seconds = of_the_stuck()
    least: dict[frozenset[tuple[str, str]], float] = {}
    for labels, seconds in progress:
        if seconds < kept_seconds:
            left = frozenset(item for item in labels.items() if item[0] not in ignored)
            least[left] = min(seconds, least.get(left, seconds))
    return sorted(seconds for seconds in least.values() if seconds > 1800)


def test_a_watcher_that_moved_to_another_pod_is_not_stuck_and_one_that_is_stuck_is() -> None:
    before = {"job": "tessera-watcher", "instance": "10.1.0.7:9464", "pod": "watcher-a"}
    now = {"job": "tessera-watcher", "instance": "10.1.0.9:9464", "pod": "watcher-b"}
    assert stuck_since((before, 7200), (now, 20)) == []
    assert stuck_since((before, 7200)) == [7200]
    assert stuck_since((before, 9000), (now, 7200)) == [7200]
    of_two = ({**before, "archive": "west"}, 7200), ({**now, "archive": "east"}, 20)
    assert stuck_since(*of_two) == [7200]  # two watchers, told apart by a label


def test_a_watcher_that_is_gone_is_told_of_until_somebody_comes() -> None:
    """Friday evening to Monday, and a holiday: the alert has not said meanwhile that all is well."""
    _, kept_seconds = of_the_stuck()
    assert kept_seconds >= 5 * 86400
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    [retention_days] = re.findall(r"retention\.time=(\d+)d", compose)
    assert kept_seconds < int(retention_days) * 86400


def test_the_line_that_a_killed_front_leaves_is_quoted() -> None:
    front = Child("front 0", Mock(), Mock(), ended=True, exit_code=-9)
    assert f'"{front.fault}, and all with it"' in RULES["TesseraRestarting"]["annotations"]["description"]


def test_a_service_that_cannot_be_scraped_is_not_said_to_take_no_images() -> None:
    """It may only ask for a key."""
    about_up = [name for name, rule in RULES.items() if re.search(r"\bup\{", rule["expr"])]
    assert about_up == ["TesseraNotScraped", "TesseraNoTarget"]
    assert RULES["TesseraNoTarget"]["expr"] == 'absent(up{job="tessera"})'
    assert RULES["TesseraNotScraped"]["expr"] == 'up{job="tessera"} == 0'
    assert "the key for /metrics" in RULES["TesseraNotScraped"]["annotations"]["description"]
    assert RULES["TesseraNotReady"]["expr"] == 'tessera_ready{job="tessera"} == 0'


def test_what_would_end_in_an_outage_makes_a_ticket_before() -> None:
    found = re.fullmatch(
        r"(\w+)\{job=\"tessera\"\} - time\(\) < (\d+) \* 86400", RULES["TesseraCertificateExpires"]["expr"]
    )
    assert found
    assert int(found[2]) >= 14
    assert RULES["TesseraKeysFaulty"]["expr"] == 'tessera_keys_faulty_lines{job="tessera"} > 0'
    for name in ("TesseraCertificateExpires", "TesseraKeysFaulty"):
        assert RULES[name]["labels"] == {"severity": "ticket"}


def test_memory_of_a_gpu_is_spoken_of_where_its_lack_is_counted() -> None:
    speak = [name for name, rule in RULES.items() if "GPU" in rule["annotations"]["description"]]
    assert speak == ["TesseraRejecting"]
    assert "out-of-memory" in RULES["TesseraRejecting"]["expr"]


def test_alerts_speak_of_metrics_that_there_are() -> None:
    rows = rows_of(ROOT / "docs/metrics.md", "metric | kind | labels | meaning")
    known = {row[0].strip("`") for row in rows}
    texts = [" ".join((rule["expr"], rule["annotations"]["description"])) for rule in RULES.values()]
    named = set(re.findall(r"\btessera_\w+", " ".join(texts)))
    assert named
    assert {name.removesuffix("_bucket") for name in named} <= known


@pytest.mark.parametrize("file", ["docs/metrics.md", "docs/access.md", "docker-compose.yml", "docker/alerts.yml"])
def test_alerts_that_are_named_exist(file: str) -> None:
    named = set(re.findall(r"\bTessera[A-Z]\w+", (ROOT / file).read_text(encoding="utf-8")))
    assert named
    assert named <= RULES.keys()
