"""Where a training runs: its device, and its place among the processes that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from model_export.errors import InvalidRecipe, Unavailable

_PATIENCE = timedelta(hours=2)
"""How long processes wait for the first one, which validates and labels alone."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a training computes on.

    Attributes:
        device: Where the network is trained.
        rank: This process, 0 to `processes` - 1; the first alone writes.
        processes: How many share each step's batch.
        workers: Processes that cut crops ahead for this one; 0 cuts them in between steps.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    processes: int = 1
    workers: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def require_shareable(self, batch_size: int, of: str = "") -> None:
        """Make sure that the processes can share a batch of this many crops evenly.

        Args:
            batch_size: The recipe's.
            of: The recipe's name, if a training has several, for the message.

        Raises:
            InvalidRecipe: They cannot.
        """
        if batch_size % self.processes or batch_size < 2 * self.processes:
            raise InvalidRecipe(
                f"{f'{of}: ' if of else ''}batch_size: {batch_size} crops cannot be shared by {self.processes}"
                " processes: each needs the same number, two or more"
            )

    def part(self, batch: Tensor) -> Tensor:
        """Return this process's part of a batch: every `processes`-th, from its rank on."""
        return batch[self.rank :: self.processes]

    def whole(self, part: Tensor) -> Tensor:
        """Return the batch that all parts make up, in its order; gradients flow to this process's part alone.

        Each process computes the loss of the whole batch, so what is learned does not depend on how many there are.
        """
        if self.processes == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.processes)]
        distributed.all_gather(parts, part.detach())
        parts[self.rank] = part
        return torch.stack(parts, dim=1).flatten(0, 1)

    def shared(self, network: nn.Module) -> nn.Module:
        """Return what to call in place of `network`, so that all processes learn the same."""
        if self.processes == 1:
            return network
        ours = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ours)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process through, and the others once it has left."""
        if self.processes > 1 and not self.first:
            distributed.barrier()
        yield
        if self.processes > 1 and self.first:
            distributed.barrier()


@contextmanager
def opened(device: str = "auto", workers: int = 0) -> Iterator[Hardware]:
    """Find the device, and join the other processes where torchrun started several.

    Args:
        device: "auto" (a GPU if torch sees one), "cpu" or "cuda".
        workers: As of `Hardware`.

    Raises:
        Unavailable: A GPU was asked for, and torch sees none for this process.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    cuda = device == "cuda" or (device == "auto" and count > 0)
    if cuda and local >= count:
        raise Unavailable(f"process {local} wants a GPU of its own and torch sees {count}: pass --device cpu")
    chosen = torch.device("cuda", local) if cuda else torch.device("cpu")
    if processes == 1:
        yield Hardware(chosen, workers=workers)
        return
    if cuda:
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield Hardware(chosen, rank, processes, workers)
    finally:
        distributed.destroy_process_group()
