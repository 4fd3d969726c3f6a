"""The load: wrk in a closed loop, h2load in an open one. Both are Debian's; neither is written here.

Closed loop: so many connections, each with one request in flight; the rate is what the server can do. Open loop:
requests at a rate of the client's choosing, whether or not earlier ones have been answered; the latency is what users
see.
"""

import json
import math
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

_LUA = Path(__file__).parent / "post.lua"
_TIMEOUT = "30s"
_LEAST_CLIENTS, _MOST_CLIENTS = 8, 800


@dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes, and what it carries.

    Attributes:
        url: Of the server's resource.
        body: The file to post.
        media_type: What it is declared as.
        headers: Others, by name.
    """

    url: str
    body: Path
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def all_headers(self) -> dict[str, str]:
        """Every header that the request carries beside HTTP's own."""
        return {"Content-Type": self.media_type, **self.headers}


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """What wrk measured.

    Attributes:
        requests: Those answered.
        seconds: For which it ran.
        failed: Connections that broke, and requests not answered in time.
        refused: Answers of status 400 and above.
        p50_ms: Latency, from sending to the answer's end; likewise the others.
        client_seconds: Processor time that wrk itself took.
    """

    requests: int
    seconds: float
    failed: int
    refused: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    client_seconds: float

    @property
    def answered(self) -> int:
        """Good answers."""
        return self.requests - self.refused

    @property
    def per_second(self) -> float:
        """Good answers in a second."""
        return self.answered / self.seconds

    @property
    def cores(self) -> float:
        """Processor cores that wrk itself kept busy."""
        return self.client_seconds / self.seconds


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """What h2load measured.

    Attributes:
        rate: Requests a second that were to be sent.
        sent: Requests a second that were.
        answered: Answers of status 200 a second that came meanwhile, whenever they were asked for.
        requests: Those counted.
        failed: Those of them without an answer of status 200.
        p50_ms: Latency of those with one; likewise the others.
        waited: Share of requests whose answer took longer than the connection's period, so that the next was sent late.
        client_ms: Processor time that h2load itself took for a request.
    """

    rate: float
    sent: float
    answered: float
    requests: int
    failed: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    waited: float
    client_ms: float


def check_tools() -> None:
    """Refuse to start without the tools.

    Raises:
        click.ClickException: One is missing.
    """
    for tool, package in (("wrk", "wrk"), ("h2load", "nghttp2-client")):
        if shutil.which(tool) is None:
            raise click.ClickException(f"{tool} is missing: apt-get install {package}")


def closed_loop(target: Target, connections: int, seconds: float) -> ClosedLoop:
    """Keep `connections` requests in flight for `seconds`."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", _TIMEOUT]
    environment = {
        "BENCHMARK_BODY": str(target.body),
        "BENCHMARK_HEADERS": "\n".join(f"{name}: {value}" for name, value in target.all_headers.items()),
    }
    before = _children_seconds()
    output = _run([*command, "-s", str(_LUA), target.url], environment)
    return parse_wrk(output, client_seconds=_children_seconds() - before)


def parse_wrk(output: str, client_seconds: float) -> ClosedLoop:
    """Read the line of JSON that post.lua prints after wrk's own.

    Raises:
        click.ClickException: Nothing was answered, so there is no latency.
    """
    line = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    loop = ClosedLoop(**json.loads(line), client_seconds=client_seconds)
    if loop.requests == 0:
        raise click.ClickException(f"no request was answered in {loop.seconds:.1f} s")
    return loop


def open_loop(target: Target, rate: float, seconds: float, patience_seconds: float = 1.0) -> OpenLoop:
    """Send `rate` requests a second, evenly, for `seconds` and the ramps before and after.

    Each connection sends once in about `patience_seconds`, so that one is free for each request unless an answer takes
    that long; they start one after the other, since h2load's would all send at the same instant otherwise.
    """
    clients = min(_MOST_CLIENTS, max(_LEAST_CLIENTS, round(rate * patience_seconds)))
    period_seconds = clients / rate
    each = max(2, math.ceil((seconds + 2 * patience_seconds) / period_seconds))
    command = ["h2load", "--h1", "-t1", f"-c{clients}", f"-n{clients * each}", f"--rps={1 / period_seconds:.6f}"]
    command += ["-r1", f"--rate-period={max(1, round(1000 * period_seconds / clients))}ms", "-d", str(target.body)]
    for name, value in target.all_headers.items():
        command += ["-H", f"{name}: {value}"]
    before = _children_seconds()
    with tempfile.NamedTemporaryFile() as log:
        _run([*command, f"--log-file={log.name}", target.url], {})
        text = Path(log.name).read_text(encoding="ascii")
        spent = _children_seconds() - before
        return parse_h2load(text, rate, period_seconds, seconds, patience_seconds, spent)


def parse_h2load(
    log: str, rate: float, period_seconds: float, seconds: float, settling_seconds: float, client_seconds: float
) -> OpenLoop:
    """Read h2load's log: of each request its start in us, its status (-1 for none) and the us to its answer's end.

    What began within `seconds` after the first ramp, of `settling_seconds`, is counted. Each connection has its number
    of requests: those that wait for answers need longer for it, and after that time are alone with the server.
    """
    rows = sorted(tuple(map(int, line.split("\t")[:3])) for line in log.splitlines())
    settling_us = 1e6 * settling_seconds
    begin = rows[0][0] + settling_us
    end = min(begin + 1e6 * seconds, rows[-1][0] - settling_us)
    counted = [row for row in rows if begin <= row[0] <= end]
    if len(counted) < 2:
        raise click.ClickException("the open loop was too short to count anything; give it more seconds")
    came = sum(status == 200 and begin <= start + took <= end for start, status, took in rows)
    good_ms = [took / 1000 for _, status, took in counted if status == 200]
    span_seconds = (counted[-1][0] - counted[0][0]) / 1e6
    return OpenLoop(
        rate=rate,
        sent=(len(counted) - 1) / span_seconds,
        answered=1e6 * came / (end - begin),
        requests=len(counted),
        failed=len(counted) - len(good_ms),
        p50_ms=percentile(good_ms, 50),
        p90_ms=percentile(good_ms, 90),
        p99_ms=percentile(good_ms, 99),
        waited=sum(took > 1e6 * period_seconds for _, _, took in counted) / len(counted),
        client_ms=1000 * client_seconds / len(rows),
    )


def fixed_count(target: Target, connections: int, requests: int) -> int:
    """Send `requests` requests, as fast as they are answered over so many connections; return the good answers."""
    command = ["h2load", "--h1", "-t1", f"-c{min(connections, requests)}", f"-n{requests}", "-d", str(target.body)]
    for name, value in target.all_headers.items():
        command += ["-H", f"{name}: {value}"]
    output = _run([*command, target.url], {})
    line = next(line for line in output.splitlines() if line.startswith("status codes:"))
    return int(line.split(":")[1].split()[0])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that at least `percent` % of them do not exceed; NaN of none."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else math.nan


def _run(command: list[str], environment: dict[str, str]) -> str:
    path = shutil.which(command[0])
    result = subprocess.run(  # noqa: S603  the tools' names are constants
        [str(path), *command[1:]], env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise click.ClickException(f"{command[0]} failed: {(result.stderr or result.stdout).strip()[-300:]}")
    return result.stdout


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
