"""Batch normalisation's statistics of averaged weights, which the average of other networks' statistics only resembles.

Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization", UAI 2018, section 3.2.
"""

from torch import nn
from torch.optim.swa_utils import update_bn

from model_export.config import Recipe
from model_export.training.augment import BatchSource


def take_statistics(network: nn.Module, source: BatchSource, recipe: Recipe) -> None:
    """Take the network's batch statistics anew from the batches that follow the training's last step.

    Args:
        network: In whichever mode, which it keeps.
        source: Of the batches.
        recipe: Says from how many; from none the network stays as it is.
    """
    if recipe.statistics_batches:
        steps = range(recipe.total_steps, recipe.total_steps + recipe.statistics_batches)
        update_bn((source.batch(step).images for step in steps), network, next(network.parameters()).device)
