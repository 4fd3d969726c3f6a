"""Where the numbers of a training go while it runs: CSV files always, TensorBoard or Weights & Biases if asked for."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO
from uuid import uuid4

from model_export.atomic import naming, write_text
from model_export.errors import InvalidData, Unavailable

METRICS_FILE, STEPS_FILE = "metrics.csv", "steps.csv"
TENSORBOARD_FOLDER, WANDB_FOLDER = "tensorboard", "wandb"

Kind = Literal["csv", "tensorboard", "wandb"]
Row = Mapping[str, Any]


class Logger(Protocol):
    """What a training tells. Steps are counted from 0 and epochs from 1."""

    def step(self, row: Row) -> None:
        """Note an optimiser step: `step`, `epoch`, `learning_rate`, `loss`, and what each term adds to the loss."""

    def epoch(self, rows: Sequence[Row], last_step: int) -> None:
        """Note an epoch that ended with `last_step`: a row for each phase, with `epoch`, `phase` and scores."""


@contextmanager
def opened(
    kind: Kind, run: Path, asked: Mapping[str, Any], rows: Sequence[Row], steps_done: int
) -> Iterator[list[Logger]]:
    """Open the loggers of a run folder, and close them at the end.

    Args:
        kind: What to keep beside the CSV files.
        run: The run folder.
        asked: What `recipe.json` holds.
        rows: The phases of the epochs that are done.
        steps_done: What was logged of later steps, before an interrupt, is dropped.

    Yields:
        The loggers.

    Raises:
        Unavailable: The package of `kind` is not installed.
    """
    require(kind)
    with ExitStack() as stack:
        loggers: list[Logger] = [stack.enter_context(closing(CsvLogger(run, rows, steps_done)))]
        if kind == "tensorboard":
            loggers.append(stack.enter_context(closing(TensorboardLogger(run, steps_done))))
        if kind == "wandb":
            loggers.append(stack.enter_context(closing(WandbLogger(run, asked, steps_done))))
        yield loggers


def require(kind: Kind) -> None:
    """Make sure that the package of `kind` is installed.

    Raises:
        Unavailable: It is not.
    """
    if kind != "csv" and find_spec(kind) is None:
        raise Unavailable(f"--logger {kind} needs the extra 'track': pip install -e '.[track]' in the project's folder")


class CsvLogger:
    """`metrics.csv`, replaced after each epoch, and `steps.csv`, which grows by a line a step."""

    def __init__(self, run: Path, rows: Sequence[Row], steps_done: int) -> None:
        self._metrics = run / METRICS_FILE
        self._rows = list(rows)
        if self._rows:
            write_text(self._metrics, _as_csv(self._rows))
        path = run / STEPS_FILE
        self._columns = _keep_steps(path, steps_done)
        self._steps: TextIO = path.open("a", encoding="utf-8", newline="", buffering=1)

    def step(self, row: Row) -> None:
        """Append a line."""
        writer = csv.DictWriter(self._steps, self._columns or list(row), lineterminator="\n")
        with naming(Path(self._steps.name)):
            if not self._columns:
                self._columns = list(row)
                writer.writeheader()
            writer.writerow(row)

    def epoch(self, rows: Sequence[Row], last_step: int) -> None:  # noqa: ARG002  the steps are on disk
        """Replace `metrics.csv`."""
        self._rows += rows
        write_text(self._metrics, _as_csv(self._rows))

    def close(self) -> None:
        """Close `steps.csv`."""
        with naming(Path(self._steps.name)):
            self._steps.close()


class TensorboardLogger:
    """Event files under `tensorboard/`; `tensorboard --logdir RUN` shows them."""

    def __init__(self, run: Path, steps_done: int) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run / TENSORBOARD_FOLDER), purge_step=steps_done)

    def step(self, row: Row) -> None:
        """Add the step's numbers under `step/`."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(f"step/{name}", value, row["step"])

    def epoch(self, rows: Sequence[Row], last_step: int) -> None:
        """Add each phase's numbers under its name, at the epoch's last step."""
        for row in rows:
            for name, value in _numbers(row).items():
                self._writer.add_scalar(f"{row['phase']}/{name}", value, last_step)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases under `wandb/`; `WANDB_MODE=offline` keeps it on this machine.

    A training that is resumed after an epoch goes on with the same run, whose id is kept in that folder, beside the
    last step and epoch that were sent: what an interrupted epoch sent is not sent again. Only the numbers and the
    recipe are handed over, nothing of the machine or the code.
    """

    def __init__(self, run: Path, asked: Mapping[str, Any], steps_done: int) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at the import: reports go to a third party
        wandb = import_module("wandb")
        folder = run / WANDB_FOLDER
        folder.mkdir(exist_ok=True)
        kept, self._note = folder / "id", folder / "sent.json"
        if not (kept.exists() and steps_done):
            self._note.unlink(missing_ok=True)  # of another training, or of a run whose id is gone
            write_text(kept, uuid4().hex)
        self._sent = _read_sent(self._note)
        self._run = wandb.init(
            project="tessera",
            name=run.name,
            dir=str(run),
            id=kept.read_text(encoding="utf-8"),
            resume="allow",
            config=dict(asked),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_meta=True),
        )
        self._run.define_metric("*", step_metric="trained_step")

    def step(self, row: Row) -> None:
        """Log the step's numbers under `step/`."""
        if row["step"] > self._sent["step"]:
            self._log("step", row, row["step"])
            self._keep("step", row["step"])

    def epoch(self, rows: Sequence[Row], last_step: int) -> None:
        """Log each phase's numbers under its name, at the epoch's last step."""
        epoch = rows[0]["epoch"]
        if epoch > self._sent["epoch"]:
            for row in rows:
                self._log(row["phase"], row, last_step)
            self._keep("epoch", epoch)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()

    def _log(self, group: str, row: Row, step: int) -> None:
        numbers = {f"{group}/{name}": value for name, value in _numbers(row).items()}
        self._run.log({**numbers, "trained_step": step})

    def _keep(self, what: str, number: int) -> None:
        self._sent[what] = number
        write_text(self._note, json.dumps(self._sent) + "\n", lasting=False)  # at every step


def _read_sent(path: Path) -> dict[str, int]:
    """Return the last `step` and `epoch` that were sent, each less than the first where none was.

    Raises:
        InvalidData: The file is damaged.
    """
    try:
        sent = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"step": -1, "epoch": 0}
        return {name: int(sent[name]) for name in ("step", "epoch")}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidData(f"{path}: not a step and an epoch; remove it to send all that follows") from error


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("step", "epoch", "phase")}


def _as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _keep_steps(path: Path, steps_done: int) -> list[str]:
    """Keep of `path` its header and a whole line for each step that is done; return its columns, none if it has none.

    Raises:
        InvalidData: It is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path}: damaged, it is not in UTF-8; remove it to go on") from error
    whole = [line for line in lines if line.endswith("\n")] if steps_done else []
    columns = whole[0].rstrip("\n").split(",") if whole else []
    if whole and "step" not in columns:
        raise InvalidData(f"{path}: damaged, it has no column step; remove it to go on")
    kept, missing = whole[:1], {str(step) for step in range(steps_done)}
    for line in whole[1:]:
        values = line.split(",")
        if len(values) == len(columns) and (step := values[columns.index("step")]) in missing:
            missing.remove(step)
            kept.append(line)
    if kept != lines:
        write_text(path, "".join(kept))
    return columns
