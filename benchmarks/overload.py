"""What becomes of a service that is asked for three times what it can do: `python -m benchmarks.overload`.

The capacity is measured first, with wrk in a closed loop of 32 connections; then h2load sends a multiple of it, evenly,
whether or not answers come. Health is asked all the while, as an orchestrator asks it.
"""

import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import httpx2 as httpx

from benchmarks.serving.load import Target, check_tools, closed_loop, open_loop, percentile

_ROOT = Path(__file__).parent.parent
_PATCH = _ROOT / "examples" / "patches" / "cmu1-skin-2.png"
_CONNECTIONS = 32


@click.command()
@click.option("--seconds", type=float, default=60.0, show_default=True, help="Of overload.")
@click.option("--times", type=float, default=3.0, show_default=True, help="The capacity.")
@click.argument("flags", nargs=-1)
def main(seconds: float, times: float, flags: tuple[str, ...]) -> None:
    """Overload `tessera serve FLAGS` and print how it bears it."""
    check_tools()
    with tempfile.NamedTemporaryFile("w+") as log:
        command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", *flags]
        service = subprocess.Popen(command, stderr=log, cwd=_ROOT)  # noqa: S603  the command is this project's own
        try:
            url = _address(Path(log.name))
            _measure(url, seconds, times)
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


def _measure(url: str, seconds: float, times: float) -> None:
    target = Target(f"{url}/segment", _PATCH, "image/png")
    closed_loop(target, _CONNECTIONS, 3)
    before = closed_loop(target, _CONNECTIONS, 10).per_second
    took: list[float] = []
    over = threading.Event()

    def ask_health() -> None:
        with httpx.Client(timeout=30) as client:
            while not over.wait(0.25):
                started = time.perf_counter()
                client.get(f"{url}/health/live").raise_for_status()
                took.append(1000 * (time.perf_counter() - started))

    asking = threading.Thread(target=ask_health)
    asking.start()
    load = open_loop(target, times * before, seconds)
    over.set()
    asking.join()
    after = closed_loop(target, _CONNECTIONS, 10).per_second
    answered = load.sent * (1 - load.failed / load.requests)
    capacity = (before + after) / 2
    click.echo(f"capacity: {before:.1f} patches a second before, {after:.1f} after")
    click.echo(
        f"sent: {load.sent:.1f} a second for {seconds:g} s;"
        f" answered: {answered:.1f}, {answered / capacity:.2f} of capacity"
    )
    click.echo(f"answered ones took: median {load.p50_ms:.0f} ms, p99 {load.p99_ms:.0f} ms")
    shares = [percentile(took, share) for share in (50, 99, 100)]
    click.echo(f"health: {len(took)} checks; median {shares[0]:.0f} ms, p99 {shares[1]:.0f}, longest {shares[2]:.0f}")


if __name__ == "__main__":
    main()
