"""The command: starts a service, lets clients at it, reloads it now and then, and says what came of all that.

It ends with status 1 at the first kind of fault: an answer that should not be, a process that ended, a health check
that took too long, or memory, threads or file descriptors that grow while nobody asks anything.
"""

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx2 as httpx

from app.pathology.manifest import MODEL_FILE
from app.settings import DEFAULT_BUNDLE
from tests.conftest import RunningService
from tests.fuzz.service import own_bytes, processes_of
from tests.soak.visitors import Outcome, Visitor, uploads
from tests.waiting import until

_QUIET_SECONDS = 8.0
"""Until connections that are kept, and fronts that another took the place of, are gone."""
_MEMORY_FACTOR, _MEMORY_MIB = 1.15, 48
"""What each front keeps at rest differs by some 10 MiB: what grows without end passes both, however slowly."""
_SUPERVISOR_MIB = 8
"""Of the one process that lives through all of it, and answers nobody."""
_LATE_THREADS = 2
"""Of a process: its pools begin a thread when it is needed first, and each reload makes new processes."""
_HEALTH_SECONDS = 5.0
"""A machine that other work shares may be late by seconds; `health` says what was usual."""


@dataclass(frozen=True, slots=True)
class AtRest:
    """What the service's processes have while nobody asks anything; memory in MiB.

    Of the supervisor by itself it is what it does not read from files, whether or not it shares it with fronts.
    """

    megabytes: float
    supervisor: float
    threads: int
    files: int
    processes: int

    @classmethod
    def of(cls, service: RunningService) -> "AtRest":
        """Return what they have now."""
        pids = processes_of(service.process.pid)
        return cls(
            own_bytes(pids) / 2**20,
            _anonymous_mib(service.process.pid),
            sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
            sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            len(pids),
        )


def _anonymous_mib(pid: int) -> float:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) / 2**10


@dataclass
class Findings:
    """What is found out on the way.

    Attributes:
        outcomes: Of all visits.
        health: How long each health check took, in seconds.
        faults: What went wrong, each once.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count a visit."""
        self.outcomes.append(outcome)
        if outcome.fault is not None:
            self.faults[f"{outcome.kind}: {outcome.fault}"] += 1


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True, help="How long.")
@click.option("--clients", type=int, default=6, show_default=True, help="How many at once.")
@click.option("--rounds", type=int, default=6, show_default=True, help="Between which there is a rest, to measure.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of what the clients do.")
def main(minutes: float, clients: int, rounds: int, seed: int) -> None:
    """Put a mixed load on a service of the default bundle, and say whether it bears it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the service ends too
    findings = soak(minutes * 60, clients, rounds, seed)
    if findings.faults:
        raise click.ClickException("; ".join(f"{fault} ({count} times)" for fault, count in findings.faults.items()))


def soak(seconds: float, clients: int, rounds: int, seed: int) -> Findings:
    """Do so, print the figures, and return what was found."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(shutil.copytree(DEFAULT_BUNDLE, Path(folder) / "bundle"))
        flags = ("--device", "cpu", "--bundle", str(bundle))
        service = RunningService(*flags, env=_ENVIRONMENT)
        try:
            rests = list(_rounds(service, bundle, seconds / rounds, clients, rounds, seed, findings))
            findings.faults.update(growth(rests))
        except BaseException:
            click.echo(service.said(most_lines=20))
            raise
        finally:
            if service.stop() != 0:
                findings.faults[f"it ended with status {service.process.returncode}"] += 1
    _print(findings, rests)
    return findings


_ENVIRONMENT = {"TESSERA_REQUEST_TIMEOUT": "100", "TESSERA_QUEUE_CAPACITY": "32", "TESSERA_MAX_FILES": "32"}


def _rounds(
    service: RunningService, bundle: Path, seconds: float, clients: int, rounds: int, seed: int, findings: Findings
) -> Iterator[AtRest]:
    images = uploads(seed)
    seen: dict[tuple[int, str], str] = {}
    visitors = [Visitor(service.url, images, seed * 1000 + index, seen) for index in range(clients)]
    for number in range(rounds):
        with _visits(visitors, findings), _health_checks(service, findings):
            time.sleep(seconds / 3)
            _reload(service, bundle, findings, is_good=False)
            time.sleep(seconds / 3)
            if number % 2 == 0:  # so that of each two rests the second is of the same fronts, and shows what they keep
                _reload(service, bundle, findings, is_good=True)
            time.sleep(seconds / 3)
        _end_alike(visitors, findings)
        time.sleep(_QUIET_SECONDS)
        if service.process.poll() is not None:
            findings.faults["the service ended by itself: " + service.log[-1]] += 1
            return
        rest = AtRest.of(service)
        click.echo(f"round {number + 1}: {len(findings.outcomes)} requests so far; at rest {rest}")
        yield rest


