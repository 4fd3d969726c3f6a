"""Which images a checkpoint's training never saw: the only ones that it is scored on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from app.pathology.classes import TissueClass
from app.pathology.manifest import Views
from model_export.checkpoint import Checkpoint, read_checkpoint
from model_export.errors import InvalidCheckpoint, InvalidData, InvalidRecipe
from model_export.factory import load_network
from model_export.training.dataset import Sample
from model_export.training.environment import differing
from model_export.training.folds import FOLD_FOLDER, Fold
from model_export.training.run_state import LAST_FILE
from model_export.views import with_views

_TRAIN_ANEW = "move that folder away, and the same cross-validate command as before trains the fold"


def checkpoints_of(run: Path) -> list[Checkpoint]:
    """Return the last checkpoint of each fold of a cross-validation, in order.

    Raises:
        InvalidCheckpoint: One does not load, or does not note its fold and its epochs.
        InvalidData: `run` is no cross-validation's run folder, or a fold is missing, not finished, or of another
            cross-validation.
    """
    first = run / f"{FOLD_FOLDER}1" / LAST_FILE
    if not first.is_file():
        raise InvalidData(f"{run}: holds no {FOLD_FOLDER}1/{LAST_FILE}; the run folder of a cross-validation is needed")
    found = [read_checkpoint(first)]
    fold, recipe = _finished(found[0])
    if fold.index or not fold.count:
        raise InvalidData(f"{first}: of fold {fold}, where 1/{fold.count or 'N'} should be; {_TRAIN_ANEW}")
    for index in range(1, fold.count):
        path = run / f"{FOLD_FOLDER}{index + 1}" / LAST_FILE
        if not path.is_file():
            raise InvalidData(f"{path}: missing; the same cross-validate command as before goes on with it")
        found.append(read_checkpoint(path))
        other, its_recipe = _finished(found[-1])
        if other != (wanted := Fold(index, fold.count)):
            raise InvalidData(f"{path}: of fold {other}, where {wanted} should be; {_TRAIN_ANEW}")
        if name := differing(recipe, its_recipe):
            raise InvalidData(
                f"{path}: of a recipe with {name} {its_recipe.get(name)}, where {recipe.get(name)} should be"
                f" as in {FOLD_FOLDER}1; {_TRAIN_ANEW}"
            )
    return found


def _finished(checkpoint: Checkpoint) -> tuple[Fold, Mapping[str, Any]]:
    """Return which fold a finished checkpoint is of, and of which recipe; refuse one with epochs left."""
    path, state = checkpoint.path, checkpoint.state
    try:
        fold, recipe = Fold.parse(state["asked"]["fold"]), dict(state["asked"]["recipe"])
        done, wanted = int(state["epochs_done"]), int(recipe["epochs"])
    except (KeyError, TypeError, ValueError, AttributeError, InvalidRecipe) as error:
        raise InvalidCheckpoint(f"{path}: does not note its fold and its epochs") from error
    if done < wanted:
        raise InvalidData(
            f"{path}: fold {fold} has {done} of {wanted} epochs; the same cross-validate command as before goes on"
        )
    return fold, recipe


def held_out_by(
    checkpoints: Sequence[Checkpoint], pairs: Sequence[Sample], classes: Sequence[TissueClass], views: Views = 1
) -> list[tuple[nn.Module, list[Sample]]]:
    """Return each checkpoint's network, which looks in so many views, with the pairs that its training held out.

    Raises:
        InvalidCheckpoint: One does not fit the network, or what it notes as held out are no names.
        InvalidData: One notes nothing that it held out, or a pair that is not there.
    """
    networks = []
    for checkpoint in checkpoints:
        held_out = held_out_of(checkpoint, pairs)
        if not held_out:
            raise InvalidData(
                f"{checkpoint.path}: its training held nothing out, or it does not note what: nothing honest to score"
                " it on"
            )
        networks.append((with_views(load_network(checkpoint, classes), views), held_out))
    return networks


def held_out_of(
    checkpoint: Checkpoint, pairs: Sequence[Sample], *, all_there: bool = True, or_else: str = ""
) -> list[Sample]:
    """Return those of `pairs` that the checkpoint's training held out, by name; none where it notes none.

    Args:
        checkpoint: The weights.
        pairs: What may be scored.
        all_there: Whether the pairs must hold all that it notes.
        or_else: What else the command offers where they do not, to end the message with.

    Raises:
        InvalidCheckpoint: What it notes are no names.
        InvalidData: The pairs lack one that it names.
    """
    names = notes_held_out(checkpoint)
    by_name = {sample.name: sample for sample in pairs}
    for name in names:
        if all_there and name not in by_name:
            raise InvalidData(
                f"{checkpoint.path}: its training held out {name}, which the pairs lack; pass those that it was trained"
                f" on{or_else}"
            )
    return [by_name[name] for name in names if name in by_name]


def recipe_noted(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the recipe that a checkpoint of the project's own training notes; nothing where it notes none."""
    asked = checkpoint.state.get("asked")
    recipe = asked.get("recipe") if isinstance(asked, dict) else None
    return recipe if isinstance(recipe, dict) else {}


def epoch_noted(checkpoint: Checkpoint) -> int | None:
    """Return how many epochs the weights of a checkpoint were trained for, None where it does not note that."""
    state = checkpoint.state
    epoch = state.get("epochs_done", state.get("epoch"))  # of a `last.pth`, and of a `best.pth`
    return epoch if isinstance(epoch, int) else None


def notes_held_out(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the images that the checkpoint's training held out, as it notes them.

    Raises:
        InvalidCheckpoint: What it notes are no names.
    """
    names = checkpoint.state.get("held_out", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidCheckpoint(f"{checkpoint.path}: held_out is not a list of names")
    return names


def chosen_by_score(checkpoint: Checkpoint) -> list[str]:
    """Return a line that says so where the checkpoint's epoch was chosen on what its training held out."""
    state = checkpoint.state
    if not ("epoch" in state and state.get("held_out")):  # a `last.pth` was not chosen, and counts `epochs_done`
        return []
    return [
        f"note: {checkpoint.path.name} is of the epoch with the least loss on these images, which flatters its scores;"
        f" {LAST_FILE} was not chosen by them"
    ]
