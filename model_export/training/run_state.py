"""How far a training is, and what its run folder keeps of that.

A run folder holds `recipe.json` (what was asked for), `environment.json` (on what, and how long it took), `last.pth`
(everything a resumed training needs) and `best.pth` (the averaged weights of the best validation loss, or of the last
epoch where nothing is held out). `metrics.csv` and `steps.csv` beside them are the loggers'.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.pathology.classes import TissueClass
from model_export.checkpoint import read_checkpoint, save_checkpoint
from model_export.config import Recipe, Source
from model_export.errors import InvalidCheckpoint
from model_export.training.dataset import Sample
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
from model_export.training.learner import Learner

BEST_FILE, LAST_FILE = "best.pth", "last.pth"


class RunState:
    """The epochs that are done, and the files that keep them; of several processes the first alone writes and counts.

    Args:
        run: The run folder.
        classes: The classes of the class maps.
        recipe: What is asked for.
        training: Samples to learn from, by source.
        held_out: Samples to validate on after each epoch; may be empty.
        fold: Which fold `held_out` is, for the record.
        hardware: What is computed on, for the record.

    Attributes:
        run: The run folder.
        asked: What `recipe.json` says.
        data: A digest of all samples.
        phases: What each epoch goes through, in order.
        epochs_done: How many epochs are.
        best_loss: The least validation loss so far; minus their number where nothing is held out.
        rows: The phases of these epochs, each with `epoch`, `phase` and scores.
    """

    def __init__(
        self,
        run: Path,
        classes: Sequence[TissueClass],
        recipe: Recipe,
        training: Mapping[Source, Sequence[Sample]],
        held_out: Sequence[Sample],
        fold: Fold,
        hardware: Hardware,
    ) -> None:
        self.run = run
        self.asked = asked_of(recipe, fold)
        self.data = digest_of(training, held_out)
        self.phases = ("train", "validate") if held_out else ("train",)
        self.epochs_done = 0
        self.best_loss = math.inf
        self.rows: list[dict[str, Any]] = []
        self._epochs = recipe.epochs
        self._noted = {
            "asked": self.asked,
            "classes": [tissue.name for tissue in classes],
            "held_out": [sample.name for sample in held_out],
        }
        counts = {name: len(samples) for name, samples in training.items()}
        self._environment = {**describe(hardware), "images": counts, "held_out": len(held_out), "data": self.data}

    def resume(self, learner: Learner) -> bool:
        """Go on from the run folder's last epoch, with `learner` as it was then; return whether there was one.

        Raises:
            InvalidCheckpoint: The run was started with another recipe, fold or other images, or its checkpoint is
                damaged. More epochs are another recipe too: the learning rate's schedule spans all of them.
        """
        path = self.run / LAST_FILE
        if not path.exists():
            return False
        state = read_checkpoint(path).state
        if state.get("asked") != self.asked:
            raise InvalidCheckpoint(f"{path}: started with {difference(state.get('asked'), self.asked)}")
        if state.get("data") != self.data:
            raise InvalidCheckpoint(f"{path}: started with other images, or others held out; choose another run folder")
        try:
            learner.load_state_dict(state)
            self.epochs_done, self.best_loss, self.rows = state["epochs_done"], state["best_loss"], state["rows"]
            self._check_progress()
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f": {error}" if type(error) is ValueError else ""
            raise InvalidCheckpoint(f"{path}: not the state of a training{reason}") from error
        return True

    def _check_progress(self) -> None:
        """Make sure that what was resumed counts epochs of this recipe, with a row for each of their phases.

        Raises:
            ValueError: It does not.
        """
        if type(self.epochs_done) is not int or not 0 <= self.epochs_done <= self._epochs:
            raise ValueError(f"{self.epochs_done!r} of {self._epochs} epochs are done")
        wanted = [(epoch + 1, phase) for epoch in range(self.epochs_done) for phase in self.phases]
        if [(row["epoch"], row["phase"]) for row in self.rows] != wanted:
            raise ValueError(f"its rows are not of {self.epochs_done} epochs")
        if not all(isinstance(loss, float) for loss in (self.best_loss, *(row["loss"] for row in self.rows))):
            raise ValueError("a loss is no number")

    def start(self) -> None:
        """Note what is asked for in the run folder, which is made when missing, and count the time from now on.

        Raises:
            InvalidData: The folder is another training's, or its `environment.json` is damaged.
        """
        write_asked(self.run, self.asked)
        spent = read_environment(self.run).get("seconds", 0.0) if self.epochs_done else 0.0
        self._started = time.monotonic() - spent

    def keep(self, learner: Learner, rows: Sequence[dict[str, Any]]) -> None:
        """Count one more epoch and save where the training is, and the averaged weights when they are the best so far.

        Args:
            learner: What came of the epoch.
            rows: One for each of its phases.

        Raises:
            OSError: A file cannot be written.
        """
        self.rows += rows
        self.epochs_done += 1
        seconds = round(time.monotonic() - self._started, 1)
        write_environment(self.run, {**self._environment, "seconds": seconds})
        validated = rows[-1]["phase"] == "validate"  # else nothing is held out, and the last wins
        loss = rows[-1]["loss"] if validated else -float(self.epochs_done)
        if loss < self.best_loss:
            self.best_loss = loss
            weights = {"model": learner.averaged.module.state_dict(), "epoch": self.epochs_done, **self._noted}
            save_checkpoint(self.run / BEST_FILE, weights)
        save_checkpoint(
            self.run / LAST_FILE,
            {
                **self._noted,
                "data": self.data,
                **learner.state_dict(),
                "epochs_done": self.epochs_done,
                "best_loss": self.best_loss,
                "rows": self.rows,
            },
        )
