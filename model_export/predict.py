"""The PyTorch network on whole images, padded by reflection as the service pads."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from app.pathology.arrays import ClassMap, Probabilities, RgbImage
from app.pathology.geometry import Size
from app.pathology.tiling import pad_to_stride, plan_windows
from model_export.network import MARGIN_PX, STRIDE, WINDOW_PX
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
    padded = pad_to_stride(image, STRIDE)
    pixels = torch.tensor(padded).permute(2, 0, 1)[None].float()
    device = next((parameter.device for parameter in network.parameters()), pixels.device)
    outputs = network(normalise(pixels).to(device).contiguous(memory_format=torch.channels_last))
    return Prediction(outputs["out"][:, :, :height, :width].cpu(), outputs["labels"].cpu())


def labels_as_served(network: nn.Module, image: RgbImage, whole: Prediction) -> Probabilities:
    """Return the labels' probabilities as the service gives them: of several windows, the largest, (L,) float32.

    Args:
        network: As `predict` takes it.
        image: (H, W, 3) uint8.
        whole: What `predict` says of it, which is the answer where the image is one window.
    """
    windows = plan_windows(Size.of(image), WINDOW_PX, MARGIN_PX, STRIDE)
    if len(windows) == 1:
        return whole.label_probabilities
    found = [predict(network, image[window.read.slices]).label_probabilities for window in windows]
    largest: Probabilities = np.stack(found).max(axis=0)
    return largest


def segmentation_loss(prediction: Prediction, class_map: ClassMap, ignore: int) -> float:
    """Return the mean cross-entropy over the known pixels of (H, W) `class_map`."""
    target = torch.from_numpy(class_map)[None].long()
    return float(functional.cross_entropy(prediction.logits, target, ignore_index=ignore))
