"""The default network's full resolution: what a bilinear enlargement makes of its logits, and what the image adds.

There are two forms of it, which say the same. Training uses the plain one. What is served is computed for blocks of
2x2 px at once, as channels of half the resolution (Shi et al., "Real-Time Single Image and Video Super-Resolution Using
an Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016): ONNX Runtime computes channels on a CPU 8 or 16 at a
time, by what the CPU is, and fills up what is missing, so with four logits a pixel most of it was zeros. Measured in
docs/decisions/0013-precisions.md.
"""

from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

_CHANNELS = 8
_SIDE = 2
"""The side of a block, in px."""


class Detail(nn.ModuleList):
    """Logits at full resolution.

    Args:
        class_count: C, of the logits.
    """

    def __init__(self, class_count: int) -> None:
        super().__init__(
            (
                nn.Conv2d(3, _CHANNELS, 3, padding=1, bias=False),
                nn.BatchNorm2d(_CHANNELS),
                nn.ReLU(),
                nn.Conv2d(_CHANNELS, class_count, 1),
            )
        )

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return float (N, C, H, W).

        Args:
            logits: float (N, C, H / 2, W / 2).
            images: float (N, 3, H, W).
        """
        values = images
        for layer in self:
            values = layer(values)
        return functional.interpolate(logits, scale_factor=float(_SIDE), mode="bilinear", align_corners=False) + values


class BlockwiseDetail(nn.Module):
    """What a trained `detail` says, but for rounding, computed block by block.

    Of the channels of a block, those of one class lie together, its four pixels row by row.
    """

    def __init__(self, detail: Detail) -> None:
        super().__init__()
        layers = deepcopy(detail).eval()
        see = fuse_conv_bn_eval(cast("nn.Conv2d", layers[0]), cast("nn.BatchNorm2d", layers[1])).state_dict()
        judge = layers[3].state_dict()
        classes = len(judge["bias"])
        pixels = [(row, column) for row in range(_SIDE) for column in range(_SIDE)]
        seeing = torch.zeros(len(pixels) * _CHANNELS, 3, 4, 4)
        judging = torch.zeros(classes * len(pixels), len(pixels) * _CHANNELS, 1, 1)
        enlarging = torch.zeros(classes * len(pixels), classes, 3, 3)
        for pixel, (row, column) in enumerate(pixels):
            own, of_classes = slice(pixel * _CHANNELS, (pixel + 1) * _CHANNELS), slice(pixel, None, len(pixels))
            seeing[own, :, row : row + 3, column : column + 3] = see["weight"]
            judging[of_classes, own] = judge["weight"]
            enlarging[of_classes] = torch.eye(classes)[..., None, None] * _shares(row, column)
        self.see = _convolution(seeing, see["bias"].repeat(len(pixels)), stride=_SIDE, padding=1)
        self.judge = _convolution(judging, judge["bias"].repeat_interleave(len(pixels)))
        self.enlarge = _convolution(enlarging)

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return what `Detail` does."""
        with_border = functional.pad(logits, (1, 1, 1, 1), mode="replicate")
        blocks = self.enlarge(with_border) + self.judge(self.see(images).relu())  # (N, 4 * C, H / 2, W / 2)
        return _pixels_of(blocks)


def _pixels_of(blocks: Tensor) -> Tensor:
    """Return what `functional.pixel_shuffle` does, (N, 4 * C, h, w) to (N, C, 2 * h, 2 * w).

    ONNX Runtime's DepthToSpace goes from number to number, and took a twentieth of the whole graph. For transpositions
    that swap two neighbouring axes it has faster ways, and two of these do the same.
    """
    images, channels, height, width = blocks.shape
    together = blocks.reshape(-1, _SIDE * _SIDE, height * width).transpose(1, 2)  # (N * C, h * w, 4 of a block)
    rows = together.reshape(-1, width, _SIDE, _SIDE).transpose(1, 2)  # (N * C * h, 2 rows, w, 2 columns)
    return rows.reshape(images, channels // _SIDE**2, height * _SIDE, width * _SIDE)


def _convolution(weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    width, width_before, *side = weight.shape
    layer = nn.Conv2d(width_before, width, (side[0], side[1]), stride, padding, bias=bias is not None)
    layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return layer


def _shares(row: int, column: int) -> Tensor:
    """Return (3, 3): what a bilinear enlargement takes of each neighbour for this pixel of a block."""
    of_axis = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
    return torch.outer(of_axis[row], of_axis[column])
