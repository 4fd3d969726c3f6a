"""docs/performance.md and its plots, drawn from one result. Every figure on the page is made here; none is typed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.charts import write_capacity, write_latency, write_soak
from benchmarks.serving.figures import DISTURBED, OWN, Row, absent, growth_mb, own_limit, rows, targets

_NETWORKS = {
    "default": ("The default network", "This is the bundle that is shipped: it shows what a user gets."),
    "free": (
        "A network that costs nothing",
        "This graph has the same inputs and outputs and hardly computes anything: what is left is the serving itself.",
    ),
}


def write_report(result: dict[str, Any], names: Sequence[str], docs: Path) -> None:
    """Write `performance.md`, and its plots to `images/`, in the folder `docs`; `names` are the files it is of."""
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    found = {network: rows(measured) for network, measured in result["networks"].items()}
    limits = {network: own_limit(measured) for network, measured in result["networks"].items()}
    write_capacity(found, limits, images / "performance-capacity.png")
    shown = "default" if "default" in found else next(iter(found))
    write_latency(shown, found[shown], images / "performance-latency.png")
    if soak := result["alone"].get("soak"):
        write_soak(soak["along"], images / "performance-memory.png")
    (docs / "performance.md").write_text(page(result, names), encoding="utf-8")


def page(result: dict[str, Any], names: Sequence[str]) -> str:
    """Return the page as Markdown."""
    parts = [_head(result, names), _targets(result), "![Patches a second](images/performance-capacity.png)\n"]
    parts += [_network(kind, measured, result["settings"]) for kind, measured in result["networks"].items()]
    parts += ["![Latency and memory](images/performance-latency.png)\n", _alone(result["alone"]), _method(result)]
    return "\n".join(part for part in parts if part)


def _head(result: dict[str, Any], names: Sequence[str]) -> str:
    hardware, settings = result["hardware"], result["settings"]
    most = max((row.others_share for measured in result["networks"].values() for row in rows(measured)), default=0.0)
    lines = [
        "# Performance",
        "",
        "<!-- Written by `python -m benchmarks.serving report`; edit benchmarks/serving/report.py. -->",
        "",
        f"Tessera and its peers in one run, {result['date']}: {hardware['processor']}, {hardware['cores']} cores,"
        f" {hardware['memory_gib']:g} GiB, {hardware['system']}. A patch is a PNG of 224 px,"
        f" {settings['upload_bytes']:,} bytes. {settings['connections']} connections; figures are medians over"
        f" {settings['rounds']} visits to each server; each load lasts {settings['seconds']:g} s."
        f" All figures: {' and, of tessera alone, '.join(f'`benchmarks/results/{name}`' for name in names)}.",
    ]
    if result["kind"] != "full":
        lines += ["", "**A quick run**: long enough to see that all works, too short to decide anything."]
    if most > DISTURBED:
        lines += [
            "",
            f"**A disturbed run**: other programs took up to {100 * most:.0f} % of the machine while rates were"
            " measured. Compare the processor time a patch, which does not include other programs.",
        ]
    return "\n".join(lines) + "\n"


def _targets(result: dict[str, Any]) -> str:
    table = _table(
        ("target", "wanted", "measured", ""),
        ((target.what, target.wanted, target.found, target.verdict) for target in targets(result)),
    )
    said = "Medians of the visits; in brackets the least and the most that one visit alone would have.\n"
    return f"## Targets\n\n{table}\n{said}"


def _network(kind: str, measured: dict[str, Any], settings: dict[str, Any]) -> str:
    title, meaning = _NETWORKS[kind]
    found = rows(measured)
    own = next((row for row in found if row.name == OWN), None)
    parts = [
        f"## {title}\n\n{meaning} The roofline is the rate of one thread alone, times the number of cores:"
        f" {'; '.join(_limit(name, limit) for name, limit in measured['rooflines'].items())}.\n",
        _table(
            (
                "server",
                "model in",
                "patches a second",
                "of its roofline",
                "against tessera",
                "processor time a patch",
                "others took",
            ),
            (_capacity_cells(row, own) for row in found),
        ),
    ]
    shares = sorted({share for row in found for share in row.opened})
    parts.append(
        _table(
            ("latency, ms", "alone", *(f"{100 * share:.0f} %: p50" + " / p99" for share in shares), "failed"),
            (_latency_cells(row, shares) for row in found),
        )
    )
    parts.append(
        _table(
            ("server", "ready, s", "idle, MiB", "after the load, MiB", "processes", "how"),
            (
                (
                    row.title,
                    f"{row.ready_seconds:.1f}",
                    f"{row.idle_mb:.0f}",
                    f"{row.after_mb:.0f}",
                    str(row.processes),
                    row.how,
                )
                for row in found
            ),
        )
    )
    parts += [f"{title} did not run: {why}.\n" for title, why in absent(measured).items()]
    waited = max((row.waited for row in found), default=0.0)
    if waited:
        parts.append(
            f"Up to {100 * waited:.1f} % of an open loop's requests may have been sent late, because the answer before"
            " them on the same connection took longer than the time between two of its requests.\n"
        )
    if settings["decoder_of_peers"] != "pillow":
        parts.append(f"Peers decode with {settings['decoder_of_peers']}.\n")
    return "\n".join(parts)


def _limit(precision: str, limit: dict[str, float]) -> str:
    return (
        f"decode {limit['decode_ms']:.2f} ms, infer in {precision} {limit['infer_ms']:.2f} ms, encode"
        f" {limit['encode_ms']:.2f} ms, so {limit['per_second']:.1f} patches a second"
    )


def _capacity_cells(row: Row, own: Row | None) -> tuple[str, ...]:
    return (
        row.title,
        row.precision,
        f"{row.per_second:.1f}",
        f"{row.share:.2f}",
        f"{row.in_fp32 / own.in_fp32:.2f}" if own else "",
        f"{row.server_ms:.2f} ms",
        f"{100 * row.others_share:.0f} %",
    )


def _latency_cells(row: Row, shares: Sequence[float]) -> tuple[str, ...]:
    loads = (_latency_cell(row, share) if share in row.opened else "" for share in shares)
    return (row.title, f"{row.alone_ms:.1f}", *loads, str(row.failed))


def _latency_cell(row: Row, share: float) -> str:
    p50_ms, p99_ms = row.opened[share]
    percent = 100 * row.lost[share]
    lost = f" ({percent:.0f} % failed)" if percent >= 1 else " (under 1 % failed)" if percent else ""
    return f"{p50_ms:.0f} / {p99_ms:.0f}{lost}"


def _alone(alone: dict[str, Any]) -> str:
    parts = []
    if big := alone.get("big"):
        parts.append(
            f"A patch of 4096 px ({big['bytes'] / 2**20:.0f} MiB of PNG, {big['windows']} windows) is answered in"
            f" {big['latency_seconds']:.2f} s. The inference of its windows, one after the other in one thread, takes"
            f" {big['windows_seconds']:.2f} s. So the answer takes {big['ratio']:.2f} times that, and"
            f" {big['ratio_of_cores']:.2f} times what the cores would need for it if they shared it evenly.\n"
        )
    if uploads := alone.get("uploads"):
        parts.append(
            _table(
                ("upload", "images a second", "its roofline", "share", "p99, ms"),
                (
                    (
                        kind,
                        f"{figures['images_per_second']:.1f}",
                        f"{figures['roofline']['per_second']:.1f}",
                        f"{figures['share']:.2f}",
                        f"{figures['p99_ms']:.0f}",
                    )
                    for kind, figures in uploads.items()
                ),
            )
        )
    if batches := alone.get("batches"):
        parts.append(
            f"Forms of {batches['images_a_request']} JPEGs on {'a GPU' if batches['device'] == 'cuda' else 'the CPU'}:"
            f" {batches['images_per_second']:.1f} images a second end to end, {batches['share']:.2f} of what the"
            f" model's session reaches alone (batches of {batches['session_batch']}); at half of that load the p99 of a"
            f" request is {batches['half_load']['p99_ms']:.0f} ms.\n"
        )
    if (growth := growth_mb(alone.get("soak"))) is not None:
        along = alone["soak"]["along"]
        first, last = (f"{weight['own_mb']:.0f}" for weight in (along[0], along[-1]))
        parts.append(
            f"Over {along[-1]['requests']:,} requests the processes' own memory, without what lies in files, went from"
            f" {first} to {last} MiB. Growth is twice what the highest weight of the second half has over that of the"
            f" first: {growth:+.1f} MiB.\n\n"
            "![Memory](images/performance-memory.png)\n"
        )
    parts += [f"Not measured, {name}: {why}.\n" for name, why in alone.get("did_not_run", {}).items()]
    return "## Tessera alone\n\n" + "\n".join(parts) if parts else ""


def _method(result: dict[str, Any]) -> str:
    tools, versions = result["tools"], result["versions"]
    table = _table(
        ("environment", "versions"),
        (
            (name, ", ".join(f"{package} {version}" for package, version in found.items()))
            for name, found in versions.items()
        ),
    )
    return f"""## How it is measured

```
apt-get install wrk nghttp2-client
python -m benchmarks.serving [--quick] [--soak 50000] [--device cuda]
python -m benchmarks.serving report benchmarks/results/RESULT.json [benchmarks/results/ALONE.json]
```

- One server runs at a time. Each round visits all servers, and the next round visits them in the opposite order.
  Before and after its loads, a server's answer is compared with ONNX Runtime's own result for the image.
- Patches a second are measured in a closed loop: wrk {tools["wrk"]} with all connections busy. Latency is measured
  in an open loop: h2load {tools["h2load"]} sends requests evenly spaced, at shares of the server's own capacity, and
  the latency is the time from sending a request to the end of its answer. It is that of requests answered with status
  200 alone: where others were refused or had no answer, the table has their share beside it.
- The roofline is measured before and after each visit. A machine may be faster at one time than at another, so servers
  are compared by their share of the float32 roofline, for all servers alike, and not by their rates.
- Client and server share the cores. "Others took" is the share of the cores that neither of the two used: other
  programs, the kernel, other virtual machines.
- Memory is the proportional set size (PSS) of all processes of a server: a page that they share counts once.
- [The decision](decisions/0014-benchmarks.md) gives the reasons, and the configurations of the peers that were tried.

{table}"""


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
