"""Charts of a run: its curves, and how far its confidences can be believed.

matplotlib's figures are used without `pyplot`, which keeps the last of them in the process and may look for a screen.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_export.atomic import replacing
from model_export.report.record import Record

CURVES_FILE = "curves.png"
_DPI = 110
_MIN_SHARE = 0.001
"""Share of the pixels that a range of confidences holds at least, if its accuracy is shown."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a chart: text and axes, and three series (Okabe and Ito's, lighter ones on a dark page)."""

    ink: str
    first: str
    second: str
    third: str


LIGHT = Theme("#24292f", "#0072b2", "#d55e00", "#009e73")
DARK = Theme("#d8dee4", "#56b4e9", "#e69f00", "#2fc49a")


def write_curves(record: Record) -> None:
    """Draw `curves.png` in a run folder, and in those of its folds and teachers."""
    with replacing(record.folder / CURVES_FILE) as file, _drawn_in(LIGHT):
        figure = curves(record.trainings, LIGHT)
        figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    for part in (*record.folds, *record.teachers):
        write_curves(part)


def svg(draw: Callable[[Theme], Figure], theme: Theme) -> str:
    """Return what `draw` draws, as SVG without a background, the same each time."""
    text = io.StringIO()
    with _drawn_in(theme):
        draw(theme).savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()


def curves(records: Sequence[Record], theme: Theme) -> Figure:
    """Draw losses and scores by epoch, and the learning rate by step; of each run a line.

    The loss that is learned from adds terms to the cross-entropy, and validation's does not: cross-entropy stands
    against cross-entropy, and the total is a line of its own, the only one of a training that did not log the other.
    """
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    loss, scores, rate = figure.subplots(1, 3)
    _axes(loss, "epoch", "loss")
    _axes(scores, "epoch", "score")
    _axes(rate, "step", "learning rate")
    for record in records:
        _line(loss, record.series("train", "cross_entropy"), theme.first, "cross-entropy, train")
        _line(loss, record.series("validate", "loss"), theme.second, "cross-entropy, validate")
        _line(loss, record.series("train", "loss"), theme.third, "total loss, train", ":")
        for phase, style in (("train", ":"), ("validate", "-")):
            suffix = ", train" if phase == "train" else ""
            for name, shown, color in (
                ("pixel_accuracy", "pixel accuracy", theme.first),
                ("tissue_miou", "tissue mean IoU", theme.second),
            ):
                _line(scores, record.series(phase, name), color, f"{shown}{suffix}", style)
        _line(rate, record.step_series("learning_rate"), theme.third, None)
    for axes in (loss, scores):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))  # above the axes
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    loss.set_ylim(0, 1.05 * loss.get_ylim()[1])
    rate.set_ylim(bottom=0)
    return figure


def reliability(calibration: Mapping[str, Any], theme: Theme) -> Figure:
    """Draw accuracy by confidence, with the diagonal of a perfect one, over where the pixels lie.

    A bin with few of the pixels counts below, and has no bar above: the accuracy of a handful says nothing.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, figure 1.

    Args:
        calibration: Its `bins` have `low`, `high`, `count`, and `confidence` and `accuracy` unless empty.
        theme: The colours.
    """
    bins = [one for one in calibration["bins"] if one["count"]]
    total = sum(one["count"] for one in bins)
    telling = [one for one in bins if one["count"] >= _MIN_SHARE * total]
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    accuracy, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _axes(accuracy, "", "accuracy")
    _axes(counts, "confidence", "share of pixels")
    _bars(accuracy, telling, [one["accuracy"] for one in telling], theme)
    accuracy.plot([0, 1], [0, 1], color=theme.ink, linestyle="--", linewidth=1, label="perfectly calibrated")
    accuracy.plot(
        [one["confidence"] for one in telling],
        [one["accuracy"] for one in telling],
        color=theme.second,
        marker="o",
        markersize=4,
        linewidth=1,
        label="this network",
    )
    accuracy.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    accuracy.set(xlim=(0, 1), ylim=(0, 1))
    _bars(counts, bins, [one["count"] / total for one in bins], theme)
    return figure


def _bars(axes: Axes, bins: Sequence[Mapping[str, Any]], heights: Sequence[float], theme: Theme) -> None:
    """Draw a bar over the range of each bin."""
    left, width = [one["low"] for one in bins], [one["high"] - one["low"] for one in bins]
    axes.bar(left, heights, width, align="edge", color=theme.first, alpha=0.75)


def _line(axes: Axes, points: tuple[list[int], list[float]], color: str, label: str | None, style: str = "-") -> None:
    """Draw a line; the first of several with one label names them in the legend."""
    if points[0]:
        label = None if label in axes.get_legend_handles_labels()[1] else label
        marker = "o" if len(points[0]) == 1 else ""
        (line,) = axes.plot(*points, color=color, label=label, marker=marker, linestyle=style, linewidth=1.6, alpha=0.8)
        line.set_markerfacecolor("none" if style == ":" else color)  # a point does not show its line's style


def _axes(axes: Axes, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(visible=True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


@contextmanager
def _drawn_in(theme: Theme) -> Iterator[None]:
    with mpl.rc_context(
        {
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "font.family": "sans-serif",
            "svg.fonttype": "none",
            "svg.hashsalt": "tessera",
        }
    ):
        yield
