"""The servers that are compared: how each is started, asked and read.

A variant is a way to configure one; the first is what was the best here (docs/decisions/0014-benchmarks.md), and is the
one measured unless another is asked for, as in `mosec:stages`.
"""

import base64
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from PIL import Image

from app.inference.bundle import precisions_of
from app.pathology.arrays import ClassMap
from app.pathology.manifest import Precision

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is to be started.

    Attributes:
        python: The interpreter of its environment.
        bundle: The folder of the bundle that it serves.
        port: Where it is to listen.
        cores: How many it may use.
        device: Where tessera is to run the model; peers run it on the CPU.
    """

    python: Path
    bundle: Path
    port: int
    cores: int
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Server:
    """One of those compared.

    Attributes:
        name: As the command line and the results have it.
        title: As people have it.
        package: On PyPI, whose version is noted; None for the project itself.
        command: Its command line.
        variants: Its configurations, each with a line that says what it is; the best first.
        path: The resource that answers a patch.
        headers: What its requests need beside the media type.
        read: Makes the JSON of an answer of the project's form out of its own.
        interpreter: What its environment is made with; None for the one that runs the benchmark.
        precision: In which it runs the model; None where it picks what the bundle has for a CPU.
    """

    name: str
    title: str
    package: str | None
    command: Callable[[Launch], list[str]]
    variants: dict[str, str]
    path: str = "/segment"
    headers: dict[str, str] = field(default_factory=dict)
    read: Callable[[bytes], bytes] = bytes
    interpreter: str | None = None
    precision: Precision | None = "fp32"

    def precision_of(self, bundle: Path) -> Precision:
        """Return in which precision it runs a bundle."""
        return self.precision or picked(bundle)

    @property
    def folder(self) -> Path:
        """Where its program lies."""
        return ROOT if self.package is None else PEERS / self.name


def class_map_of(server: Server, body: bytes) -> ClassMap:
    """Return the (H, W) uint8 class map in an answer's mask.

    Raises:
        click.ClickException: It holds none.
    """
    try:
        mask = base64.b64decode(json.loads(server.read(body))["mask"]["base64"], validate=True)
        with Image.open(io.BytesIO(mask)) as image:
            if image.mode != "P":
                raise ValueError(f"the mask is of mode {image.mode}, not P")
            return np.array(image)
    except (ValueError, KeyError, OSError) as error:
        raise click.ClickException(f"{server.title} answered what is no segmentation: {body[:100]!r}") from error


def _program(launch: Launch) -> list[str]:
    return [str(launch.python), "server.py"]


def picked(bundle: Path, device: str = "cpu") -> Precision:
    """Return in which precision the service runs a bundle on a device."""
    suits: Precision = "fp16" if device == "cuda" else "int8"
    return suits if suits in precisions_of(bundle) else "fp32"


def _tessera_fp32(launch: Launch) -> list[str]:
    return [*_tessera(launch), "--precision", "fp32"]


def _tessera(launch: Launch) -> list[str]:
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(launch.port), "--bundle", str(launch.bundle)]
    return [*command, "--cores", str(launch.cores), "--device", launch.device, "--log-level", "warning"]


def _fastapi(launch: Launch) -> list[str]:
    command = [str(launch.python), "-m", "uvicorn", "server:app", "--host", "127.0.0.1", "--port", str(launch.port)]
    return [*command, "--workers", str(launch.cores), "--log-level", "warning", "--no-access-log"]


def _bentoml(launch: Launch) -> list[str]:
    command = [str(launch.python), "-m", "bentoml", "serve", "server:Segment", "--host", "127.0.0.1"]
    return [*command, "--port", str(launch.port)]


def _read_triton(body: bytes) -> bytes:
    """Take the one output of Triton's binary extension: JSON, then a length of four bytes, then the answer."""
    _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    return body[end + 4 :]


SERVERS = {
    server.name: server
    for server in (
        Server("tessera", "tessera", None, _tessera, {"serve": "`tessera serve`"}, precision=None),
        Server("tessera-fp32", "tessera in fp32", None, _tessera_fp32, {"serve": "`tessera serve --precision fp32`"}),
        Server(
            "fastapi",
            "FastAPI",
            "fastapi",
            _fastapi,
            {
                "inline": "a uvicorn process a core, the work on its event loop",
                "threads": "a uvicorn process a core, the work in its thread pool",
            },
        ),
        Server(
            "litserve",
            "LitServe",
            "litserve",
            _program,
            {
                "batches": "a worker a core, batches of up to 4 within 5 ms",
                "plain": "a worker a core, one patch at a time",
            },
        ),
        Server(
            "mosec",
            "Mosec",
            "mosec",
            _program,
            {
                "whole": "a process a core that does all of a patch",
                "shared": "a process a core that decodes, another that infers batches of up to 4 and encodes",
                "stages": "one process that decodes, one a core that infers batches of up to 4 and encodes",
            },
        ),
        Server(
            "bentoml",
            "BentoML",
            "bentoml",
            _bentoml,
            {
                "whole": "a service process a core",
                "batches": "a process a core that decodes, another that infers in adaptive batches of up to 4",
            },
        ),
        Server(
            "ray_serve",
            "Ray Serve",
            "ray",
            _program,
            {
                "inline": "a replica a core, the work on its event loop",
                "threads": "a replica a core, the work in a thread",
            },
        ),
        Server(
            "pytriton",
            "PyTriton",
            "nvidia-pytriton",
            _program,
            {
                "batches": "a Python instance a core, dynamic batches of up to 4 within 2 ms",
                "whole": "a Python instance a core, one patch at a time",
            },
            path="/v2/models/segment/infer",
            headers={"Inference-Header-Content-Length": "0"},  # Triton's raw binary request: the body is the image
            read=_read_triton,
            # Its wheel embeds an interpreter that needs the standard library of an early 3.11, as Debian 12 has it.
            interpreter="/usr/bin/python3",
        ),
    )
}

DEFAULT = "tessera,tessera-fp32,fastapi,litserve:batches,litserve:plain,mosec,bentoml,ray_serve,pytriton"
"""Where one variant was not clearly the best, both."""


def chosen(names: str) -> list[tuple[Server, str]]:
    """Return servers and their variants of a list such as `tessera,mosec:stages`.

    Raises:
        click.BadParameter: One is not known.
    """
    pairs = []
    for entry in names.split(","):
        name, _, variant = entry.strip().partition(":")
        if name not in SERVERS:
            raise click.BadParameter(f"{name} is none of {', '.join(SERVERS)}")
        server = SERVERS[name]
        variant = variant or next(iter(server.variants))
        if variant not in server.variants:
            raise click.BadParameter(f"{name} has the variants {', '.join(server.variants)}, not {variant}")
        pairs.append((server, variant))
    return pairs
