"""A server as a tree of processes: started, weighed and stopped. Linux only: it reads /proc.

Servers start workers that start workers, and some let them go. The benchmark takes in what is let go (it is their
"subreaper", prctl(2)), so the tree is all that descends from the benchmark itself, as long as no load tool runs.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

_PR_SET_CHILD_SUBREAPER = 36
_STOP_SECONDS = 20
_KILL_ROUNDS, _KILL_ROUND_SECONDS = 400, 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """What a tree of processes holds, in MiB.

    Attributes:
        pss_mb: Proportional set size: a page that several processes share counts once in their sum.
        rss_mb: Resident set size: it counts once for each of them.
        own_mb: What of the PSS lies in no file, shared memory included. Who else maps a library changes the rest.
        processes: How many there are.
    """

    pss_mb: float
    rss_mb: float
    own_mb: float
    processes: int


class ServerFailed(click.ClickException):
    """A server ended, or did not answer in time."""


def adopt_orphans() -> None:
    """Become the parent of each process that a descendant leaves behind, and end them all when asked to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise click.ClickException(f"prctl failed: {os.strerror(ctypes.get_errno())}")


@contextmanager
def running(
    command: list[str], environment: Mapping[str, str], folder: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for as long as the block lasts; what is left of it afterwards is killed."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  the commands are this project's own
            command, cwd=folder, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _end_the_rest()


def memory(pids: Iterable[int] | None = None) -> Memory:
    """Weigh these processes; by default the tree."""
    pss = rss = own = processes = 0
    for pid in tree() if pids is None else pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        sizes = dict(line.split(":", 1) for line in lines[1:])
        pss += int(sizes["Pss"].split()[0])
        rss += int(sizes["Rss"].split()[0])
        own += sum(int(sizes[kind].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem"))
        processes += 1
    return Memory(pss / 1024, rss / 1024, own / 1024, processes)


def processor_seconds() -> float:
    """Return the processor time that the tree's processes, and those of theirs that ended, have taken."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _stats(tree())) / _TICKS


def machine_seconds() -> float:
    """Return the processor time that anything on this machine has taken since it started, stolen time included."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS


def tree(root: int | None = None) -> set[int]:
    """Return the ids of all processes that descend from `root`; by default, from this one."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    parents = {pid: int(fields[1]) for pid, fields in _stats(pids) if fields[0] != "Z"}
    found: set[int] = set()
    generation = {os.getpid() if root is None else root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation}
        found |= generation
    return found


def _stats(pids: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
    """Yield each process's fields of /proc/PID/stat from the third, its state, on; see proc(5)."""
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield pid, text.rpartition(")")[2].split()


def _end_the_rest() -> None:
    """Kill what the server left behind, and wait for it."""
    for _ in range(_KILL_ROUNDS):  # rounds, not seconds: a virtual machine that was halted must not fail a server
        left = tree()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # none is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not left:
            return
        time.sleep(_KILL_ROUND_SECONDS)
    raise ServerFailed(f"processes do not end: {sorted(tree())}")
