"""What a graph says of a pixel's few channels, plane by plane.

A softmax, a maximum or an argmax over the channels of (N, C, H, W) walks through memory in steps of a plane, and ONNX
Runtime takes a tenth of the whole graph's time on a CPU for them. Over C separate planes the same is elementwise, which
it does as fast as memory comes. A sum is also made in one order then, wherever the memory starts, which a reduction's
may not be: an image's last bit must not depend on its place in a batch.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def planes(values: Tensor) -> list[Tensor]:
    """Return the C channels of (N, C, H, W), each (N, 1, H, W)."""
    return list(torch.split(values, 1, dim=1))


def highest(channels: Sequence[Tensor]) -> Tensor:
    """Return the largest of all channels."""
    return reduce(torch.maximum, channels)


def total(channels: Sequence[Tensor]) -> Tensor:
    """Return their sum, one added after the other."""
    return reduce(torch.add, channels)


def shares(logits: Sequence[Tensor]) -> list[Tensor]:
    """Return exp(logit - highest) of each channel: the softmax but for its division by their total."""
    top = highest(logits)
    return [(logit - top).exp() for logit in logits]


def index_of_highest(channels: Sequence[Tensor]) -> Tensor:
    """Return the index of the largest channel, the first where several are, uint8 and of a channel's shape."""
    top = highest(channels)
    found = torch.full_like(top, len(channels) - 1, dtype=torch.uint8)
    for index in reversed(range(len(channels) - 1)):
        found = torch.where(channels[index] == top, torch.tensor(index, dtype=torch.uint8, device=top.device), found)
    return found
