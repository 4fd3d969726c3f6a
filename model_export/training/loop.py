"""The training loop: one for both phases, and the run folder it keeps.

A run folder holds `recipe.json` (what was asked for), `metrics.csv` (a row for each phase of each epoch), `last.pth`
(everything a resumed training needs) and `best.pth` (the averaged weights of the best validation loss, or of the last
epoch where nothing is held out).
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.pathology.classes import TissueClass
from model_export.checkpoint import load_checkpoint, save_checkpoint
from model_export.config import Recipe
from model_export.errors import InvalidCheckpoint, InvalidRecipe
from model_export.network import TissueNetwork
from model_export.predict import predict, segmentation_loss
from model_export.training.augment import BatchSource
from model_export.training.dataset import IGNORE, Sample
from model_export.training.folds import Fold
from model_export.training.losses import objective
from model_export.training.scores import Scores

LABEL_THRESHOLD = 0.5
"""A label is predicted from this probability on."""


class Progress(Protocol):
    """What the loop tells while it works."""

    def bar(self, steps: Iterable[int], title: str) -> AbstractContextManager[Iterable[int]]:
        """Show progress through `steps`, which the loop iterates over inside the context."""

    def line(self, text: str) -> None:
        """Show one finished line."""


class Trainer:
    """One training: network, optimiser, averaged weights and the run folder.

    Args:
        run: The run folder; made when missing.
        classes: The classes of the class maps.
        recipe: What to do.
        training: Samples to learn from.
        held_out: Samples to validate on after each epoch; may be empty.
        fold: Which fold `held_out` is, for the record.
    """

    def __init__(
        self,
        run: Path,
        classes: Sequence[TissueClass],
        recipe: Recipe,
        training: Sequence[Sample],
        held_out: Sequence[Sample],
        fold: Fold,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.run = run
        self.classes = classes
        self.recipe = recipe
        self.held_out = held_out
        self.batches = BatchSource(training, classes, recipe)
        label_count = sum(tissue.label for tissue in classes)
        self.network = TissueNetwork(len(classes), label_count, dropout=recipe.dropout)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        encoder = [*self.network.stem.parameters(), *self.network.blocks.parameters()]
        known = {id(parameter) for parameter in encoder}
        heads = [parameter for parameter in self.network.parameters() if id(parameter) not in known]
        self.optimizer = torch.optim.AdamW(
            [{"params": encoder, "rate": recipe.encoder_rate}, {"params": heads, "rate": 1.0}],
            weight_decay=recipe.weight_decay,
        )
        self.epochs_done = 0
        self.best_loss = math.inf
        self.rows: list[dict[str, Any]] = []
        self.asked = {"recipe": recipe.model_dump(mode="json"), "fold": str(fold)}

    def resume(self) -> bool:
        """Go on from the run folder's last epoch; return whether there was one.

        Raises:
            InvalidCheckpoint: The run was started with another recipe or fold, or its checkpoint is damaged.
        """
        path = self.run / "last.pth"
        if not path.exists():
            return False
        state = load_checkpoint(path)
        if state.get("asked") != self.asked:
            raise InvalidCheckpoint(f"{path}: started with another recipe or fold; choose another run folder")
        try:
            self.network.load_state_dict(state["network"])
            self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epochs_done, self.best_loss, self.rows = state["epochs_done"], state["best_loss"], state["rows"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidCheckpoint(f"{path}: not the state of a training") from error
        return True

    def train(self, progress: Progress) -> Path:
        """Run the epochs that are left and return the path of the kept weights."""
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "recipe.json").write_text(json.dumps(self.asked, indent=2) + "\n", encoding="utf-8")
        while self.epochs_done < self.recipe.epochs:
            for phase in ("train", "validate") if self.held_out else ("train",):
                row = self._train_epoch(progress) if phase == "train" else self._validate()
                self.rows.append({"epoch": self.epochs_done + 1, "phase": phase, **row})
                shown = "  ".join(f"{name} {value:.4f}" for name, value in row.items())
                progress.line(f"epoch {self.epochs_done + 1}/{self.recipe.epochs}  {phase:8}  {shown}")
            self.epochs_done += 1
            self._keep()
        return self.run / "best.pth"

    def _learning_rate(self, step: int) -> float:
        warmup = max(1, round(self.recipe.warmup * self.recipe.total_steps))
        if step < warmup:
            return self.recipe.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.recipe.total_steps - warmup)
        return self.recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _train_epoch(self, progress: Progress) -> dict[str, float]:
        self.network.train()
        first = self.epochs_done * self.recipe.steps_per_epoch
        total = 0.0
        with progress.bar(range(first, first + self.recipe.steps_per_epoch), f"epoch {self.epochs_done + 1}") as steps:
            for step in steps:
                torch.manual_seed(self.recipe.seed * 1_000_003 + step)  # dropout, the same after a resume
                batch = self.batches.batch(step)
                for group in self.optimizer.param_groups:
                    group["lr"] = self._learning_rate(step) * group["rate"]
                outputs = self.network(batch.images.contiguous(memory_format=torch.channels_last))
                loss = objective(outputs, batch, self.recipe.dice_weight, self.recipe.label_weight)
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                self.averaged.update_parameters(self.network)
                total += float(loss.detach())
        if not math.isfinite(total):
            raise InvalidRecipe(f"the loss is no longer finite in epoch {self.epochs_done + 1}: lower learning_rate")
        return {"loss": total / self.recipe.steps_per_epoch}

    def _validate(self) -> dict[str, float]:
        scores, losses = score(self.averaged, self.held_out, self.classes)
        return {"loss": sum(losses) / len(losses), **scores.as_dict()}

    def _keep(self) -> None:
        """Save the run's state, and the averaged weights when they are the best so far."""
        loss = self.rows[-1]["loss"] if self.held_out else -float(self.epochs_done)  # nothing held out: the last wins
        if loss < self.best_loss:
            self.best_loss = loss
            weights = {"model": self.averaged.module.state_dict(), "epoch": self.epochs_done, "asked": self.asked}
            save_checkpoint(self.run / "best.pth", weights)
        save_checkpoint(
            self.run / "last.pth",
            {
                "asked": self.asked,
                "network": self.network.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epochs_done": self.epochs_done,
                "best_loss": self.best_loss,
                "rows": self.rows,
            },
        )
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with (self.run / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)


def score(
    network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[TissueClass]
) -> tuple[Scores, list[float]]:
    """Return the scores of `network` on `samples` and each sample's segmentation loss (none for label-only ones)."""
    network.eval()
    scores = Scores(classes)
    losses = []
    for sample in samples:
        prediction = predict(network, sample.image)
        scores.add_labels(sample.labels, [bool(p >= LABEL_THRESHOLD) for p in prediction.label_probabilities])
        if sample.has_mask:
            scores.add_class_map(sample.class_map, prediction.class_map)
            losses.append(segmentation_loss(prediction, sample.class_map, IGNORE))
    return scores, losses
