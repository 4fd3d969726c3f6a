"""Settings and options of `tessera dicomweb`."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry

from app.archive_settings import ArchiveSettings
from app.cli import archive, main
from app.segmentation.bookmark import Bookmark
from app.segmentation.slide import SlideOptions
from app.segmentation.workers import Workers
from app.settings import Settings, unknown_variables
from app.telemetry.metrics import Metrics

SEGMENT = ["dicomweb", "segment", "--url", "http://127.0.0.1:1", "--study", "1.2", "--series", "1.3"]
WATCH = ["dicomweb", "watch", "--url", "http://127.0.0.1:1"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_hosts_come_from_one_variable(monkeypatch):
    monkeypatch.setenv("TESSERA_DICOMWEB_HOSTS", "one.example, two.example,")
    assert ArchiveSettings().hosts == ("one.example", "two.example")


@pytest.mark.parametrize("hosts", ["127.0.0.1:8042", "[::1]:8042,localhost", "orthanc_1"])
def test_a_host_may_have_a_port_and_the_name_that_compose_gives_it(hosts):
    assert ",".join(ArchiveSettings(hosts=hosts).hosts) == hosts


@pytest.mark.parametrize("entry", ["https://archive.example", "archive.example/dicom-web", "*", "user@archive.example"])
def test_what_is_no_host_is_refused_by_the_flag_that_the_commands_have(monkeypatch, entry):
    by_flag = [run(*command, "--allow-host", entry) for command in (SEGMENT, WATCH)]
    monkeypatch.setenv("TESSERA_DICOMWEB_HOSTS", f"archive.example, {entry}")
    for result in (*by_flag, run(*SEGMENT), run(*WATCH)):
        assert result.exit_code == 2
        assert result.output == (
            f"Error: --allow-host (TESSERA_DICOMWEB_HOSTS): {entry} is neither host nor host:port,"
            " as in pathology.example or pathology.example:8443\n"
        )


def test_nothing_is_allowed_by_default():
    settings = ArchiveSettings()
    assert settings.hosts == ()
    assert not settings.allow_http


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"USERNAME": "a"}, "come together"),
        ({"PASSWORD": "a"}, "come together"),
        ({"USERNAME": "a", "PASSWORD": "b", "TOKEN": "c"}, "not both"),
        ({"CA_BUNDLE": "/missing.pem"}, "no file of certificates"),
        ({"CA_BUNDLE": __file__}, "no file of certificates in PEM"),
        ({"CA_BUNDLE": "/tmp"}, "no file of certificates in PEM"),
        ({"TIMEOUT": "0"}, "TESSERA_DICOMWEB_TIMEOUT"),
        ({"TOKEN": ""}, "TESSERA_DICOMWEB_TOKEN must be"),
        ({"TOKEN": "hush\n"}, "TESSERA_DICOMWEB_TOKEN must be"),
        ({"TOKEN": "hush€"}, "TESSERA_DICOMWEB_TOKEN must be"),
        ({"TOKEN": "hush hush"}, "TESSERA_DICOMWEB_TOKEN must be"),
        ({"USERNAME": "a:b", "PASSWORD": "hush"}, "TESSERA_DICOMWEB_USERNAME must not hold a colon"),
        ({"USERNAME": "a\n", "PASSWORD": "hush"}, "TESSERA_DICOMWEB_USERNAME must not hold"),
        ({"USERNAME": "a", "PASSWORD": "hush\n"}, "TESSERA_DICOMWEB_PASSWORD must not hold"),
    ],
)
def test_settings_that_make_no_sense_are_named_and_secrets_are_not(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(f"TESSERA_DICOMWEB_{name}", value)
    result = run(*SEGMENT)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert "hush" not in result.output


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("TESSERA_DICOMWEB_TOKEN", "hush")
    assert "hush" not in repr(ArchiveSettings())


def test_the_archives_variables_are_known_to_the_service(monkeypatch):
    monkeypatch.setenv("TESSERA_DICOMWEB_HOSTS", "one.example")
    monkeypatch.setenv("TESSERA_DICOMWEB_HOST", "one.example")
    assert unknown_variables() == ["TESSERA_DICOMWEB_HOST"]


def test_no_option_takes_a_secret_or_turns_verification_off():
    for command in (SEGMENT, WATCH):
        text = run(*command[:2], "--help").output
        for word in ("--token", "--password", "--user", "--insecure", "--no-verify"):
            assert word not in text


@pytest.mark.parametrize("value", ["nan", "inf", "0"])
@pytest.mark.parametrize("command", [[*SEGMENT, "--um-per-px"], [*WATCH, "--poll"]], ids=["um-per-px", "poll"])
def test_what_is_no_finite_number_above_zero_is_refused(command, value):
    result = run(*command, value)
    assert result.exit_code == 2
    assert f"Invalid value for '{command[-1]}'" in result.output


def test_a_poll_so_seldom_that_an_idle_watcher_would_look_stuck_is_refused():
    """Of which docker/alerts.yml would tell somebody in the night."""
    result = run(*WATCH, "--poll", 3600)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == "Error: Invalid value for '--poll': 3600.0 is not in the range 0<x<=600."


@pytest.mark.parametrize(
    ("variables", "status", "words"),
    [
        ({}, 1, "127.0.0.1 is not"),
        ({"TESSERA_DICOMWEB_USERNAME": "a"}, 2, "come together"),
        ({"TESSERA_DEVICE": "tpu"}, 2, "--device (TESSERA_DEVICE): Input should be"),
    ],
)
def test_where_the_log_is_json_so_is_the_line_that_says_why_the_watcher_ends(monkeypatch, variables, status, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    by_flag = run(*WATCH, "--log-format", "json")
    as_text = run(*WATCH)
    monkeypatch.setenv("TESSERA_LOG_FORMAT", "json")
    of_a_person = run(*SEGMENT)
    for result in (by_flag, run(*WATCH)):
        told = json.loads(result.output)
        assert (result.exit_code, told["level"]) == (status, "critical")
        assert words in told["message"]
    for result in (as_text, of_a_person):
        assert (result.exit_code, result.output) == (status, f"Error: {told['message']}\n")


@pytest.mark.parametrize("uid", ["", "1..2", "1.2/3", "a", "1" * 65])
def test_what_is_no_uid_is_refused_before_anything_is_sent(uid):
    result = run(*SEGMENT[:-1], uid)
    assert result.exit_code == 2
    assert "not a DICOM UID" in result.output


def test_a_report_is_off_unless_asked_for_and_is_not_for_a_file(tmp_path: Path):
    for command in (SEGMENT, WATCH):
        assert "--report" in run(*command[:2], "--help").output
    assert not SlideOptions(None, 1).has_report
    refused = run(*SEGMENT, "--report", "--out", tmp_path / "seg.dcm")
    assert refused.exit_code == 2
    assert "--out stores nothing" in refused.output


@pytest.mark.parametrize("package", ["wsidicom", "dicomweb_client", "pydicom", "highdicom"])
def test_the_extras_are_named_together_whichever_is_missing(monkeypatch, package):
    monkeypatch.setattr("app.libraries.find_spec", lambda name: None if name == package else object())
    for command in (SEGMENT, WATCH):
        result = run(*command, "--allow-host", "127.0.0.1")
        assert result.exit_code == 1
        assert result.output.startswith("Error: an archive needs the extra 'slides' and the extra 'dicom': ")
        assert result.output.count("\n") == 1


@pytest.mark.anyio
async def test_the_session_is_closed_before_the_threads_that_read_through_it_are_waited_for(monkeypatch):
    closed = []

    async def close(_: Workers) -> None:
        closed.append("workers")

    monkeypatch.setattr("app.segmentation.workers.Workers.close", close)
    given = archive.Given(Settings(device="cpu", cores=1), ArchiveSettings(hosts="127.0.0.1"), SlideOptions(None, 1))
    session = archive.archive_session("http://127.0.0.1:1", given.archive)
    monkeypatch.setattr(session, "close", lambda: closed.append("session"))

    async with archive.slide_segmentation("http://127.0.0.1:1", session, given, Metrics(CollectorRegistry())):
        pass
    assert closed == ["session", "workers"]


def test_the_state_of_another_archive_and_of_another_watcher_is_left_alone(tmp_path: Path):
    path = tmp_path / "state.json"
    with Bookmark(path, "http://127.0.0.1:2") as bookmark:
        bookmark.move(7)
        taken = run(*WATCH, "--allow-host", "127.0.0.1", "--state", path)
    other = run(*WATCH, "--allow-host", "127.0.0.1", "--state", path)
    for result, message in [(taken, "another watcher uses"), (other, "bookmark of another archive")]:
        assert result.exit_code == 1
        assert message in result.output
        assert result.output.count("\n") == 1


def test_a_state_file_that_cannot_be_kept_is_said_at_the_start(tmp_path: Path):
    result = run(*WATCH, "--allow-host", "127.0.0.1", "--state", tmp_path / "missing" / "state.json")
    assert result.exit_code == 1
    assert "choose another --state" in result.output
