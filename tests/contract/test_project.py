"""Promises of the project's files: locks, documentation, package data."""

import json
import re
import ssl
import subprocess
import sys
import tomllib

import pytest

from app.archive_settings import ArchiveSettings
from app.settings import Settings
from benchmarks.serving.environments import DEFAULT_FOLDER
from tests.certificates import signed_by_itself
from tests.conftest import ROOT
from tests.issuer import pem
from tests.programs import program
from tests.web import sends, serving

LOCKS = ROOT / "requirements"


def locked(name: str) -> dict[str, str]:
    """Return the packages of a lock file and their whole lines."""
    lines = (LOCKS / name).read_text(encoding="utf-8").splitlines()
    return {line.split("==")[0]: line for line in lines if re.match(r"[a-z0-9]", line)}


def test_the_service_installs_neither_torch_nor_cuda():
    names = locked("serve.txt")
    assert not [name for name in names if name.startswith(("torch", "nvidia", "cuda", "triton"))]


def test_never_both_runtimes():
    names = locked("serve.txt")
    assert "platform_machine == 'x86_64' and sys_platform == 'linux'" in names["onnxruntime-gpu"]
    assert "platform_machine != 'x86_64' or sys_platform != 'linux'" in names["onnxruntime"]


@pytest.mark.parametrize("name", ["serve.txt", "cuda.txt", "integrations.txt", "dev.txt", "build.txt"])
def test_locks_are_hashed_and_name_no_index(name):
    text = (LOCKS / name).read_text(encoding="utf-8")
    entry = r"[a-z0-9][a-z0-9.-]*==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?|    +#.*"
    assert [line for line in text.splitlines() if not re.fullmatch(entry, line)] == []
    assert len(re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)) == len(re.findall(r"==\S+.* \\$", text, re.MULTILINE))
    assert "://" not in text


def test_the_training_lock_names_torch_and_leaves_cuda_to_it():
    names = locked("train.txt")
    assert names["torch"] == "torch==2.13.0"
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]


def test_locks_agree_and_cover_the_project():
    serve, integrations, cuda = locked("serve.txt"), locked("integrations.txt"), locked("cuda.txt")
    dev, train = locked("dev.txt"), locked("train.txt")
    for smaller, larger in ((serve, integrations), (serve, cuda), (integrations, dev), (serve, train)):
        for name, line in smaller.items():
            assert larger[name].split()[0] == line.split()[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    outside = [*extras["dicom"], *extras["oidc"], *extras["slides"], *extras["sectra"], *extras["wsi"]]
    for wanted, lock in (
        (project["dependencies"], serve),
        (outside, integrations),
        (extras["dev"], dev),
        (extras["train"], train),
    ):
        assert {re.split(r"[<>=\[; ]", entry)[0] for entry in wanted} <= set(lock)


def test_an_environment_that_could_not_be_made_is_made_anew_the_next_time(tmp_path):
    """As on a Debian without python3-venv, whose half of one has a python and no pip."""
    make = program("make")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" = -m ] || exit 0\nmkdir -p "$3/bin"\ntouch "$3/bin/python"\necho no pip\nexit 1\n'
    )
    python.chmod(0o755)
    command = [make, "-f", str(ROOT / "Makefile"), f"PYTHON={python}", ".venv/bin/python"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, b"no pip\n" in done.stdout) == (2, True)
        assert not (tmp_path / ".venv").exists()


def test_make_clean_removes_the_environments_of_the_benchmarks_too():
    command = [program("make"), "--dry-run", "clean"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(DEFAULT_FOLDER.relative_to(ROOT)) in said.split()


def test_the_containers_first_process_is_the_service_which_so_hears_of_its_end():
    """A shell in its place would keep SIGTERM to itself."""
    commands = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert commands == ['["tessera"]', '["serve"]']


@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("has_tls", [False, True])
def test_the_images_health_check_asks_for_readiness_where_the_variables_say(tmp_path, has_tls, status):
    """As docs/configuration.md has it."""
    [command] = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    environment = {}
    tls = None
    if has_tls:
        key, certificate = signed_by_itself()
        (tmp_path / "both.pem").write_bytes(certificate + pem(key))
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(tmp_path / "both.pem")
        environment["TESSERA_TLS_CERT"] = str(tmp_path / "both.pem")
    with serving(sends(status), tls) as server:
        environment["TESSERA_PORT"] = str(server.http.server_port)
        done = subprocess.run([sys.executable, *json.loads(command)[1:]], env=environment, check=False)
    assert done.returncode == (status != 200)
    assert [path for path, _ in server.seen] == ["/health/ready"]


def test_the_architecture_page_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [
        path.relative_to(ROOT)
        for package in ("app", "model_export")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    missing = [str(room) for room in rooms if f"`{room}`" not in page]
    gone = [name for name in re.findall(r"`((?:app|model_export)/[\w/]+\.py)`", page) if not (ROOT / name).is_file()]
    assert not missing, "rooms without a line in docs/architecture.md"
    assert not gone, "lines in docs/architecture.md without a room"


def test_the_architecture_page_names_every_decision():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"\[(\d{4}) [^\]]+\]\((decisions/[\w-]+\.md)\)", page)
    there = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [name for _, name in listed] == [f"decisions/{path.name}" for path in there]
    assert all(name.startswith(f"decisions/{number}-") for number, name in listed)


def test_the_configuration_page_holds_every_setting():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        assert f"| `TESSERA_{name.upper()}` | `--{name.replace('_', '-')}` |" in page
        assert field.description is not None
        assert field.description in page
    for name, field in ArchiveSettings.model_fields.items():
        assert f"| `TESSERA_DICOMWEB_{name.upper()}` |" in page
        assert f"| {field.description} |" in page


def test_links_between_the_projects_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_no_page_has_a_gap_left_to_fill():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        assert "@@" not in page.read_text(encoding="utf-8"), page.relative_to(ROOT)


def test_the_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
