"""Each peer's virtual environment, made once, from its requirements.txt."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from benchmarks.serving.servers import PEERS, Launch, Server

DEFAULT_FOLDER = Path(__file__).parent / ".environments"
_IMAGECODECS = "imagecodecs"
_NOTED = ("fastapi", "uvicorn", "litserve", "mosec", "bentoml", "ray", "nvidia-pytriton")
_NOTED_EVERYWHERE = ("numpy", "onnxruntime", "onnxruntime-gpu", "pillow", _IMAGECODECS)


def python_of(server: Server, environments: Path, decoder: str) -> Path:
    """Return the interpreter that runs a server; a peer's environment is made where it does not exist yet.

    Raises:
        click.ClickException: pip cannot make it.
    """
    if server.package is None:
        return Path(sys.executable)
    python = environments.absolute() / server.name / "bin" / "python"
    done = python.parent / f".installed-{decoder}"
    if not done.exists():
        click.echo(f"{server.title}: making its environment")
        environments.mkdir(parents=True, exist_ok=True)
        (environments / ".gitignore").write_text("*\n", encoding="ascii")
        if not python.exists():
            _run([server.interpreter or sys.executable, "-m", "venv", "--without-pip", str(python.parents[1])], server)
        packages = ["-r", str(PEERS / server.name / "requirements.txt")]
        if decoder == "imagecodecs":
            packages.append(_IMAGECODECS)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
        _run([*pip, "install", "--quiet", *packages], server)
        done.touch()
    return python


def environment_of(launch: Launch, variant: str, decoder: str) -> Mapping[str, str]:
    """Return the environment variables that a server runs with: no setting of this shell's reaches it."""
    return {
        "PATH": os.pathsep.join((str(launch.python.parent), os.environ["PATH"])),
        "HOME": os.environ["HOME"],
        "PYTHONPATH": str(PEERS),
        "BENCHMARK_BUNDLE": str(launch.bundle.absolute()),
        "BENCHMARK_PORT": str(launch.port),
        "BENCHMARK_CORES": str(launch.cores),
        "BENCHMARK_VARIANT": variant,
        "BENCHMARK_DECODER": decoder,
        # Usage reports are for no benchmark to send.
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def versions_of(python: Path) -> dict[str, str]:
    """Return Python's version in an environment, and those of the packages that matter."""
    program = (
        "import json, platform, sys; from importlib import metadata as m\n"
        "names = {d.name.lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({'python': platform.python_version(), **{n: names[n] for n in sys.argv[1:] if n in names}}))"
    )
    output = subprocess.run(  # noqa: S603  an interpreter that this file made
        [str(python), "-c", program, *_NOTED, *_NOTED_EVERYWHERE], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, str] = json.loads(output)
    return found


def _run(command: list[str], server: Server) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["it did not say why"]
        raise click.ClickException(f"{server.title}'s environment cannot be made: {lines[-1]}")
