"""A recipe from start to end: its teachers, what they label, and its own training."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from app.pathology.arrays import ClassMap
from app.pathology.classes import TissueClass
from model_export.atomic import replacing, write_text
from model_export.config import Recipe, Source, Teacher, load_recipe, teachers_of
from model_export.errors import InvalidData, first_line
from model_export.training.dataset import IGNORE, Sample, read_indices
from model_export.training.environment import asked_of, write_asked
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware
from model_export.training.loggers import Kind
from model_export.training.loop import Progress, Trainer
from model_export.training.run_state import LAST_FILE
from model_export.training.teacher import fill_unknown
from model_export.training.weak import labels_alone

TEACHER_FOLDER = "teacher"
LABELS_FOLDER = "labels"
_ASKED_FILE = "teacher.json"
_UNKNOWN = (128, 128, 128)
"""Colour of a pixel whose class is not known."""


def train_recipe(
    run: Path,
    classes: Sequence[TissueClass],
    recipe: Recipe,
    sources: Mapping[Source, Sequence[Sample]],
    held_out: Sequence[Sample],
    fold: Fold,
    progress: Progress,
    hardware: Hardware | None = None,
    logger: Kind = "csv",
) -> nn.Module:
    """Train as `recipe` says, going on where `run` stopped, and return the averaged network, in evaluation mode.

    A teacher learns from the same training part as the network that it teaches: what is held out is seen by neither.

    Args:
        run: The run folder; each teacher has one of its own in it.
        classes: The classes of the class maps.
        recipe: What to do.
        sources: The training samples of each source that the recipe, or its teacher's, draws from.
        held_out: Samples to validate on; may be empty.
        fold: Which fold `held_out` is, for the record.
        progress: Told of every epoch.
        hardware: What to compute on; one process on the CPU by default.
        logger: What to keep beside the CSV files.

    Raises:
        InvalidRecipe: Its batches, or those of a teacher, cannot be shared evenly by the processes. Nothing is written.
        InvalidData: Two images that a teacher is to label have one name. Nothing is written.
    """
    hardware = hardware or Hardware()
    hardware.require_shareable(recipe.batch_size)
    for name, taught_by in teachers_of(recipe).items():
        hardware.require_shareable(taught_by.batch_size, name)
    own = seen_by(recipe, sources, classes)
    labels = run / TEACHER_FOLDER / LABELS_FOLDER
    if recipe.teacher is not None:
        for name in recipe.shares:
            _refuse_twins(labels / name, own[name])
    if hardware.first and recipe.teacher is not None and not (run / LAST_FILE).exists():
        write_asked(run, asked_of(recipe, fold))  # the folder is taken from now on, not hours later
    if recipe.teacher is not None:
        networks: list[nn.Module] = []
        first = load_recipe(recipe.teacher.recipe)
        for seed in recipe.teacher.seeds:
            progress.line(f"teacher with seed {seed}")
            folder = run / TEACHER_FOLDER / f"seed-{seed}"
            seeded = first.model_copy(update={"seed": seed})
            networks.append(train_recipe(folder, classes, seeded, sources, held_out, fold, progress, hardware, logger))
        with hardware.first_alone():  # the others find what it wrote
            if hardware.first:
                _claim(labels, recipe.teacher, networks)
            own = {
                name: _labelled(labels / name, networks, own[name], recipe.teacher, classes) for name in recipe.shares
            }
        progress.line(f"what the teachers are sure of: {labels}")

    trainer = Trainer(run, classes, recipe, own, held_out, fold, hardware, logger)
    if trainer.resume():
        progress.line(f"resuming after epoch {trainer.state.epochs_done}")
    trainer.train(progress)
    network: nn.Module = trainer.learner.averaged.module
    return network.eval()


def seen_by(
    recipe: Recipe, sources: Mapping[Source, Sequence[Sample]], classes: Sequence[TissueClass]
) -> dict[Source, Sequence[Sample]]:
    """Return what `recipe` learns from: the samples of `sources` that it draws from, without what it is not to know."""
    seen = {name: sources[name] for name in recipe.shares}
    if recipe.label_patch_px is not None and "wsss4luad" in seen:
        seen["wsss4luad"] = labels_alone(seen["wsss4luad"], recipe.label_patch_px, classes)
    return seen


def _refuse_twins(folder: Path, samples: Sequence[Sample]) -> None:
    names = [Path(sample.name).stem for sample in samples if sample.guesses]
    if len(set(names)) < len(names):
        raise InvalidData(f"{folder}: two images of one name cannot both keep their labels here")


def _claim(folder: Path, teacher: Teacher, networks: Sequence[nn.Module]) -> None:
    """Note in `folder` what its labels follow from, or refuse it when they follow from something else."""
    asked = {**teacher.model_dump(mode="json"), "weights": [_digest_of(network) for network in networks]}
    note = folder / _ASKED_FILE
    if note.is_file():
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"{note}: not JSON: {first_line(error)}; remove {folder} to label anew") from error
        if before != asked:
            raise InvalidData(f"{folder}: labelled by another teacher; remove the folder or choose another run folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(asked, indent=2) + "\n")


def _digest_of(network: nn.Module) -> str:
    """Return a SHA-256 over the weights and statistics of `network`, by name."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(np.ascontiguousarray(value.cpu().numpy()).data)
    return digest.hexdigest()


def _labelled(
    folder: Path,
    networks: Sequence[nn.Module],
    samples: Sequence[Sample],
    teacher: Teacher,
    classes: Sequence[TissueClass],
) -> list[Sample]:
    """Return `samples` with their unknown pixels filled, kept in `folder` as palette PNGs to look at and to resume."""
    filled = []
    for sample in samples:
        path = folder / f"{Path(sample.name).stem}.png"
        if not sample.guesses:
            filled.append(sample)
        elif path.is_file():
            filled.append(replace(sample, class_map=_read(path, sample, classes)))
        else:
            done = fill_unknown(networks, sample, teacher.confidence, teacher.scales)
            _write(path, done.class_map, classes)
            filled.append(done)
    return filled


def _read(path: Path, sample: Sample, classes: Sequence[TissueClass]) -> ClassMap:
    colors = {index: tissue.color for index, tissue in enumerate(classes)}
    class_map = read_indices(path, {**colors, IGNORE: _UNKNOWN})
    if class_map.shape != sample.class_map.shape:
        raise InvalidData(f"{path}: not of {sample.name}; remove the folder to label anew")
    return class_map


def _write(path: Path, class_map: ClassMap, classes: Sequence[TissueClass]) -> None:
    """Write a palette PNG, grey where nothing is known, in one step."""
    palette = [channel for tissue in classes for channel in tissue.color]
    palette += [*_UNKNOWN] * (IGNORE + 1 - len(classes))
    picture = Image.fromarray(class_map).convert("P")
    picture.putpalette(palette)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        picture.save(file, "PNG")
