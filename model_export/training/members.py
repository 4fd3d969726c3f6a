"""Several trainings for one network: they begin with the same weights, see other crops, and their weights are averaged.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time", ICML 2022 (the uniform soup). Networks that begin with other random weights have no mean
worth keeping: each numbers its channels in its own way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_export.checkpoint import save_checkpoint
from model_export.config import MAX_SEED, Recipe
from model_export.training.dataset import Sample
from model_export.training.loop import BEST_FILE, LAST_FILE

MEMBER_FOLDER = "member-"
"""A member's run folder is this and its number, from 1 on, in the run folder of the whole."""


def members_of(recipe: Recipe) -> list[Recipe]:
    """Return the recipe of each member: with one seed after the other, and the weights of the first to begin with."""
    first = recipe.seed if recipe.weights_seed is None else recipe.weights_seed
    return [
        recipe.model_copy(update={"members": 1, "weights_seed": first, "seed": (recipe.seed + index) % (MAX_SEED + 1)})
        for index in range(recipe.members)
    ]


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of weights and batch statistics, by name; of what only counts, such as batches, the first's.

    Args:
        states: State dictionaries of one kind of network, at least one. Sums are taken in float64.
    """
    return {
        name: torch.stack([state[name].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def keep_mean(run: Path, state: Mapping[str, Tensor], asked: Mapping[str, Any], held_out: Sequence[Sample]) -> None:
    """Keep the members' mean in the run folder, under the names of a single training's weights.

    It is of each member's last epoch, so nothing was chosen by what is held out: both files hold the same.
    """
    kept = {"model": dict(state), "asked": dict(asked), "held_out": [sample.name for sample in held_out]}
    save_checkpoint(run / BEST_FILE, kept)
    save_checkpoint(run / LAST_FILE, {**kept, "epochs_done": asked["recipe"]["epochs"]})
