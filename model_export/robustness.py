"""How much of a network's score is left on spoiled images.

The truth is never touched: a class map is brought back to the image's own size and orientation before it is compared.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from app.pathology.classes import TissueClass
from model_export.atomic import write_text
from model_export.corruptions import Corruption
from model_export.errors import InvalidData
from model_export.predict import predict
from model_export.training.dataset import Sample
from model_export.training.scores import Scores

Results = Mapping[str, Mapping[str, float]]
"""Scores by name, by the corruption's name; the first is without any."""

RESULTS_FILE, TABLE_FILE = "robustness.json", "robustness.md"

_SHOWN = ("tissue_miou", "pixel_accuracy")


def score_corruption(
    corruption: Corruption, networks: Sequence[tuple[nn.Module, Sequence[Sample]]], classes: Sequence[TissueClass]
) -> dict[str, float]:
    """Return the class maps' scores by name, pooled over networks, each on its own spoiled samples."""
    scores = Scores(classes)
    for network, samples in networks:
        for sample in samples:
            class_map = corruption.restore(predict(network, corruption.change(sample.image)).class_map)
            height, width = sample.class_map.shape
            if class_map.shape != (height, width):
                class_map = np.asarray(Image.fromarray(class_map).resize((width, height), Image.Resampling.NEAREST))
            scores.add_class_map(sample.class_map, class_map)
    return scores.pixel_scores()


def write_results(results: Results, images: Sequence[str], out: Path, before: Results | None = None) -> None:
    """Write `robustness.json` and, as a table, `robustness.md` to the folder `out`.

    Args:
        results: What to write.
        images: The names of the images that were scored.
        out: A folder; made when missing.
        before: Results of another network on these images, for the table.
    """
    text = table(results, before)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / TABLE_FILE, text)
    write_text(out / RESULTS_FILE, json.dumps({"images": list(images), "corruptions": results}, indent=2) + "\n")


def read_results(path: Path, images: Sequence[str]) -> Results:
    """Read a `robustness.json` of the images of these names.

    Raises:
        InvalidData: It is no such file, does not name its images, or is of others.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        results: Results = found["corruptions"]
        if not results:
            raise ValueError("it holds no results")
        table(results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidData(f"{path}: not a robustness.json: {error}") from error
    named = found.get("images")
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InvalidData(f"{path}: does not name its images; write it anew with `robustness`")
    if odd := sorted(set(named) ^ set(images)):
        raise InvalidData(f"{path}: of other images than these: it {'has' if odd[0] in named else 'lacks'} {odd[0]}")
    return results


def table(results: Results, before: Results | None = None) -> str:
    """Return a table in Markdown: each score, and by how much it is less than without corruption.

    Args:
        results: What to show.
        before: Results of another network, for columns beside.
    """
    shown = [("", results)] if before is None else [("before: ", before), ("after: ", results)]
    titles = [f"{prefix}{name} (change)" for name in _SHOWN for prefix, _ in shown]
    lines = [f"| corruption | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    for corruption in results:
        cells = [_cell(found, corruption, name) for name in _SHOWN for _, found in shown]
        lines.append(f"| {corruption} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(results: Results, corruption: str, name: str) -> str:
    if name not in results.get(corruption, {}):
        return "-"
    value, whole = results[corruption][name], next(iter(results.values()))[name]
    return f"{value:.3f} ({value - whole:+.3f})"
