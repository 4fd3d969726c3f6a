"""The page's plots. matplotlib's figures are used without `pyplot`, as in `model_export/report`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.serving.figures import OWN, Row

INK, OURS, PEERS, LIMIT = "#24292f", "#0072b2", "#9aa5b1", "#d55e00"
_DPI = 110
_LINE = 1.22
"""By what factor names on the latency's axis must lie apart."""
_NETWORKS = {"default": "the default network", "free": "a network that costs nothing"}


def write_capacity(networks: dict[str, list[Row]], limits: dict[str, float], file: Path) -> None:
    """Draw patches a second of each server, a panel for each network, with the roofline where bars come near it."""
    figure = Figure(figsize=(5.5 * len(networks), 3.4), layout="constrained")
    for axes, (network, found) in zip(
        figure.subplots(1, len(networks), squeeze=False)[0], networks.items(), strict=True
    ):
        _bars(axes, found, [row.per_second for row in found], "{:.0f}")
        axes.axvline(limits[network], color=LIMIT, linewidth=1.5)
        axes.annotate(
            f"roofline {limits[network]:.0f}",
            (limits[network], -0.55),
            color=LIMIT,
            ha="right",
            va="bottom",
            annotation_clip=False,
        )
        axes.set_xlim(0, 1.08 * max(limits[network], *(row.per_second for row in found)))
        axes.set_title(f"patches a second, {_NETWORKS[network]}", color=INK, fontsize=10, pad=18)
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")


def write_latency(network: str, found: Sequence[Row], file: Path) -> None:
    """Draw p99 against the share of each server's own capacity, and idle memory."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    latency, memory = figure.subplots(1, 2)
    ends: list[tuple[float, str, str]] = []
    for row in found:
        style = {"color": OURS, "linewidth": 2.5, "zorder": 3} if row.name == OWN else {"color": PEERS, "zorder": 2}
        shares = [0.0, *(100 * share for share in row.opened)]
        values = [row.alone_ms, *(p99 for _, p99 in row.opened.values())]
        latency.plot(shares, values, marker="o", markersize=4, **style)
        ends.append((values[-1], row.title, OURS if row.name == OWN else INK))
    last = 100 * max((share for row in found for share in row.opened), default=0.0)
    places = _apart([value for value, _, _ in sorted(ends)])
    for place, (_, title, color) in zip(places, sorted(ends), strict=True):
        latency.annotate(title, (last, place), xytext=(7, 0), textcoords="offset points", color=color, va="center")
    latency.set_yscale("log")
    # A name that lies outside is not drawn.
    latency.set_ylim(top=max([latency.get_ylim()[1], *(_LINE * place for place in places)]))
    latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    latency.set_xlim(-3, last + 25)
    latency.yaxis.set_major_formatter("{x:.0f}")
    latency.yaxis.set_minor_formatter(NullFormatter())
    latency.set_xlabel("load, % of the server's own capacity (0: one request at a time, median)", color=INK)
    latency.set_title(f"99th percentile of latency, ms, {_NETWORKS[network]}", color=INK, fontsize=10)
    _plain(latency)
    by_memory = sorted(found, key=lambda row: row.idle_mb)
    _bars(memory, by_memory, [row.idle_mb for row in by_memory], "{:.0f}")
    memory.set_title("memory when idle, MiB (PSS of all processes)", color=INK, fontsize=10)
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")


def write_soak(along: Sequence[dict[str, float]], file: Path) -> None:
    """Draw memory along many requests."""
    figure = Figure(figsize=(5.5, 2.6), layout="constrained")
    axes = figure.subplots()
    values = [weight["own_mb"] for weight in along]
    axes.plot([weight["requests"] for weight in along], values, color=OURS, marker="o", markersize=4)
    axes.set_ylim(0, 1.2 * max(values))
    axes.set_xlabel("requests", color=INK)
    axes.set_title("memory of all processes that lies in no file, MiB", color=INK, fontsize=10)
    _plain(axes)
    figure.savefig(file, format="png", dpi=_DPI, facecolor="white")


def _apart(values: Sequence[float]) -> list[float]:
    """Return where to write the names of rising `values` on a logarithmic axis, none over another."""
    places: list[float] = []
    for value in values:
        places.append(max(value, _LINE * places[-1]) if places else value)
    return places


def _bars(axes: Axes, found: Sequence[Row], values: Sequence[float], shown: str) -> None:
    bars = axes.barh(
        [row.title for row in found], values, color=[OURS if row.name == OWN else PEERS for row in found], height=0.65
    )
    axes.bar_label(bars, [shown.format(value) for value in values], padding=3, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(values))
    _plain(axes)
    axes.tick_params(axis="y", length=0)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
