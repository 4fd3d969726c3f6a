"""`python -m benchmarks.serving`: measure, and `report`: draw the page of a result."""

import datetime
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from app.settings import DEFAULT_BUNDLE, available_cores
from benchmarks.serving.alone import big, soak, uploads
from benchmarks.serving.batches import batches
from benchmarks.serving.environments import DEFAULT_FOLDER, python_of, versions_of
from benchmarks.serving.figures import with_alone
from benchmarks.serving.free_network import write_free_bundle
from benchmarks.serving.load import check_tools
from benchmarks.serving.machine import hardware, tools
from benchmarks.serving.processes import adopt_orphans
from benchmarks.serving.report import write_report
from benchmarks.serving.rounds import Contest, contend
from benchmarks.serving.servers import DEFAULT, ROOT, SERVERS, Launch, chosen
from benchmarks.serving.uploads import patch, write_png
from benchmarks.serving.visit import Plan, free_port

FORMAT = 2
RESULTS = ROOT / "benchmarks" / "results"
_SHARES = (0.5, 0.7, 0.9)
_ALONE = ("big", "uploads", "batches")


@click.group(invoke_without_command=True)
@click.option("--servers", default=DEFAULT, show_default=True, help="Which, as name or name:variant.")
@click.option("--every-variant", is_flag=True, help="Each of the servers in all its variants: which one is best?")
@click.option("--network", type=click.Choice(["default", "free", "both"]), default="both", show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Of each load.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Visits to each server.")
@click.option("--connections", type=click.IntRange(1), default=32, show_default=True, help="Of the closed loop.")
@click.option("--decoder", type=click.Choice(["pillow", "imagecodecs"]), default="pillow", help="That peers use.")
@click.option("--alone", default=",".join(_ALONE), show_default=True, help="Of tessera alone; empty for none of it.")
@click.option("--soak", "soak_requests", type=click.IntRange(0), default=0, help="Requests to weigh its memory along.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Of batches.")
@click.option("--quick", is_flag=True, help="All of it in about four minutes: one round, 2 s, one open loop.")
@click.option("--environments", type=click.Path(path_type=Path), default=DEFAULT_FOLDER, help="Of the peers.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; by default in benchmarks/results.")
@click.pass_context
def main(
    context: click.Context,
    servers: str,
    every_variant: bool,
    network: Literal["default", "free", "both"],
    seconds: float,
    rounds: int,
    connections: int,
    decoder: str,
    alone: str,
    soak_requests: int,
    device: str,
    quick: bool,
    environments: Path,
    out: Path | None,
) -> None:
    """Measure tessera and its peers side by side."""
    if context.invoked_subcommand is not None:
        return
    check_tools()
    adopt_orphans()
    if quick:
        seconds, rounds = 2.0, 1
    contestants = chosen(servers)
    if every_variant:
        named = {server.name: server for server, _ in contestants}.values()
        contestants = [(server, variant) for server in named for variant in server.variants]
    plan = Plan(connections, seconds, _SHARES[1:2] if quick or every_variant else _SHARES)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upload = write_png(folder, "patch", patch())
        write_free_bundle(folder / "free")
        bundles = {"default": DEFAULT_BUNDLE, "free": folder / "free"}
        asked = ("default", "free") if network == "both" else (network,)
        pythons = {server.name: python_of(server, environments, decoder) for server, _ in contestants}
        result: dict[str, Any] = {
            "format": FORMAT,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "kind": "quick" if quick else "variants" if every_variant else "full",
            "hardware": hardware(),
            "tools": tools(),
            "versions": {name: versions_of(python) for name, python in pythons.items()},
            "settings": {
                "connections": connections,
                "seconds": seconds,
                "rounds": rounds,
                "decoder_of_peers": decoder,
                "upload_bytes": upload.file.stat().st_size,
            },
        }
        launches = {server.name: Launch(pythons[server.name], DEFAULT_BUNDLE, 0, cores) for server, _ in contestants}
        contest = Contest(contestants, launches, decoder, upload, plan)
        result["networks"] = {kind: contend(contest, bundles[kind], rounds, kind) for kind in asked}
        own = Launch(python_of(SERVERS["tessera"], environments, decoder), DEFAULT_BUNDLE, free_port(), cores)
        steps = set(filter(None, alone.split(",")))
        result["alone"] = _alone(steps, own, folder, seconds, rounds, device, soak_requests)
    out = out or _file_of(result)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(f"wrote {out}")


@main.command()
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("alone", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder of the page.")
def report(result: Path, alone: Path | None, out: Path) -> None:
    """Draw performance.md and its plots of RESULT, a file that a run wrote.

    What RESULT does not hold of tessera alone is taken from ALONE, another run's on the same machine: it is compared
    with no peer.
    """
    measured, names = json.loads(result.read_text(encoding="utf-8")), [result.name]
    if alone is not None:
        try:
            measured = with_alone(measured, json.loads(alone.read_text(encoding="utf-8")))
        except ValueError as error:
            raise click.BadParameter(f"{alone}: {error}") from error
        names.append(alone.name)
    write_report(measured, names, out)


def _alone(
    asked: set[str], launch: Launch, folder: Path, seconds: float, rounds: int, device: str, soak_requests: int
) -> dict[str, Any]:
    if unknown := asked - set(_ALONE):
        raise click.BadParameter(f"{', '.join(sorted(unknown))} is none of {', '.join(_ALONE)}")
    on_device = replace(launch, device=device)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "uploads": lambda: uploads(launch, folder, seconds),
        "batches": lambda: batches(on_device, folder, seconds),
        "big": lambda: big(launch, folder, rounds),
    }
    if soak_requests:
        upload = write_png(folder, "patch", patch())
        steps["soak"] = lambda: soak(launch, upload, soak_requests)
        asked = asked | {"soak"}
    found: dict[str, Any] = {"did_not_run": {}}
    for name, step in steps.items():
        if name not in asked:
            continue
        click.echo(f"tessera alone: {name}")
        try:
            found[name] = step()
        except click.ClickException as error:  # what was measured before is kept, and the page says what is missing
            found["did_not_run"][name] = error.message
            click.echo(error.message)
    return found


def _file_of(result: dict[str, Any]) -> Path:
    processor = "-".join(result["hardware"]["processor"].lower().replace("(r)", "").replace("(tm)", "").split()[:3])
    return RESULTS / f"{result['date']}-{processor}-{result['hardware']['cores']}-cores-{result['kind']}.json"


if __name__ == "__main__":
    main()
