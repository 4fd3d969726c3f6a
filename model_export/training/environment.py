"""What was asked of a training, what it ran on and learned from, for the record and for an exact resume."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_export import encoders
from model_export.atomic import write_text
from model_export.config import Recipe, Source
from model_export.errors import InvalidData
from model_export.training.dataset import Sample
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware

RECIPE_FILE, ENVIRONMENT_FILE = "recipe.json", "environment.json"
_PACKAGES = ("tessera", "torch", "numpy", "pillow", *encoders.PACKAGES)


def digest_of(training: Mapping[Source, Sequence[Sample]], held_out: Sequence[Sample]) -> str:
    """Return a SHA-256 over the names, pixels, class maps and labels of all samples, in their order."""
    digest = hashlib.sha256()
    for source, samples in [*training.items(), ("held out", held_out)]:
        digest.update(f"{source} {len(samples)}\n".encode())
        for sample in samples:
            digest.update(f"{sample.name} {sample.image.shape} {sample.labels} {sample.guesses}\n".encode())
            digest.update(np.ascontiguousarray(sample.image).data)
            digest.update(np.ascontiguousarray(sample.class_map).data)
    return digest.hexdigest()


def asked_of(recipe: Recipe, fold: Fold) -> dict[str, Any]:
    """Return what `recipe.json` says."""
    return {"recipe": recipe.model_dump(mode="json"), "fold": str(fold)}


def write_asked(run: Path, asked: Mapping[str, Any]) -> None:
    """Write `recipe.json` to the run folder, which is made when missing.

    Raises:
        InvalidData: The folder holds another; what is in it may follow from that one.
    """
    path = run / RECIPE_FILE
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidData(f"{path}: not JSON; choose another run folder") from error
        if before != asked:
            raise InvalidData(f"{run}: started with {difference(before, asked)}")
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / RECIPE_FILE, json.dumps(asked, indent=2) + "\n")


def differing(recipe: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return the first name of which two recipes say different things, or that one of them lacks; None if all agree."""
    lacking = object()
    names = {**recipe, **other}
    return next((name for name in names if recipe.get(name, lacking) != other.get(name, lacking)), None)


def difference(theirs: Any, ours: Mapping[str, Any]) -> str:
    """Say in half a line how a run was started otherwise than it is asked to go on."""
    if isinstance(theirs, dict) and isinstance(theirs.get("recipe"), dict):
        before = {**theirs["recipe"], "fold": theirs.get("fold")}
        after = {**ours["recipe"], "fold": ours["fold"]}
        name = differing(after, before)
        if name == "epochs":
            reason = "the learning rate falls over all epochs, so a run is not lengthened"
            return f"{before.get(name)} epochs, not {after[name]}: {reason}; choose another run folder"
        if name and name not in before:
            return f"a recipe without {name}, by another version of the program; choose another run folder"
        if name and name not in after:
            return f"a recipe with {name}, by another version of the program; choose another run folder"
        if name:
            return f"{name} {before[name]}, not {after[name]}; choose another run folder"
    return "another recipe or fold; choose another run folder"


def describe(hardware: Hardware) -> dict[str, Any]:
    """Return the versions, the device, and how many processes and threads a training has."""
    cuda = hardware.device.type == "cuda"
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": torch.cuda.get_device_name(hardware.device) if cuda else "cpu",
        "processes": hardware.processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def read_environment(run: Path) -> dict[str, Any]:
    """Return what the run folder notes; nothing when it notes nothing yet.

    Raises:
        InvalidData: It is damaged.
    """
    path = run / ENVIRONMENT_FILE
    try:
        noted = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidData(f"{path}: not JSON of an object: {error}; remove it to go on") from error
    seconds = noted.get("seconds", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise InvalidData(f"{path}: seconds is {seconds!r}, a number is needed; remove the file to go on")
    return noted


def write_environment(run: Path, environment: Mapping[str, Any]) -> None:
    """Replace the run folder's note."""
    write_text(run / ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n")