def _end_alike(visitors: list[Visitor], findings: Findings) -> None:
    """Let all of them do the same at the end of each round, so that what is held at rest can be compared.

    A reload makes new processes: which sizes came to which of them after it is chance, and so is what they keep.
    """

    def finish(visitor: Visitor) -> None:
        for outcome in visitor.last_round():
            findings.add(outcome)
        visitor.close()

    with ThreadPoolExecutor(len(visitors)) as threads:
        list(threads.map(finish, visitors))


@contextmanager
def _visits(visitors: list[Visitor], findings: Findings) -> Iterator[None]:
    """Let all of them visit for the length of the block, each in a thread of its own."""
    stop = threading.Event()

    def visit(visitor: Visitor) -> None:
        while not stop.is_set():
            findings.add(visitor.visit())

    with ThreadPoolExecutor(len(visitors)) as threads:
        visits = [threads.submit(visit, visitor) for visitor in visitors]
        try:
            yield
        finally:
            stop.set()
    for done in visits:
        done.result()


@contextmanager
def _health_checks(service: RunningService, findings: Findings) -> Iterator[None]:
    stop = threading.Event()

    def check() -> None:
        while not stop.wait(0.5):
            for path in ("/health/live", "/health/ready"):
                started = time.perf_counter()
                try:
                    status = httpx.get(service.url + path, timeout=30).status_code
                except httpx.HTTPError as error:
                    findings.faults[f"{path} did not answer: {type(error).__name__}"] += 1
                else:
                    if status != 200:
                        findings.faults[f"{path} answered {status}"] += 1
                findings.health.append(time.perf_counter() - started)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if max(findings.health, default=0.0) > _HEALTH_SECONDS:
        findings.faults[f"a health check took more than {_HEALTH_SECONDS:g} s"] += 1


def _reload(service: RunningService, bundle: Path, findings: Findings, *, is_good: bool) -> None:
    """Have the bundle taken as it is, or one that is damaged refused."""
    model = bundle / MODEL_FILE
    content = model.read_bytes()
    before = len(service.log)
    if not is_good:
        model.write_bytes(content[:-1])
    service.process.send_signal(signal.SIGHUP)
    expected = '"reloaded"' if is_good else "not reloaded: "
    try:
        until(lambda: any(expected in line for line in service.log[before:]), 60)
    except AssertionError:
        findings.faults[f"no line in the log that says {expected!r}"] += 1
    model.write_bytes(content)


def growth(rests: list[AtRest]) -> list[str]:
    """Return what grew: from the earlier rests to the later ones, or in each generation of fronts from its first rest.

    What leaks is missing at every later rest; what chance left at one, an arena or a thread, is gone at another.
    """
    if len(rests) < 4:  # two rests a generation, and two of each half
        return []
    half, pairs = len(rests) // 2, len(rests) // 2 * 2
    grown = []
    bounds = {
        "megabytes": _MEMORY_MIB,
        "supervisor": _SUPERVISOR_MIB,
        "threads": _LATE_THREADS * rests[0].processes,
        "files": 0,
        "processes": 0,
    }
    for name, much in bounds.items():
        values = [getattr(rest, name) for rest in rests]
        before, after = min(values[:half]), min(values[half:])
        if after > before + max(much, (_MEMORY_FACTOR - 1) * before if name == "megabytes" else 0):
            grown.append(f"{name} grew from {before:.0f} to {after:.0f}")
        within = min(last - first for first, last in zip(values[:pairs:2], values[1:pairs:2], strict=True))
        if within > much:
            grown.append(f"{name} grew by {within:.0f} or more in each generation of fronts")
    return grown


def _print(findings: Findings, rests: list[AtRest]) -> None:
    kinds = Counter((outcome.kind, outcome.status) for outcome in findings.outcomes)
    click.echo(f"{len(findings.outcomes)} requests")
    for (kind, status), count in sorted(kinds.items()):
        click.echo(f"  {kind:12} {status or 'not waited for':>14} {count:7}")
    health = sorted(findings.health)
    if health:
        percent = [1000 * health[min(len(health) - 1, int(len(health) * share))] for share in (0.5, 0.99, 1)]
        click.echo(
            f"health checks: {len(health)}; median {percent[0]:.0f} ms, p99 {percent[1]:.0f}, max {percent[2]:.0f}"
        )
    for number, rest in enumerate(rests, 1):
        click.echo(
            f"at rest {number}: {rest.megabytes:.1f} MiB, the supervisor {rest.supervisor:.1f},"
            f" {rest.threads} threads, {rest.files} files,"
            f" {rest.processes} processes"
        )
    for fault, count in findings.faults.items():
        click.echo(f"fault: {fault} ({count} times)")
    if not findings.faults:
        click.echo("no fault")


if __name__ == "__main__":
    main()
