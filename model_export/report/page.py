"""One page of a run folder that needs no other file: for the screen in both colour schemes, and for paper."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from model_export.atomic import write_text
from model_export.errors import InvalidData, first_line
from model_export.report.charts import DARK, LIGHT, Theme, curves, reliability, svg
from model_export.report.record import Record
from model_export.training.folds import Fold

REPORT_FILE = "report.html"
_GRID_QUALITY = 80
_MAX_SIDE_PX = 16383
"""WebP's limit; a longer grid is cut."""


def write_report(record: Record, path: Path) -> None:
    """Write the page of a training or a cross-validation.

    Raises:
        InvalidData: One of its pictures is damaged.
    """
    environment = Environment(
        loader=PackageLoader("model_export.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = record.folds or [record]
    page = environment.get_template("page.html.jinja").render(
        record=record,
        name=record.folder.resolve().name,
        recipe=_flat(runs[0].asked.get("recipe", {})),
        environment=_flat(record.trainings[0].environment),
        what=_what(record),
        duration=_duration(_seconds(record)),
        scores=_scores(record),
        confusion=_confusion(record.scores),
        labels=_labels(record.scores.get("labels", {})),
        images=sorted(record.scores.get("images", ()), key=lambda image: image.get("pixel_accuracy", 1.0)),
        curves=_themed(
            partial(curves, record.trainings), "Cross-entropy, total loss and scores by epoch, learning rate by step"
        ),
        reliability=_reliability(record.scores),
        grids=[(one.folder.name, _grid(one.grid)) for one in runs if one.grid],
        teachers=_teachers(record),
    )
    write_text(path, page)


def _what(record: Record) -> str:
    """Say what the run is, and of a cross-validation how far it is."""
    if not record.folds:
        held = record.asked.get("fold", "unknown")
        return "One training; nothing is held out." if held == "all" else f"One training; held out: fold {held}."
    asked = record.folds[0].fold.count or len(record.folds)
    done = {run.fold for run in record.folds if run.scores} & {Fold(index, asked) for index in range(asked)}
    if len(done) < asked:
        return f"Cross-validation over {asked} folds, unfinished: {len(done)} trained and scored."
    if "pooled" not in record.scores:
        return f"Cross-validation over {asked} folds, unfinished: their scores are not summed up yet."
    return f"Cross-validation over {asked} folds: each image is scored by a network that never saw it."


def _scores(record: Record) -> list[dict[str, Any]]:
    """Return a row for each score: of the one network, or pooled, mean, sd, over how many folds, and of each."""
    if "pooled" not in record.scores:
        return [{"name": name, "value": value} for name, value in record.scores.get("scores", {}).items()]
    mean, sd, count = record.scores["mean"], record.scores["sd"], record.scores.get("count", {})
    return [
        {
            "name": name,
            "value": value,
            "mean": mean.get(name),
            "sd": sd.get(name),
            "count": count.get(name),
            "folds": [fold.get(name) for fold in record.scores["folds"]],
        }
        for name, value in record.scores["pooled"].items()
    ]


def _confusion(scores: Mapping[str, Any]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return a row for each true class: its name, and of each predicted class the pixels and their share of the row."""
    if not {"classes", "confusion"} <= set(scores):
        return []
    rows = zip(scores["classes"], scores["confusion"], strict=True)
    return [(name, [(count, count / max(1, sum(row))) for count in row]) for name, row in rows]


def _labels(labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each label: its threshold, its F1, and how many of the images have it."""
    truth = labels.get("truth", [])
    return [
        {
            "name": name,
            "threshold": labels["thresholds"][index],
            "f1": labels["f1"][index],
            "images": sum(row[index] for row in truth),
            "of": len(truth),
        }
        for index, name in enumerate(labels.get("classes", ()))
    ]


def _reliability(scores: Mapping[str, Any]) -> Markup | None:
    calibration = scores.get("calibration", {})
    if not any(one["count"] for one in calibration.get("bins", ())):
        return None
    return _themed(partial(reliability, calibration), "Accuracy by confidence")


def _teachers(record: Record) -> list[tuple[str, Markup]]:
    shown = record.folds[0] if record.folds else record
    return [
        (teacher.folder.name, _themed(partial(curves, teacher.trainings), "Curves of the teacher"))
        for teacher in shown.teachers
    ]


def _seconds(record: Record) -> list[float]:
    """Return how long each training took: the run's, and those of all teachers behind it."""
    own = [run.environment["seconds"] for run in record.trainings if "seconds" in run.environment]
    return own + [each for run in record.trainings for teacher in run.teachers for each in _seconds(teacher)]


def _duration(seconds: Sequence[float]) -> str | None:
    return str(timedelta(seconds=round(sum(seconds)))) if seconds else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the values of nested tables by dotted name."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _themed(draw: Callable[[Theme], Figure], alternative: str) -> Markup:
    """Return a picture that follows the page's colour scheme; paper gets the light one."""
    light, dark = (_data_uri(svg(draw, theme).encode(), "svg+xml") for theme in (LIGHT, DARK))
    scheme = "screen and (prefers-color-scheme: dark)"
    return Markup('<picture><source srcset="{}" media="{}"><img src="{}" alt="{}"></picture>').format(
        dark, scheme, light, alternative
    )


def _grid(path: Path) -> str:
    """Return the grid as a WebP, a fifth of the PNG's bytes."""
    packed = io.BytesIO()
    try:
        with Image.open(path) as grid:
            grid.crop((0, 0, grid.width, min(grid.height, _MAX_SIDE_PX))).save(packed, "WEBP", quality=_GRID_QUALITY)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a damaged file
        raise InvalidData(f"{path}: not a readable picture: {first_line(error)}") from error
    return _data_uri(packed.getvalue(), "webp")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
