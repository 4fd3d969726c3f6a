"""The PyTorch network on whole images, padded by reflection as the service pads."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.pathology.arrays import ClassMap, Probabilities, RgbImage
from model_export.network import STRIDE
from model_export.training.augment import normalise


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the network says of one image, in the CPU's memory.

    Attributes:
        logits: float (1, C, H, W), cropped to the image.
        label_logits: float (1, L).
    """

    logits: Tensor
    label_logits: Tensor

    @property
    def class_map(self) -> ClassMap:
        """(H, W) uint8."""
        return self.logits.argmax(dim=1)[0].to(torch.uint8).numpy()

    @property
    def label_probabilities(self) -> Probabilities:
        """(L,) float32."""
        return self.label_logits.sigmoid()[0].numpy().astype(np.float32)


@torch.inference_mode()
def predict(network: nn.Module, image: RgbImage) -> Prediction:
    """Run `network`, in evaluation mode and where its weights lie, on one (H, W, 3) uint8 image of any size."""
    height, width = image.shape[:2]
    bottom, right = -height % STRIDE, -width % STRIDE
    padded = np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="reflect")
    pixels = torch.from_numpy(padded).permute(2, 0, 1)[None].float()
    device = next((parameter.device for parameter in network.parameters()), pixels.device)
    outputs = network(normalise(pixels).to(device).contiguous(memory_format=torch.channels_last))
    return Prediction(outputs["out"][:, :, :height, :width].cpu(), outputs["labels"].cpu())


def segmentation_loss(prediction: Prediction, class_map: ClassMap, ignore: int) -> float:
    """Return the mean cross-entropy over the known pixels of (H, W) `class_map`."""
    target = torch.from_numpy(class_map)[None].long()
    return float(functional.cross_entropy(prediction.logits, target, ignore_index=ignore))
