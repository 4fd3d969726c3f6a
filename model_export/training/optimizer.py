"""The optimiser and the learning rate of each step."""

import math

from torch.optim import AdamW

from model_export.config import Recipe
from model_export.network import TissueNetwork


def optimizer_of(network: TissueNetwork, recipe: Recipe) -> AdamW:
    """Return AdamW over what is not frozen, in two groups, encoder and heads; `rate` is what each takes of the rate.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    encoder = [*network.stem.parameters(), *network.blocks.parameters()]
    known = {id(parameter) for parameter in encoder}
    heads = [parameter for parameter in network.parameters() if id(parameter) not in known]
    encoder = [parameter for parameter in encoder if parameter.requires_grad]
    groups = [{"params": encoder, "rate": recipe.encoder_rate}, {"params": heads, "rate": 1.0}]
    return AdamW(groups, weight_decay=recipe.weight_decay)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the heads' learning rate at `step`, from 0: it rises linearly, then falls along a cosine to zero.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts.
    """
    warmup = max(1, round(recipe.warmup * recipe.total_steps))
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, recipe.total_steps - warmup)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
