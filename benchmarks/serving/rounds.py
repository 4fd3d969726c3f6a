"""Rounds: every server is visited once in each, in turns of order, so that a noisy machine is noisy for all."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.serving.roofline import Roofline
from benchmarks.serving.servers import Launch, Server, picked
from benchmarks.serving.uploads import Upload
from benchmarks.serving.visit import Plan, free_port, visit

_ROOFLINE_RUNS = 15


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is compared, and how.

    Attributes:
        contestants: Servers and variants.
        launches: How each server is started, by its name; bundle and port are filled in here.
        decoder: Of the peers.
        upload: What is posted.
        plan: What is measured on a visit.
    """

    contestants: list[tuple[Server, str]]
    launches: dict[str, Launch]
    decoder: str
    upload: Upload
    plan: Plan


def contend(contest: Contest, bundle: Path, rounds: int, network: str) -> dict[str, Any]:
    """Visit every server `rounds` times, with the roofline sampled before and after each visit.

    A server that fails is left out of the rounds that follow, and the result says why. One that would be a second of
    the same, since the bundle has nothing else for it to pick, is not visited.
    """
    contestants = [pair for pair in contest.contestants if not _is_double(pair[0], bundle)]
    data = contest.upload.file.read_bytes()
    rooflines = {
        precision: Roofline(bundle, precision, data)
        for precision in sorted({"fp32", *(server.precision_of(bundle) for server, _ in contestants)})
    }
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    servers: dict[str, dict[str, Any]] = {
        _key(server, variant, contest): {
            "server": server.name,
            "title": server.title,
            "variant": variant,
            "how": server.variants[variant],
            "precision": server.precision_of(bundle),
            "visits": [],
        }
        for server, variant in contestants
    }
    for number in range(rounds):
        for server, variant in contestants if number % 2 == 0 else reversed(contestants):
            entry = servers[_key(server, variant, contest)]
            if "did_not_run" in entry:
                continue
            for roofline in rooflines.values():
                roofline.sample(_ROOFLINE_RUNS)
            launch = replace(contest.launches[server.name], bundle=bundle, port=free_port())
            expected = rooflines[server.precision_of(bundle)].class_map
            try:
                visited = visit(server, variant, launch, contest.decoder, contest.upload, expected, contest.plan)
            except click.ClickException as error:
                entry["did_not_run"] = error.message
                click.echo(f"{network}, round {number + 1}: {error.message}")
                continue
            for roofline in rooflines.values():
                roofline.sample(_ROOFLINE_RUNS)
            visited["limits"] = {
                precision: roofline.result(launch.cores, last=2 * _ROOFLINE_RUNS)["per_second"]
                for precision, roofline in rooflines.items()
            }
            entry["visits"].append(visited)
            capacity = visited["capacity"]
            click.echo(
                f"{network}, round {number + 1}: {server.title} ({variant}): {capacity['per_second']:.1f} a second,"
                f" {capacity['server_ms']:.1f} ms of processor time each; others took"
                f" {100 * capacity['others_share']:.0f} % of the machine"
            )
    cores = next(iter(contest.launches.values())).cores
    model = {name: manifest[name] for name in ("name", "version", "sha256")}
    limits = {precision: roofline.result(cores) for precision, roofline in rooflines.items()}
    return {"model": model, "rooflines": limits, "servers": servers}


def _is_double(server: Server, bundle: Path) -> bool:
    return server.package is None and server.precision is not None and server.precision == picked(bundle)


def _key(server: Server, variant: str, contest: Contest) -> str:
    """Return the server's name, with its variant where several of its are compared."""
    several = sum(other is server for other, _ in contest.contestants) > 1
    return f"{server.name}:{variant}" if several else server.name
