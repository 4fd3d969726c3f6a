"""What learns: a network, its optimiser and the average of its weights, one step at a time.

Which step comes when is the loop's to say, and what is kept of it the run state's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from app.pathology.classes import TissueClass
from model_export.config import Recipe
from model_export.network import network_for
from model_export.training.augment import Batch
from model_export.training.hardware import Hardware
from model_export.training.losses import parts
from model_export.training.optimizer import optimizer_of


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout: the same after a resume, and another in each process.

    torch's generator for CPUs takes 32 bits of it.
    """
    first = seed * 1_000_003 + step
    return int(np.random.SeedSequence([first, rank]).generate_state(1)[0]) if rank else first


class Learner:
    """A network that learns, and what it learned.

    Args:
        classes: The classes of the class maps.
        recipe: How to learn; its seed decides the weights that do not come from ImageNet.
        hardware: What to compute on. Of several processes each makes a learner, and all learn the same.

    Attributes:
        network: What learns.
        averaged: The moving average of its weights, the one that is scored and kept.
        optimizer: AdamW, in the groups of `optimizer_of`.
    """

    def __init__(self, classes: Sequence[TissueClass], recipe: Recipe, hardware: Hardware) -> None:
        self._recipe = recipe
        self._hardware = hardware
        torch.manual_seed(recipe.seed)
        network = network_for(classes, encoder=recipe.encoder, dropout=recipe.dropout, detail=recipe.detail)
        network.to(hardware.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # no stub
        average = get_ema_multi_avg_fn(recipe.average_decay)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        if hardware.processes > 1 and hardware.device.type == "cuda":  # torch has it for GPUs alone
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            network = convert(network)  # type: ignore[no-untyped-call]
        network.freeze(recipe.frozen_blocks, recipe.frozen_statistics)
        self.network = network
        self._shared = hardware.shared(network)
        self.optimizer = optimizer_of(network, recipe)

    def learn(self, step: int, rate: float, batch: Batch) -> tuple[dict[str, float], NDArray[np.uint8]]:
        """Learn from one batch.

        Args:
            step: Which step of the training this is, from 0; it seeds the dropout.
            rate: The heads' learning rate.
            batch: On the CPU, the whole of it in each process.

        Returns:
            What each term added to the loss, and how the network called the pixels: uint8 (N, crop, crop).
        """
        hardware = self._hardware
        torch.manual_seed(dropout_seed(self._recipe.seed, step, hardware.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        images = hardware.part(batch.images).to(hardware.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(hardware.device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
            outputs = self._shared(images)
        outputs = {name: hardware.whole(output.float()) for name, output in outputs.items()}
        truth = Batch(*(getattr(batch, field.name).to(hardware.device) for field in fields(batch)))
        terms = parts(outputs, truth, self._recipe)
        self.optimizer.zero_grad()
        loss = torch.stack(list(terms.values())).sum()
        # A process has the gradients of its own crops; DistributedDataParallel takes their mean where the sum is meant.
        (loss * hardware.processes).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.averaged.update_parameters(self.network)
        called = outputs["out"].argmax(dim=1).byte().cpu().numpy()
        return {name: float(term.detach()) for name, term in terms.items()}, called

    @torch.inference_mode()
    def answers_with_numbers(self, batch: Batch) -> bool:
        """Whether the averaged weights, which the last step may have spoilt, do; they stay in evaluation mode.

        Args:
            batch: Its first image is what they are asked about.
        """
        self.averaged.eval()
        image = batch.images[:1].to(self._hardware.device)
        return all(bool(output.isfinite().all()) for output in self.averaged(image).values())

    def state_dict(self) -> dict[str, Any]:
        """Return all that learning goes on from: `network`, `averaged` and `optimizer`, in torch's own form."""
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; what else `state` holds is left alone.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: It is no such state, or another network's;
                torch says which.
        """
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
