"""The README's examples, run as they stand against the service: curl and Python."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from tests.conftest import ROOT
from tests.pictures import opened
from tests.programs import program

ADDRESS = "http://127.0.0.1:8000"
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
CURL = [code for _, code in BLOCKS if code.startswith("curl ")]
PYTHON = [code for language, code in BLOCKS if language == "python" and "tessera_client" in code]
RUN_SECONDS = 120


def run(command: list[str], folder: Path, **env: str) -> str:
    """Run an example in `folder`, from which the README's paths resolve, and return what it prints."""
    (folder / "examples").symlink_to(ROOT / "examples")
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def holds_labels(answer: dict[str, Any]) -> bool:
    return all("labels" in each for each in answer.get("results", [answer]))


def test_the_readme_shows_both_ways():
    assert len(CURL) >= 3
    assert PYTHON


@pytest.mark.parametrize("code", CURL, ids=range(len(CURL)))
def test_a_curl_example_gives_labels_or_the_files_it_names(service, tmp_path, code):
    program("curl")
    assert ADDRESS in code
    printed = run(["bash", "-euc", code.replace(ADDRESS, service.url)], tmp_path)
    written = [tmp_path / name for name in re.findall(r" -o (\S+)", code)]
    assert printed or written
    if printed:
        assert holds_labels(json.loads(printed))
    for path in written:
        if path.suffix == ".png":
            opened(path.read_bytes())
        else:
            assert path.suffix == ".geojson", "say here how to check such a file"
            assert json.loads(path.read_bytes())["features"]


def test_the_answer_that_the_readme_shows_is_the_first_examples(service, tmp_path):
    program("curl")
    shown = next(code for language, code in BLOCKS if language == "json")
    answer = json.loads(run(["bash", "-euc", CURL[0].replace(ADDRESS, service.url)], tmp_path))
    assert set(re.findall(r'^  "(\w+)":', shown, re.M)) == set(answer) - {"overlay", "confidence"}
    for field in ("labels", "code"):
        assert f'"{field}": {json.dumps(answer[field])}' in shown


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_a_python_example_prints_the_labels(service, tmp_path, code):
    assert ADDRESS in code
    command = [sys.executable, "-W", "error", "-c", code.replace(ADDRESS, service.url)]
    printed = run(command, tmp_path, PYTHONPATH=str(ROOT / "examples" / "python"))
    assert printed.startswith("T+S ")


def test_the_clients_own_page_sends_and_names_as_many_files_as_a_request_may_hold():
    page = (ROOT / "examples" / "python" / "README.md").read_text()
    most = Settings.model_fields["max_files"].default
    assert f"range(0, len(paths), {most})" in page
    assert f"paths[start : start + {most}]" in page
    assert f"at most {most} files and {Settings.model_fields['max_upload_bytes'].default // 2**20} MiB" in page


def test_the_clients_own_page_runs(service, tmp_path):
    page = (ROOT / "examples" / "python" / "README.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    patches = ROOT / "examples" / "patches"
    (tmp_path / "patches").symlink_to(patches)
    (tmp_path / "patch.png").symlink_to(patches / "cmu1-skin-2.png")
    command = [sys.executable, "-W", "error", "-c", code.replace(ADDRESS, service.url)]
    printed = run(command, tmp_path, PYTHONPATH=str(ROOT / "examples" / "python"))
    assert len(printed.splitlines()) == len(list(patches.glob("*.png")))
    assert "T+S" in printed.splitlines()
