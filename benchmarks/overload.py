"""What becomes of a service that is asked for three times what it can do: `python -m benchmarks.overload`.

The capacity is measured with wrk in a closed loop of 32 connections; then h2load sends a multiple of it, evenly,
whether or not answers come. Health is asked all the while, as an orchestrator asks it. The capacity is measured again
after each time of overload, and what was answered is a share of the two around it: machines get faster and slower by
themselves. The client has the service's cores, and takes more of them when it sends more, so the share is stated twice:
of the capacity, and of the part of it that the client left.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import httpx2 as httpx

from benchmarks.serving.load import OpenLoop, Target, check_tools, closed_loop, open_loop, percentile

_ROOT = Path(__file__).parent.parent
_PATCH = _ROOT / "examples" / "patches" / "cmu1-skin-2.png"
_CONNECTIONS = 32
_CAPACITY_SECONDS = 20
_PATIENCE_SECONDS = 3.0
"""How often each connection sends: seldom enough that most of those accepted are answered before it sends again."""


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Of a round.")
@click.option("--times", type=float, default=3.0, show_default=True, help="The capacity.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Of overload.")
@click.argument("flags", nargs=-1)
def main(seconds: float, times: float, rounds: int, flags: tuple[str, ...]) -> None:
    """Overload `tessera serve FLAGS` and print how it bears it."""
    check_tools()
    with tempfile.NamedTemporaryFile("w+") as log:
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", *flags]
        service = subprocess.Popen(command, stderr=log, cwd=_ROOT)  # noqa: S603  the command is this project's own
        try:
            url = _address(Path(log.name))
            _measure(url, seconds, times, rounds)
        finally:
            service.terminate()
            service.wait()


def _address(log: Path) -> str:
    deadline = time.monotonic() + 60
    while not (found := re.search(r"running on (http://\S+)", log.read_text(encoding="utf-8"))):
        if time.monotonic() > deadline:
            raise click.ClickException("the service did not start")
        time.sleep(0.05)
    return found.group(1)


def _measure(url: str, seconds: float, times: float, rounds: int) -> None:
    target = Target(f"{url}/segment", _PATCH, "image/png")
    closed_loop(target, _CONNECTIONS, 3)
    before = closed_loop(target, _CONNECTIONS, _CAPACITY_SECONDS)
    shares, shares_left = [], []
    for _ in range(rounds):
        own_seconds, started = time.process_time(), time.monotonic()
        load, health_ms = _overload(url, target, times * before.per_second, seconds)
        health_cores = (time.process_time() - own_seconds) / (time.monotonic() - started)
        after = closed_loop(target, _CONNECTIONS, _CAPACITY_SECONDS)
        capacity = (before.per_second + after.per_second) / 2
        cores = len(os.sched_getaffinity(0))
        usual, busy = (before.cores + after.cores) / 2, load.sent * load.client_ms / 1000 + health_cores
        left = capacity * (cores - busy) / (cores - usual)
        shares.append(load.answered / capacity)
        shares_left.append(load.answered / left)
        click.echo(
            f"capacity: {before.per_second:.1f} patches a second before, {after.per_second:.1f} after\n"
            f"sent: {load.sent:.1f} a second for {seconds:g} s, {load.sent / capacity:.1f} times the capacity;"
            f" answered: {load.answered:.1f}, {shares[-1]:.2f} of it\n"
            f"the clients took {100 * busy / cores:.1f} % of the cores, and {100 * usual / cores:.1f} % to measure the"
            f" capacity; answered: {shares_left[-1]:.2f} of what that left\n"
            f"answered ones took: median {load.p50_ms:.0f} ms, p99 {load.p99_ms:.0f} ms\n"
            f"health: {len(health_ms)} checks; median {percentile(health_ms, 50):.0f} ms,"
            f" p99 {percentile(health_ms, 99):.0f}, longest {max(health_ms):.0f}"
        )
        before = after
    click.echo(
        f"answered in all {rounds} rounds: {sum(shares) / rounds:.2f} of the capacity,"
        f" {sum(shares_left) / rounds:.2f} of what the client left of it"
    )


def _overload(url: str, target: Target, rate: float, seconds: float) -> tuple[OpenLoop, list[float]]:
    """Return what became of a time of overload, and how long each check of health took meanwhile, in ms."""
    took: list[float] = []
    over = threading.Event()

    def ask_health() -> None:
        with httpx.Client(timeout=30) as client:
            while not over.wait(0.25):
                started = time.perf_counter()
                client.get(f"{url}/health/live").raise_for_status()
                took.append(1000 * (time.perf_counter() - started))

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_health)
        try:
            load = open_loop(target, rate, seconds, _PATIENCE_SECONDS)
        finally:
            over.set()
        asking.result()
    return load, took


if __name__ == "__main__":
    main()
