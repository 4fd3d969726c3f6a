"""What wakes somebody and what does not: the cases in `alerts/`, as promtool works them out with the real rules."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from app.api.middleware import CLIENT_LEFT_STATUS
from app.processes.children import Child
from tests.certificates import signed_by_itself
from tests.conftest import ROOT
from tests.programs import program
from tests.prometheus import ACCESS_FOLDER, CONFIGURATION, with_access
from tests.tables import rows_of

ALERTS = ROOT / "docker/alerts.yml"
[GROUP] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}
FILES = sorted((ROOT / "tests/contract/alerts").glob("*.yml"))
CASES: list[dict[str, Any]] = [
    case for file in FILES for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]
]
METRIC = r"\b[a-z_]+(?=\{)"


def check(*arguments: str | Path) -> None:
    """Run promtool, which has nothing to complain of."""
    command = [program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_sound() -> None:
    check("check", "rules", "--lint=all", "--lint-fatal", ALERTS)


@pytest.mark.parametrize("access", [False, True], ids=["open", "with TLS and keys"])
def test_the_configuration_is_sound_with_the_files_that_it_names(access: bool, tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    (tmp_path / "key").touch()
    (tmp_path / "ca.pem").write_bytes(signed_by_itself()[1])
    configuration = with_access(CONFIGURATION).replace(ACCESS_FOLDER, str(tmp_path)) if access else CONFIGURATION
    (tmp_path / "prometheus.yml").write_text(configuration, encoding="utf-8")
    check("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_case_fires_or_stays_silent_as_it_says(file: Path) -> None:
    check("test", "rules", file)


def in_no_moment(name: str) -> str:
    return f'count_over_time(ALERTS{{alertname="{name}", alertstate="firing"}}[4w])'


@pytest.mark.parametrize("name", RULES)
def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_stays_silent(name: str) -> None:
    """Silent although there is all that it asks for; a case with another metric would say nothing."""
    fires = [
        case
        for case in CASES
        for asked in case.get("alert_rule_test", [])
        if asked["alertname"] == name and asked.get("exp_alerts")
    ]
    silent = [
        case
        for case in CASES
        for asked in case.get("promql_expr_test", [])
        if asked["expr"] == in_no_moment(name) and not asked.get("exp_samples")
    ]
    wanted = set(re.findall(METRIC, RULES[name]["expr"]))
    assert wanted
    assert fires
    assert any(wanted <= {re.findall(METRIC, one["series"])[0] for one in case["input_series"]} for case in silent)


def test_every_case_is_of_the_real_rules_and_asks_something() -> None:
    for file in FILES:
        stated = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert [(file.parent / rules).resolve() for rules in stated["rule_files"]] == [ALERTS]
    assert all(case.get("alert_rule_test") or case.get("promql_expr_test") for case in CASES)
    named = {asked["alertname"] for case in CASES for asked in case.get("alert_rule_test", [])}
    asked = " ".join(asked["expr"] for case in CASES for asked in case.get("promql_expr_test", []))
    assert named | set(re.findall(r'alertname="(\w+)"', asked)) == RULES.keys()


def test_a_client_that_leaves_has_the_status_that_is_asked_for() -> None:
    assert f'status="{CLIENT_LEFT_STATUS}"' in RULES["TesseraClientsLeave"]["expr"]


def test_a_watcher_that_is_gone_is_remembered_for_less_long_than_prometheus_keeps_anything() -> None:
    found = re.search(r"\[(\d+)d\]", RULES["TesseraWatcherStuck"]["expr"])
    assert found
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    [retention_days] = re.findall(r"retention\.time=(\d+)d", compose)
    assert int(found[1]) < int(retention_days)


def test_the_line_that_a_killed_front_leaves_is_quoted() -> None:
    front = Child("front 0", Mock(), Mock(), ended=True, exit_code=-9)
    assert f'"{front.fault}, and all with it"' in RULES["TesseraRestarting"]["annotations"]["description"]


def test_a_service_that_cannot_be_scraped_is_not_said_to_take_no_images() -> None:
    """It may only ask for a key."""
    about_up = [name for name, rule in RULES.items() if re.search(r"\bup\{", rule["expr"])]
    assert about_up == ["TesseraNotScraped", "TesseraNoTarget"]
    assert "the key for /metrics" in RULES["TesseraNotScraped"]["annotations"]["description"]


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
