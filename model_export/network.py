"""One network with two heads on a shared encoder: segmentation and multi-label classification.

Encoder: one of `encoders.py`. Segmentation decoder: a feature pyramid (Lin et al., "Feature Pyramid Networks
for Object Detection", CVPR 2017) read at stride 4 and, with `detail`, joined by the encoder's features at stride 2 and
by a small convolution of the image itself. Classification: class activation maps averaged over the tissue that the
other head finds (Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016).

No layer looks at the whole image except that last average, so a window's class map depends on its surroundings only
through the padding at its border, and windows can be stitched.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.pathology.classes import TissueClass, label_indices
from model_export.channels import planes, shares, total
from model_export.config import DEFAULT_ENCODER, EncoderName
from model_export.detail import BlockwiseDetail, Detail
from model_export.encoders import ENCODERS
from model_export.errors import InvalidData

STRIDE = 32
"""Sides of an input are multiples of this, in px."""

WINDOW_PX, MARGIN_PX = 1024, 128
"""Enough context that no seam shows; docs/decisions/0004-windows.md has the measurement."""

_CEILING = 10.0
"""Largest label logit, where there certainly is tissue."""

_FINE_CHANNELS = 32
"""Width of the decoder at stride 2."""

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class TissueNetwork(nn.Module):
    """An encoder with a segmentation and a multi-label head.

    Args:
        encoder: Name of the encoder.
        class_count: Number of classes in the class map.
        label_count: Number of classes a patch can carry as labels; they are the first of the class map's.
        channels: Width of the decoder.
        dropout: Probability of dropping a feature channel before each head.
        pretrained: Start the encoder from the ImageNet weights.
        detail: Read half and full resolution too, for clefts of two to four px between fibres and cells.
    """

    def __init__(
        self,
        encoder: EncoderName = DEFAULT_ENCODER,
        class_count: int = 4,
        label_count: int = 3,
        channels: int = 96,
        dropout: float = 0.2,
        pretrained: bool = True,
        detail: bool = True,
    ) -> None:
        super().__init__()
        self._encoder = ENCODERS[encoder]
        loaded = self._encoder.load(pretrained)
        self.stem = nn.Sequential(loaded._conv_stem, loaded._bn0, nn.ReLU6())
        self.blocks = loaded._blocks
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in self._encoder.tap_channels)
        self.refine = _separable(channels)
        if detail:
            self.reduce = nn.Conv2d(channels, _FINE_CHANNELS, 1)
            self.lateral_half = nn.Conv2d(self._encoder.half_channels, _FINE_CHANNELS, 1)
            self.refine_half = _separable(_FINE_CHANNELS)
        width = _FINE_CHANNELS if detail else channels
        self.segment = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(width, class_count, 1))
        self.detail: Detail | BlockwiseDetail | None = Detail(class_count) if detail else None
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(self._encoder.tap_channels[-1], label_count, 1))

        self._kept: tuple[nn.Module, ...] = ()

    def freeze(self, blocks: int, statistics: bool) -> None:
        """Keep the weights of the stem and the first `blocks` blocks, and all the encoder's batch statistics.

        Args:
            blocks: How many blocks; 0 freezes no weights, not even the stem's.
            statistics: Whether batch normalisation uses and keeps the statistics that the encoder came with.
        """
        frozen = [self.stem, *self.blocks[:blocks]] if blocks else []
        for module in frozen:
            module.requires_grad_(False)
        encoder = [self.stem, *self.blocks] if statistics else frozen
        self._kept = tuple(m for part in encoder for m in part.modules() if isinstance(m, _NORMS))

    def train(self, mode: bool = True) -> "TissueNetwork":
        """Set training or evaluation mode; frozen statistics stay as they are in both."""
        super().train(mode)
        for norm in self._kept:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of both heads.

        Args:
            images: float (N, 3, H, W), scaled by `INPUT_MEAN` and `INPUT_STD`; H and W multiples of `STRIDE`.

        Returns:
            `out`: float (N, class_count, H, W), segmentation logits; `labels`: float (N, label_count).
        """
        x = self.stem(images)
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._encoder.taps:
                taps.append(x)  # (N, tap_channels, H / 4 | 8 | 16 | 32, W / ...)
            elif index == self._encoder.half:
                half = x  # (N, half_channels, H / 2, W / 2)
        pyramid = self.lateral[-1](taps[-1])
        for lateral, tap in zip(reversed(self.lateral[:-1]), reversed(taps[:-1]), strict=True):
            pyramid = functional.interpolate(pyramid, scale_factor=2.0, mode="nearest") + lateral(tap)
        features, stride = self.refine(pyramid), 4  # (N, channels, H / 4, W / 4)
        if self.detail is not None:
            stride = 2
            features = functional.interpolate(self.reduce(features), scale_factor=2.0, mode="nearest")
            features = self.refine_half(features + self.lateral_half(half))  # (N, 32, H / 2, W / 2)
        logits = self.segment(features)  # (N, class_count, H / stride, W / stride)
        if self.detail is not None:
            out = self.detail(logits, images)
        else:
            out = functional.interpolate(logits, scale_factor=float(stride), mode="bilinear", align_corners=False)
        activation_maps = self.classify(taps[-1])  # (N, label_count, H / 32, W / 32)
        return {"out": out, "labels": _pool_over_tissue(activation_maps, logits, stride)}


