import pytest
from click.testing import CliRunner

from app import settings as settings_module
from app.cli import main
from app.settings import DEFAULT_BUNDLE, QUALITY_BUNDLE, Settings, available_cores, unknown_variables


def test_the_environment_sets_and_arguments_win(monkeypatch):
    monkeypatch.setenv("TESSERA_PORT", "9000")
    monkeypatch.setenv("TESSERA_MAX_BATCH_SIZE", "7")
    assert Settings().port == 9000
    assert Settings(port=1).port == 1
    assert Settings().max_batch_size == 7


def test_a_shipped_bundle_has_a_name_and_a_folder_of_that_name_is_never_taken_for_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESSERA_BUNDLE", "quality")
    assert Settings().bundle == QUALITY_BUNDLE
    (tmp_path / "quality").mkdir()
    assert Settings(bundle=str(tmp_path / "quality")).bundle == tmp_path / "quality"
    for name in ("quality", "./quality"):
        line = CliRunner().invoke(main, ["serve", "--bundle", name]).output.splitlines()[-1]
        assert "quality is a shipped bundle's name and a folder here: write the folder's whole path" in line
    monkeypatch.delenv("TESSERA_BUNDLE")
    assert Settings().bundle == DEFAULT_BUNDLE


def test_settings_cannot_change():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_lists_are_read_alike_from_the_environment_and_from_flags(monkeypatch):
    monkeypatch.setenv("TESSERA_SECTRA_HOSTS", " pacs.example , ,[::1]:9000,")
    monkeypatch.setenv("TESSERA_PUBLIC", "")
    settings = Settings(cors_origins="https://lis.example,https://two.example")
    assert settings.sectra_hosts == ("pacs.example", "[::1]:9000")
    assert settings.public == ()
    assert settings.cors_origins == ("https://lis.example", "https://two.example")


def test_more_files_than_places_is_a_contradiction():
    with pytest.raises(ValueError, match=r"--max-files \(3\) must not exceed --queue-capacity \(2\)"):
        Settings(max_files=3, queue_capacity=2)


def test_every_setting_is_a_flag_with_its_own_help():
    shown = CliRunner().invoke(main, ["serve", "--help"], terminal_width=300).output
    for name, field in Settings.model_fields.items():
        assert "--" + name.replace("_", "-") in shown
        assert field.description is not None
        assert field.description in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--port", "70000"], {}, "--port (TESSERA_PORT): Input should be less than or equal to 65535"),
        ([], {"TESSERA_PORT": "tcp://10.0.0.1:8000"}, "Kubernetes sets this for a service: enableServiceLinks: false"),
        ([], {"TESSERA_DEVICE": "tpu"}, "--device (TESSERA_DEVICE): Input should be 'auto', 'cpu' or 'cuda'"),
        ([], {"TESSERA_QUEUE_CAPACITY": "3"}, "Error: --max-files (64) must not exceed --queue-capacity (3)"),
        (
            ["--shutdown-grace", "inf"],
            {},
            "--shutdown-grace (TESSERA_SHUTDOWN_GRACE): Input should be a finite number",
        ),
        (
            [],
            {"TESSERA_REQUEST_TIMEOUT": "inf"},
            "--request-timeout (TESSERA_REQUEST_TIMEOUT): Input should be a finite number",
        ),
        (["--stall-timeout", "nan"], {}, "--stall-timeout (TESSERA_STALL_TIMEOUT): Input should be a finite number"),
        (["--device", "tpu"], {}, "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["--engine", "own"], {}, "Invalid value for '--engine': 'own' is not one of 'auto', 'shared'"),
        ([], {"TESSERA_ENGINE": "own"}, "--engine (TESSERA_ENGINE): Input should be 'auto' or 'shared'"),
    ],
)
def test_a_bad_setting_is_named_in_one_line(arguments, env, message):
    result = CliRunner().invoke(main, ["serve", *arguments], env=env)
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "affinity", "cores"),
    [("max 100000", 4, 4), ("200000 100000", 4, 2), ("50000 100000", 4, 1), ("900000 100000", 4, 4), ("", 3, 3)],
)
def test_cores_are_those_of_the_container(monkeypatch, tmp_path, content, affinity, cores):
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    monkeypatch.setattr(settings_module.os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(settings_module, "Path", lambda _: quota)
    assert available_cores() == cores


def test_a_misspelt_variable_is_noticed(monkeypatch):
    monkeypatch.setenv("TESSERA_PROT", "1")
    monkeypatch.setenv("TESSERA_PORT", "1")
    assert unknown_variables() == ["TESSERA_PROT"]
