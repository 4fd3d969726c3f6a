"""From a result's raw figures to what the page states: medians of visits, ratios, and targets."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

OWN = "tessera"
OURS = ("tessera", "tessera-fp32")
DISTURBED = 0.1
"""Share of the machine that others took while a rate was measured, above which the page warns."""

_LOADED = 0.7
_NO_GROWTH_MB = 1.0
"""What a line through the weights may rise by and be called level: the allocator's noise."""

Verdict = Literal["reached", "not reached", "undecided", "not measured"]


@dataclass(frozen=True, slots=True)
class Row:
    """A server's figures: medians of its visits.

    Attributes:
        name: As the results have it.
        title: As people have it.
        how: Its configuration.
        precision: In which it ran the model.
        share: Of the roofline in that precision, sampled before and after each visit.
        in_fp32: Likewise of the float32 roofline, whichever it ran: rates of servers that were visited when the machine
            was not equally fast are compared by it.
        did_not_run: Why it was left out; None when it was not. Then all figures are of the visits before, if any.
        per_second: Patches answered in a second by the closed loop.
        server_ms: Processor time of all its processes a patch.
        others_share: The largest share of the machine that others took meanwhile.
        alone_ms: Median latency of one request at a time.
        opened: By share of its capacity: median and 99th percentile of latency, ms, of requests with a good answer.
        lost: By the same: the share of all visits' requests that had none.
        waited: The largest share of requests that an open loop may have sent late.
        failed: Requests without a good answer.
        ready_seconds: From start to first answer.
        idle_mb: Proportional set size of all its processes before the load; `after_mb` after it.
        processes: How many those are.
    """

    name: str
    title: str
    how: str
    precision: str
    share: float
    in_fp32: float
    did_not_run: str | None
    per_second: float
    server_ms: float
    others_share: float
    alone_ms: float
    opened: dict[float, tuple[float, float]]
    lost: dict[float, float]
    waited: float
    failed: int
    ready_seconds: float
    idle_mb: float
    after_mb: float
    processes: int


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that was set out to be reached.

    Attributes:
        what: In words.
        wanted: The limit, in words.
        found: What was measured, in words, in brackets the least and the most of single visits; empty when nothing was.
        verdict: Whether it was reached; undecided where a single visit says otherwise.
    """

    what: str
    wanted: str
    found: str
    verdict: Verdict


def with_alone(result: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return a result with what another run measured of tessera alone and this one did not.

    Raises:
        ValueError: They are of other hardware, of another model or of other versions, or the other does not say which.
    """
    if result["format"] != other["format"]:
        raise ValueError(f"its format is {other['format']}, not {result['format']}")
    for what, value in result["hardware"].items():
        if what != "load_average" and other["hardware"].get(what) != value:
            raise ValueError(f"its hardware is another: {what} {other['hardware'].get(what)}, not {value}")
    if result["versions"]["tessera"] != other["versions"]["tessera"]:
        raise ValueError("it is of other versions of what tessera stands on")
    if "default" not in other["networks"]:
        raise ValueError("it was run without the default network, and does not say of which model it is")
    models = [one["networks"]["default"]["model"] for one in (result, other)]
    if models[0] != models[1]:
        raise ValueError(f"its model is {models[1]}, not {models[0]}")
    return {**result, "alone": {**other["alone"], **result["alone"]}}


def rows(network: dict[str, Any]) -> list[Row]:
    """Return the figures of a network's servers that were visited, the fastest first, by what the machine could do."""
    measured = [_row(name, server) for name, server in network["servers"].items() if server["visits"]]
    return sorted(measured, key=lambda row: -row.in_fp32)


def own_limit(network: dict[str, Any]) -> float:
    """Return the patches a second of the roofline in the precision that tessera ran, or else that the peers did."""
    own = network["servers"].get(OWN, {"precision": "fp32"})
    return float(network["rooflines"][own["precision"]]["per_second"])


def absent(network: dict[str, Any]) -> dict[str, str]:
    """Return the servers that failed, by title, and why."""
    return {server["title"]: server["did_not_run"] for server in network["servers"].values() if "did_not_run" in server}


def growth_mb(soak: dict[str, Any] | None) -> float | None:
    """Return the MiB that the requests of a soak left behind: what leaks evenly has its whole size.

    None where there was none, or only weights that change with who else maps a library.

    That is twice what the highest weight of the second half has over that of the first. Lower ones are of moments after
    a process had given back what it did not use at rest.
    """
    along = soak["along"] if soak else []
    if not along or "own_mb" not in along[0]:
        return None
    half = along[-1]["requests"] / 2
    first = max(weight["own_mb"] for weight in along if weight["requests"] <= half)
    second = max(weight["own_mb"] for weight in along if weight["requests"] > half)
    return 2 * float(second - first)


def targets(result: dict[str, Any]) -> list[Target]:
    """Judge a result by the medians of its visits; what it does not hold is not measured."""
    visits = max((len(server["visits"]) for server in _servers(result)), default=0)
    by_visit = [_reached(_of_one_visit(result, index)) for index in range(visits)]
    soak = result["alone"].get("soak")
    requests = soak["along"][-1]["requests"] if soak else 50_000
    aims = (
        _Aim("default network: share of the roofline", 0.92, at_least=True),
        _Aim("default network: times the best peer", 1.15, at_least=True),
        _Aim("free network: times the best peer", 1.6, at_least=True),
        _Aim("p99 at 70 % of capacity: times the latency of one request alone", 2.5),
        _Aim("from start to the first answer, s", 3.0),
        _Aim("resident when idle, MiB", 250, digits=0),
        _Aim(f"growth over {requests:,} requests, MiB", _NO_GROWTH_MB, digits=1),
        _Aim("4096 px patch: times its windows' inference, one after the other", 1.2),
        _Aim("GPU: share of the session alone, 16 JPEGs a request", 0.85, at_least=True),
    )
    each = [[value for value in values if value is not None] for values in zip(*by_visit, strict=True)]
    return [_judged(*one) for one in zip(aims, _reached(result), each or [[]] * len(aims), strict=True)]


