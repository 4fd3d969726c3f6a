"""The training loop: one for both phases, and the run folder it keeps.

A run folder holds `recipe.json` (what was asked for), `environment.json` (on what, and how long it took), `metrics.csv`
(a row for each phase of each epoch), `steps.csv` (one for each optimiser step), `last.pth` (everything a resumed
training needs) and `best.pth` (the averaged weights of the best validation loss, or of the last epoch where nothing is
held out).
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.pathology.classes import TissueClass
from model_export.checkpoint import load_checkpoint, save_checkpoint
from model_export.config import Recipe, Source
from model_export.errors import InvalidCheckpoint, InvalidRecipe
from model_export.network import network_for
from model_export.training import loggers
from model_export.training.augment import Batch, BatchSource
from model_export.training.dataset import IGNORE, Sample
from model_export.training.environment import (
    asked_of,
    describe,
    difference,
    digest_of,
    read_environment,
    write_asked,
    write_environment,
)
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware
from model_export.training.losses import parts
from model_export.training.optimizer import learning_rate, optimizer_of
from model_export.training.prefetch import batches
from model_export.training.scores import Scores, score
from model_export.training.statistics import take_statistics

BEST_FILE, LAST_FILE = "best.pth", "last.pth"


class Progress(Protocol):
    """What the loop tells while it works."""

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        """Show progress through `steps`, which the loop iterates over inside the context."""

    def line(self, text: str) -> None:
        """Show one finished line."""


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout: the same after a resume, and another in each process.

    torch's generator for CPUs takes 32 bits of it.
    """
    first = seed * 1_000_003 + step
    return int(np.random.SeedSequence([first, rank]).generate_state(1)[0]) if rank else first