def network_for(
    classes: Sequence[TissueClass],
    *,
    encoder: EncoderName = DEFAULT_ENCODER,
    dropout: float = 0.2,
    pretrained: bool = True,
    detail: bool = True,
) -> TissueNetwork:
    """Return the network that these classes need; the rest is as in `TissueNetwork`.

    Raises:
        InvalidData: A class that is a label comes after one that is none: network, loss and labels of a patch count on
            the label classes being the first.
    """
    labels = label_indices(classes)
    if labels != tuple(range(len(labels))):
        late = next(classes[index].name for position, index in enumerate(labels) if index != position)
        raise InvalidData(
            f"the project's own network has its label classes first: list {late} before those that are no labels, and"
            " train it so"
        )
    return TissueNetwork(encoder, len(classes), len(labels), dropout=dropout, pretrained=pretrained, detail=detail)


def blockwise(network: nn.Module) -> nn.Module:
    """Return a copy of `network` that computes its detail block by block; any other network as it is."""
    if not isinstance(network, TissueNetwork) or not isinstance(network.detail, Detail):
        return network
    copied = deepcopy(network)
    copied.detail = BlockwiseDetail(network.detail)
    return copied


def _separable(channels: int) -> nn.Sequential:
    """Return a depthwise-separable 3x3 convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def _pool_over_tissue(maps: Tensor, logits: Tensor, stride: int) -> Tensor:
    """Return label logits: the mean of each activation map over tissue, and never surer than tissue is there.

    Glass must not vote: averaged over all pixels, a patch of tissue in the corner of a slide was called normal, and
    so was a blank one. Where tissue is less than even a pixel has no weight at all: a hundredth of a vote each, of the
    glass of a whole slide, outvoted the tissue.

    The sums are products with ones, not `sum`: ONNX Runtime sums a reduction in blocks that start where the memory is
    aligned, so an image's last bit would depend on its place in the batch. One product makes all of them: a row by
    itself would take another kernel than the rows of a batch do.

    Args:
        maps: float (N, L, H / 32, W / 32), activation maps of the label classes.
        logits: float (N, C, H / stride, W / stride), segmentation logits; the first L classes are the label classes.
        stride: Of the logits, in px.

    Returns:
        float (N, L).
    """
    each = shares(planes(logits.detach()))
    tissue = total(each[: maps.shape[1]]) / total(each)  # (N, 1, H / stride, W / stride)
    weight = functional.avg_pool2d((2 * tissue - 1).relu(), STRIDE // stride).flatten(2)  # (N, 1, H / 32 * W / 32)
    ones = torch.ones_like(weight[:1]).transpose(1, 2)  # (1, H / 32 * W / 32, 1)
    sums = (torch.cat([maps.flatten(2) * weight, weight], dim=1) @ ones).squeeze(2)  # (N, L + 1)
    mean = sums[:, :-1] / (sums[:, -1:] + 1e-6)
    likeliest = functional.avg_pool2d(tissue, STRIDE // stride).flatten(2).amax(dim=2)  # (N, 1)
    ceiling = _CEILING * (2 * likeliest - 1)  # no label where the likeliest tissue is less than even
    return torch.minimum(mean, ceiling)
