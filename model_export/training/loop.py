"""The training loop: epochs of steps and a validation, and who is told of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch

from app.pathology.classes import TissueClass
from model_export.config import Recipe, Source
from model_export.errors import InvalidRecipe
from model_export.training import loggers
from model_export.training.augment import BatchSource
from model_export.training.dataset import IGNORE, Sample
from model_export.training.folds import Fold
from model_export.training.hardware import Hardware
from model_export.training.learner import Learner
from model_export.training.optimizer import learning_rate
from model_export.training.prefetch import batches
from model_export.training.run_state import RunState
from model_export.training.scores import Scores, score
from model_export.training.statistics import take_statistics


class Progress(Protocol):
    """What the loop tells while it works."""

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        """Show progress through `steps`, which the loop iterates over inside the context."""

    def line(self, text: str) -> None:
        """Show one finished line."""


class Trainer:
    """One training: a learner, the batches it learns from, and the state of its run folder.

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
        self.classes = classes
        self.recipe = recipe
        self.held_out = held_out
        self.logger = logger
        self.source = BatchSource(training, classes, recipe)
        self.learner = Learner(classes, recipe, self.hardware)
        self.state = RunState(run, classes, recipe, training, held_out, fold, self.hardware)

    def resume(self) -> bool:
        """Go on from the run folder's last epoch, as `RunState.resume` does; return whether there was one."""
        return self.state.resume(self.learner)

    def train(self, progress: Progress) -> None:
        """Run the epochs that are left.

        Raises:
            InvalidRecipe: The loss is no longer finite.
            Unavailable: The logger's package is not installed.
        """
        state, steps_per_epoch = self.state, self.recipe.steps_per_epoch
        left = range(state.epochs_done + 1, self.recipe.epochs + 1)
        if not left:
            return
        if not self.hardware.first:
            for epoch in left:
                self._learn(epoch, progress, [])
            return
        loggers.require(self.logger)
        state.start()
        progress.line(f"a row for each step: {state.run / loggers.STEPS_FILE}")
        steps_done = state.epochs_done * steps_per_epoch
        with loggers.opened(self.logger, state.run, state.asked, state.rows, steps_done) as told:
            for epoch in left:
                rows = []
                for phase in state.phases:
                    row = self._learn(epoch, progress, told) if phase == "train" else self._validate()
                    rows.append({"epoch": epoch, "phase": phase, **row})
                    shown = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
                    progress.line(f"epoch {epoch}/{self.recipe.epochs}  {phase:8}  {shown}")
                for logger in told:
                    logger.epoch(rows, epoch * steps_per_epoch - 1)
                state.keep(self.learner, rows)

    def _learn(self, epoch: int, progress: Progress, told: Sequence[loggers.Logger]) -> dict[str, float]:
        """Take the steps of `epoch`, counted from 1, and return its mean losses and the scores of its crops."""
        learner, steps_per_epoch = self.learner, self.recipe.steps_per_epoch
        learner.network.train()
        span = range((epoch - 1) * steps_per_epoch, epoch * steps_per_epoch)
        total = 0.0
        cross_entropies: list[float] = []
        scores = Scores(self.classes)
        with progress.bar(span, f"epoch {epoch}") as steps:
            for step, batch in zip(steps, batches(self.source, span, self.hardware.workers), strict=True):
                rate = learning_rate(self.recipe, step)
                terms, called = learner.learn(step, rate, batch)
                scores.add_class_map(batch.class_maps.to(torch.uint8).numpy(), called)
                loss = sum(terms.values())
                total += loss
                if bool((batch.class_maps != IGNORE).any()):  # else its 0 means nothing
                    cross_entropies.append(terms["cross_entropy"])
                for logger in told:
                    logger.step({"step": step, "epoch": epoch, "learning_rate": rate, "loss": loss, **terms})
                if not math.isfinite(loss):
                    raise _diverged(epoch)
        take_statistics(learner.averaged, self.source, self.recipe)
        if not learner.answers_with_numbers(batch):
            raise _diverged(epoch)
        mean = {"cross_entropy": sum(cross_entropies) / len(cross_entropies)} if cross_entropies else {}
        return {"loss": total / steps_per_epoch, **mean, **scores.pixel_scores()}

    def _validate(self) -> dict[str, float]:
        scores, losses = score(self.learner.averaged, self.held_out, self.classes)
        cross_entropy = sum(losses) / len(losses)
        return {"loss": cross_entropy, "cross_entropy": cross_entropy, **scores.as_dict()}


def _diverged(epoch: int) -> InvalidRecipe:
    return InvalidRecipe(f"the loss is no longer finite in epoch {epoch}: lower learning_rate")