class Trainer:
    """One training: network, optimiser, averaged weights and the run folder.

    Args:
        run: The run folder; made when missing.
        classes: The classes of the class maps.
        recipe: What to do.
        training: Samples to learn from, by source.
        held_out: Samples to validate on after each epoch; may be empty.
        fold: Which fold `held_out` is, for the record.
        hardware: What to compute on. Of several processes each makes a trainer, and all train together.
        logger: What to keep beside the CSV files.

    Raises:
        InvalidRecipe: The batches cannot be shared evenly by the processes.
    """

    def __init__(
        self,
        run: Path,
        classes: Sequence[TissueClass],
        recipe: Recipe,
        training: Mapping[Source, Sequence[Sample]],
        held_out: Sequence[Sample],
        fold: Fold,
        hardware: Hardware | None = None,
        logger: loggers.Kind = "csv",
    ) -> None:
        self.hardware = hardware or Hardware()
        self.hardware.require_shareable(recipe.batch_size)
        torch.manual_seed(recipe.seed)
        self.run = run
        self.classes = classes
        self.recipe = recipe
        self.held_out = held_out
        self.logger = logger
        self.source = BatchSource(training, classes, recipe)
        network = network_for(classes, dropout=recipe.dropout, detail=recipe.detail)
        network.to(self.hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        if self.hardware.processes > 1 and self.hardware.device.type == "cuda":  # torch has it for GPUs alone
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            network = convert(network)  # type: ignore[no-untyped-call]
        network.freeze(recipe.frozen_blocks, recipe.frozen_statistics)
        self.network = network
        self._trained = self.hardware.shared(network)
        self.optimizer = optimizer_of(network, recipe)
        self.epochs_done = 0
        self.best_loss = math.inf
        self.rows: list[dict[str, Any]] = []
        self.asked = asked_of(recipe, fold)
        self.data = digest_of(training, held_out)
        counts = {name: len(samples) for name, samples in training.items()}
        self._environment = {**describe(self.hardware), "images": counts, "held_out": len(held_out), "data": self.data}

    def resume(self) -> bool:
        """Go on from the run folder's last epoch; return whether there was one.

        Raises:
            InvalidCheckpoint: The run was started with another recipe, fold or other images, or its checkpoint is
                damaged. More epochs are another recipe too: the learning rate's schedule spans all of them.
        """
        path = self.run / LAST_FILE
        if not path.exists():
            return False
        state = load_checkpoint(path)
        if state.get("asked") != self.asked:
            raise InvalidCheckpoint(f"{path}: started with {difference(state.get('asked'), self.asked)}")
        if state.get("data") != self.data:
            raise InvalidCheckpoint(f"{path}: started with other images, or others held out; choose another run folder")
        try:
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epochs_done, self.best_loss, self.rows = state["epochs_done"], state["best_loss"], state["rows"]
            self._check_progress()
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f": {error}" if type(error) is ValueError else ""
            raise InvalidCheckpoint(f"{path}: not the state of a training{reason}") from error
        return True

    def _check_progress(self) -> None:
        """Make sure that what was resumed counts epochs of this recipe, with a row for each of their phases.

        Raises:
            ValueError: It does not.
        """
        if type(self.epochs_done) is not int or not 0 <= self.epochs_done <= self.recipe.epochs:
            raise ValueError(f"{self.epochs_done!r} of {self.recipe.epochs} epochs are done")
        phases = ("train", "validate") if self.held_out else ("train",)
        wanted = [(epoch + 1, phase) for epoch in range(self.epochs_done) for phase in phases]
        if [(row["epoch"], row["phase"]) for row in self.rows] != wanted:
            raise ValueError(f"its rows are not of {self.epochs_done} epochs")
        if not all(isinstance(loss, float) for loss in (self.best_loss, *(row["loss"] for row in self.rows))):
            raise ValueError("a loss is no number")

    def train(self, progress: Progress) -> Path:
        """Run the epochs that are left and return the path of the kept weights.

        Raises:
            InvalidRecipe: The loss is no longer finite.
            Unavailable: The logger's package is not installed.
        """
        if self.epochs_done == self.recipe.epochs:
            return self.run / BEST_FILE
        if not self.hardware.first:
            while self.epochs_done < self.recipe.epochs:
                self._train_epoch(progress, [])
                self.epochs_done += 1
            return self.run / BEST_FILE
        loggers.require(self.logger)
        write_asked(self.run, self.asked)
        spent = read_environment(self.run).get("seconds", 0.0) if self.epochs_done else 0.0
        started = time.monotonic()
        steps_done = self.epochs_done * self.recipe.steps_per_epoch
        with loggers.opened(self.logger, self.run, self.asked, self.rows, steps_done) as told:
            while self.epochs_done < self.recipe.epochs:
                rows = []
                for phase in ("train", "validate") if self.held_out else ("train",):
                    row = self._train_epoch(progress, told) if phase == "train" else self._validate()
                    rows.append({"epoch": self.epochs_done + 1, "phase": phase, **row})
                    shown = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
                    progress.line(f"epoch {self.epochs_done + 1}/{self.recipe.epochs}  {phase:8}  {shown}")
                self.rows += rows
                self.epochs_done += 1
                for logger in told:
                    logger.epoch(rows, self.epochs_done * self.recipe.steps_per_epoch - 1)
                seconds = round(spent + time.monotonic() - started, 1)
                write_environment(self.run, {**self._environment, "seconds": seconds})
                self._keep()
        return self.run / BEST_FILE

    def _train_epoch(self, progress: Progress, told: Sequence[loggers.Logger]) -> dict[str, float]:
        self.network.train()
        first = self.epochs_done * self.recipe.steps_per_epoch
        span = range(first, first + self.recipe.steps_per_epoch)
        total = 0.0
        cross_entropies: list[float] = []
        scores = Scores(self.classes)
        with progress.bar(span, f"epoch {self.epochs_done + 1}") as steps:
            for step, batch in zip(steps, batches(self.source, span, self.hardware.workers), strict=True):
                rate = learning_rate(self.recipe, step)
                terms = self._step(step, rate, batch, scores)
                loss = sum(terms.values())
                total += loss
                if bool((batch.class_maps != IGNORE).any()):  # else its 0 means nothing
                    cross_entropies.append(terms["cross_entropy"])
                for logger in told:
                    row = {"step": step, "epoch": self.epochs_done + 1, "learning_rate": rate, "loss": loss, **terms}
                    logger.step(row)
                if not math.isfinite(loss):
                    raise self._diverged()
        take_statistics(self.averaged, self.source, self.recipe)
        self._check_answer(batch)
        mean = {"cross_entropy": sum(cross_entropies) / len(cross_entropies)} if cross_entropies else {}
        return {"loss": total / self.recipe.steps_per_epoch, **mean, **scores.pixel_scores()}

    @torch.inference_mode()
    def _check_answer(self, batch: Batch) -> None:
        """Make sure that the averaged weights, which the epoch's last step may have spoilt, answer with numbers."""
        self.averaged.eval()
        image = batch.images[:1].to(self.hardware.device)
        if not all(bool(output.isfinite().all()) for output in self.averaged(image).values()):
            raise self._diverged()

    def _diverged(self) -> InvalidRecipe:
        return InvalidRecipe(f"the loss is no longer finite in epoch {self.epochs_done + 1}: lower learning_rate")

    def _step(self, step: int, rate: float, batch: Batch, scores: Scores) -> dict[str, float]:
        """Learn from `batch`, add its pixels to `scores` and return what each term added to the loss."""
        hardware = self.hardware
        torch.manual_seed(dropout_seed(self.recipe.seed, step, hardware.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        images = hardware.part(batch.images).to(hardware.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"):
            outputs = self._trained(images)
        outputs = {name: hardware.whole(output.float()) for name, output in outputs.items()}
        truth = Batch(*(getattr(batch, field.name).to(hardware.device) for field in fields(batch)))
        terms = parts(outputs, truth, self.recipe)
        self.optimizer.zero_grad()
        loss = torch.stack(list(terms.values())).sum()
        # A process has the gradients of its own crops; DistributedDataParallel takes their mean where the sum is meant.
        (loss * hardware.processes).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        scores.add_class_map(
            batch.class_maps.to(torch.uint8).numpy(), outputs["out"].argmax(dim=1).byte().cpu().numpy()
        )
        return {name: float(term.detach()) for name, term in terms.items()}

    def _validate(self) -> dict[str, float]:
        scores, losses = score(self.averaged, self.held_out, self.classes)
        cross_entropy = sum(losses) / len(losses)
        return {"loss": cross_entropy, "cross_entropy": cross_entropy, **scores.as_dict()}

    def _keep(self) -> None:
        """Save the run's state, and the averaged weights when they are the best so far."""
        noted = {
            "asked": self.asked,
            "classes": [tissue.name for tissue in self.classes],
            "held_out": [sample.name for sample in self.held_out],
        }
        loss = self.rows[-1]["loss"] if self.held_out else -float(self.epochs_done)  # nothing held out: the last wins
        if loss < self.best_loss:
            self.best_loss = loss
            weights = {"model": self.averaged.module.state_dict(), "epoch": self.epochs_done, **noted}
            save_checkpoint(self.run / BEST_FILE, weights)
        save_checkpoint(
            self.run / LAST_FILE,
            {
                **noted,
                "data": self.data,
                "network": self.network.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epochs_done": self.epochs_done,
                "best_loss": self.best_loss,
                "rows": self.rows,
            },
        )