@dataclass(frozen=True, slots=True)
class _Aim:
    """A target before it is judged: in words, its limit, on which side of that it lies, and with how many decimals."""

    what: str
    limit: float
    at_least: bool = False
    digits: int = 2


def _reached(result: dict[str, Any]) -> list[float | None]:
    """Return what a result has of each target, in their order; None where it has nothing."""
    found = {name: rows(network) for name, network in result["networks"].items()}
    default, free = (_own(found.get(name, [])) for name in ("default", "free"))
    default_peer, free_peer = (_best_peer(found.get(name, [])) for name in ("default", "free"))
    p99_ms = default.opened[_LOADED][1] if default and _LOADED in default.opened else None
    soak, big, batches = (result["alone"].get(name) for name in ("soak", "big", "batches"))
    on_gpu = batches if batches and batches["device"] == "cuda" else None
    return [
        _of(default, "share"),
        _ratio(_of(default, "in_fp32"), default_peer),
        _ratio(_of(free, "in_fp32"), free_peer),
        _ratio(p99_ms, _of(default, "alone_ms")),
        _of(default, "ready_seconds"),
        _of(default, "idle_mb"),
        growth_mb(soak),
        big and big["ratio"],
        on_gpu and on_gpu["share"],
    ]


def _servers(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [server for network in result["networks"].values() for server in network["servers"].values()]


def _of_one_visit(result: dict[str, Any], index: int) -> dict[str, Any]:
    """Return a result as it would be of one visit to each server: those of one round, unless one had failed."""
    networks = {
        name: {**network, "servers": {key: _visited_once(one, index) for key, one in network["servers"].items()}}
        for name, network in result["networks"].items()
    }
    return {**result, "networks": networks}


def _visited_once(server: dict[str, Any], index: int) -> dict[str, Any]:
    return {**server, "visits": server["visits"][index : index + 1]}


def _own(found: list[Row]) -> Row | None:
    return next((row for row in found if row.name == OWN), None)


def _of(row: Row | None, figure: str) -> float | None:
    return None if row is None else float(getattr(row, figure))


def _best_peer(found: list[Row]) -> float | None:
    return max((row.in_fp32 for row in found if row.name not in OURS), default=None)


def _row(name: str, server: dict[str, Any]) -> Row:
    visits = server["visits"]

    def median(figure: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(figure(visit) for visit in visits)

    opened: dict[float, tuple[float, float]] = {}
    lost: dict[float, float] = {}
    loops = [loop for visit in visits for loop in visit["open"]]
    for share in sorted({loop["share"] for loop in loops}):
        at_share = [loop for loop in loops if loop["share"] == share]
        opened[share] = (
            statistics.median(loop["p50_ms"] for loop in at_share),
            statistics.median(loop["p99_ms"] for loop in at_share),
        )
        lost[share] = sum(loop["failed"] for loop in at_share) / max(1, sum(loop["requests"] for loop in at_share))
    closed = [visit[kind] for visit in visits for kind in ("alone", "capacity")]
    return Row(
        name=name,
        title=f"{server['title']} ({server['variant']})" if ":" in name else server["title"],
        how=server["how"],
        precision=server["precision"],
        share=median(lambda visit: visit["capacity"]["per_second"] / visit["limits"][server["precision"]]),
        in_fp32=median(lambda visit: visit["capacity"]["per_second"] / visit["limits"]["fp32"]),
        did_not_run=server.get("did_not_run"),
        per_second=median(lambda visit: visit["capacity"]["per_second"]),
        server_ms=median(lambda visit: visit["capacity"]["server_ms"]),
        others_share=max(visit["capacity"]["others_share"] for visit in visits),
        alone_ms=median(lambda visit: visit["alone"]["p50_ms"]),
        opened=opened,
        lost=lost,
        waited=max((loop["waited"] for loop in loops), default=0.0),
        failed=sum(loop["failed"] for loop in loops) + sum(loop["failed"] + loop["refused"] for loop in closed),
        ready_seconds=median(lambda visit: visit["ready_seconds"]),
        idle_mb=median(lambda visit: visit["idle"]["pss_mb"]),
        after_mb=median(lambda visit: visit["after"]["pss_mb"]),
        processes=visits[-1]["idle"]["processes"],
    )


def _ratio(value: float | None, against: float | None) -> float | None:
    return value / against if value is not None and against else None


def _judged(aim: _Aim, whole: float | None, each: list[float]) -> Target:
    wanted = f"{'at least' if aim.at_least else 'at most'} {aim.limit:g}"
    if whole is None:
        return Target(aim.what, wanted, "", "not measured")
    shown = f"{whole:.{aim.digits}f}"
    bounds = [f"{value:.{aim.digits}f}" for value in (min(each), max(each))] if len(each) > 1 else [shown]
    found = shown if set(bounds) == {shown} else f"{shown} ({' to '.join(bounds)})"
    good = {value >= aim.limit if aim.at_least else value <= aim.limit for value in (whole, *each)}
    verdict: Verdict = "undecided" if len(good) > 1 else "reached" if good == {True} else "not reached"
    return Target(aim.what, wanted, found, verdict)
