"""The walls between the rooms."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def imported_by(module: str) -> set[str]:
    """Return the top-level packages that importing `module` pulls in, in a fresh interpreter."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_the_import_rules_hold():
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(linter)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["app.main", "app.cli", "app.server"])
def test_the_service_runs_without_the_training_stack(module):
    assert imported_by(module).isdisjoint({"torch", "onnx", "onnxscript", "model_export"})


def test_the_words_pull_in_neither_web_stack_nor_runtime():
    assert imported_by("app.pathology.manifest").isdisjoint({"fastapi", "starlette", "onnxruntime", "PIL", "torch"})


def test_the_command_line_tool_for_files_does_not_wait_for_the_web_stack():
    assert imported_by("app.cli").isdisjoint({"fastapi", "starlette", "uvicorn"})


@pytest.mark.parametrize("module", ["app.inference.session", "model_export.runtime"])
def test_the_runtime_keeps_no_record_of_its_use(module, tmp_path):
    """ONNX Runtime's packages otherwise open a database of usage events under the home folder and send it home."""
    code = f"""
import {module}
from app.inference.bundle import check_golden, load_bundle
from app.inference.session import open_session
from app.settings import DEFAULT_BUNDLE
bundle = load_bundle(DEFAULT_BUNDLE)
check_golden(bundle, open_session(bundle.model, "cpu"))
"""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin", "ORT_DISABLE_TELEMETRY": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=home)
    assert list(tmp_path.rglob("*")) == []


def test_drawing_patches_needs_no_training_stack():
    assert imported_by("model_export.synthetic").isdisjoint({"torch", "onnx"})
