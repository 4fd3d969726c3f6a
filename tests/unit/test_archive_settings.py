"""Settings and options of `tessera dicomweb`."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import archive, main
from app.settings import ArchiveSettings, unknown_variables

SEGMENT = ["dicomweb", "segment", "--url", "http://127.0.0.1:1", "--study", "1.2", "--series", "1.3"]
WATCH = ["dicomweb", "watch", "--url", "http://127.0.0.1:1"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_hosts_come_from_one_variable(monkeypatch):
    monkeypatch.setenv("TESSERA_DICOMWEB_HOSTS", "one.example, two.example,")
    assert ArchiveSettings().hosts == {"one.example", "two.example"}


def test_nothing_is_allowed_by_default():
    settings = ArchiveSettings()
    assert settings.hosts == frozenset()
    assert not settings.allow_http


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"USERNAME": "a"}, "come together"),
        ({"PASSWORD": "a"}, "come together"),
        ({"USERNAME": "a", "PASSWORD": "b", "TOKEN": "c"}, "not both"),
        ({"CA_BUNDLE": "/missing.pem"}, "no file of certificates"),
        ({"TIMEOUT": "0"}, "TESSERA_DICOMWEB_TIMEOUT"),
    ],
)
def test_settings_that_make_no_sense_are_named_and_secrets_are_not(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(f"TESSERA_DICOMWEB_{name}", value)
    result = run(*SEGMENT)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


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


@pytest.mark.parametrize("uid", ["", "1..2", "1.2/3", "a", "1" * 65])
def test_what_is_no_uid_is_refused_before_anything_is_sent(uid):
    result = run(*SEGMENT[:-1], uid)
    assert result.exit_code == 2
    assert "not a DICOM UID" in result.output


@pytest.mark.parametrize(("package", "extra"), [("wsidicom", "slides"), ("dicomweb_client", "slides")])
def test_a_missing_extra_is_named(monkeypatch, package, extra):
    monkeypatch.setattr(archive, "find_spec", lambda name: None if name == package else object())
    for command in (SEGMENT, WATCH):
        result = run(*command, "--allow-host", "127.0.0.1")
        assert result.exit_code == 1
        assert (
            result.output
            == f"Error: an archive needs the extra '{extra}': in tessera's folder, pip install '.[{extra}]'\n"
        )


def test_a_state_file_that_cannot_be_kept_is_said_at_the_start(tmp_path: Path):
    result = run(*WATCH, "--allow-host", "127.0.0.1", "--state", tmp_path / "missing" / "state.json")
    assert result.exit_code == 1
    assert "choose another --state" in result.output
