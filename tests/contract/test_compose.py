"""What `docker-compose.yml` promises of every service, and what it offers to be uncommented."""

import re
import stat
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from app.inference.cores import Cores
from app.processes.layout import layout_of
from app.settings import Settings
from tests.conftest import ROOT
from tests.prometheus import CONFIGURATION, with_access

TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]

MODEL = {"TESSERA_BUNDLE"}
ACCESS = {"TESSERA_KEYS_FILE", "TESSERA_TLS_CERT", "TESSERA_TLS_KEY", "TESSERA_AUDIT_LOG"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_as_hardened_as_tessera_itself(name: str) -> None:
    service, tessera = SERVICES[name], SERVICES["tessera"]
    for what in ("read_only", "cap_drop", "security_opt", "restart", "logging"):
        assert service[what] == tessera[what], what
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
    assert {"mem_limit", "pids_limit"} <= service.keys()
    for port in service.get("ports", []):
        assert port.startswith(("127.0.0.1:", "${PACS_DICOM_ADDRESS:-127.0.0.1}:"))
    for variable, value in service.get("environment", {}).items():
        assert "PASSWORD" not in variable or re.fullmatch(r"\$\{PACS_[A-Z]+_PASSWORD:-\}", value)


def test_what_tells_that_the_service_does_not_start_does_not_wait_for_it() -> None:
    assert "depends_on" not in SERVICES["prometheus"]


@pytest.mark.parametrize("wanted", [MODEL, ACCESS, MODEL | ACCESS], ids=["model", "access", "both"])
def test_what_is_offered_can_be_uncommented_alone_and_together(wanted: set[str]) -> None:
    folders = {PurePosixPath(path).parts[1] for variable, path in offered() if variable in wanted}
    lines = []
    for line in TEXT.splitlines():
        bare = re.sub(r"^( *)# ", r"\1", line)
        is_wanted = bare.strip() in {"environment:", "volumes:"} and bare != line
        is_wanted |= any(bare.strip().startswith(f"{variable}:") for variable in wanted)
        is_wanted |= any(bare.strip().startswith(f"- ./{folder}:/{folder}") for folder in folders)
        lines.append(bare if is_wanted else line)
    tessera = yaml.safe_load("\n".join(lines))["services"]["tessera"]
    assert tessera["environment"].keys() == wanted
    assert {volume.split(":")[1] for volume in tessera["volumes"]} == {f"/{folder}" for folder in folders}


def test_all_that_is_offered_is_a_setting_and_the_whole_is_offered_in_one_piece() -> None:
    names = {variable for variable, _ in offered()}
    assert names == MODEL | ACCESS
    assert {name.removeprefix("TESSERA_").lower() for name in names} <= Settings.model_fields.keys()
    block = re.findall(r"^    # (.*)$", TEXT[: TEXT.index("  prometheus:")], re.MULTILINE)
    for key in ("environment:", "volumes:"):
        assert block.count(key) == 1, f"YAML takes no second {key}"
    whole = yaml.safe_load("\n".join(block[block.index("environment:") :]))
    assert whole["environment"].keys() == names
    assert len(whole["volumes"]) == 3


def test_prometheus_finds_what_it_is_offered_for_a_service_with_tls_and_keys() -> None:
    """The files that its configuration names in its comments lie in the folder that the compose file mounts, too."""
    bare = re.sub(r"^( *)# (?=- \./\w+:/etc/prometheus/)", r"\1", TEXT, flags=re.MULTILINE)
    volumes = yaml.safe_load(bare)["services"]["prometheus"]["volumes"]
    folders = [PurePosixPath(volume.split(":")[1]) for volume in volumes]
    configuration = yaml.safe_load(with_access(CONFIGURATION))
    [job] = [job for job in configuration["scrape_configs"] if job["job_name"] == "tessera"]
    assert job["scheme"] == "https"
    assert job["tls_config"]["server_name"]
    for file in (job["tls_config"]["ca_file"], job["authorization"]["credentials_file"]):
        assert PurePosixPath(file).parent in folders


def test_the_file_of_passwords_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    """As the page makes it."""
    text = (ROOT / "docs/integrations.md").read_text(encoding="utf-8")
    commands = re.findall(r"^.*>> \.env.*$", text, re.MULTILINE)
    script = "\n".join(["umask 022", *commands])
    subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True)
    file = tmp_path / ".env"
    assert stat.filemode(file.stat().st_mode) == "-rw-------"
    said = [line.partition("=")[0] for line in file.read_text(encoding="utf-8").splitlines()]
    assert set(said) == SERVICES["orthanc"]["environment"].keys()


CORES = 128
"""Of a large machine."""


def test_a_machine_of_128_cores_has_the_threads_that_the_page_counts() -> None:
    """During a reload, with an issuer: docs/configuration.md."""
    fronts = layout_of(Settings(cores=CORES, device="cpu")).fronts
    of_front = Cores(CORES, fronts).lanes + -(-CORES // fronts) + 2 + 1
    counted = 2 * fronts * of_front + 1
    assert counted <= SERVICES["tessera"]["pids_limit"]
    assert f" {counted} " in (ROOT / "docs/configuration.md").read_text(encoding="utf-8")


def test_on_a_machine_of_128_cores_the_viewers_health_check_finds_room_for_its_process() -> None:
    """During a reload of nginx, beside its first process."""
    text = (ROOT / "docker/pacs/viewer/nginx.conf").read_text(encoding="utf-8")
    [stated] = re.findall(r"^worker_processes (\w+);$", text, re.MULTILINE)
    workers = CORES if stated == "auto" else int(stated)
    assert 1 + 2 * workers < SERVICES["viewer"]["pids_limit"]


def offered() -> list[tuple[str, str]]:
    """Return the variables that are commented out, and their values: paths in the container."""
    return re.findall(r"^ *#  *(TESSERA_\w+): (/\S+)$", TEXT, re.MULTILINE)
