"""Random crops of random samples: flips, rotations, zoom, H&E stain jitter and brightness.

The batch of a step depends on the seed and the step alone, so a resumed training sees what an uninterrupted one does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from app.pathology.classes import TissueClass
from model_export.config import Recipe
from model_export.network import INPUT_MEAN, INPUT_STD
from model_export.training.dataset import IGNORE, Sample, labels_of

_RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB; Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001)."""
_HED_FROM_RGB = torch.linalg.inv(_RGB_FROM_HED)


@dataclass(frozen=True, slots=True)
class Batch:
    """Network input and truth.

    Attributes:
        images: float (N, 3, crop, crop), scaled as the network expects.
        class_maps: int64 (N, crop, crop) with `IGNORE` outside the image and where nothing is known.
        labels: float (N, L), 0 or 1.
    """

    images: Tensor
    class_maps: Tensor
    labels: Tensor


def sampling_weights(samples: Sequence[Sample], class_count: int, rarity: float) -> np.ndarray:
    """Return the probability of drawing each sample, (len(samples),) float64.

    With `rarity` 0 it is uniform; with 1 each class is drawn equally often through the samples that hold it.
    """
    holds = np.array([[(s.class_map == index).any() for index in range(class_count)] for s in samples], float)
    holds[[not s.has_mask for s in samples]] = 1.0 / class_count  # label-only patches: as if holding a bit of each
    by_class = holds / np.maximum(holds.sum(axis=0), 1.0)
    weights = by_class.sum(axis=1) ** rarity
    return np.asarray(weights / weights.sum())


class BatchSource:
    """Draws the batch of any step from `samples`."""

    def __init__(self, samples: Sequence[Sample], classes: Sequence[TissueClass], recipe: Recipe) -> None:
        self._samples = samples
        self._classes = classes
        self._recipe = recipe
        self._weights = sampling_weights(samples, len(classes), recipe.rarity)

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, counted from 0."""
        rng = np.random.default_rng([self._recipe.seed, step])
        chosen = rng.choice(len(self._samples), self._recipe.batch_size, p=self._weights)
        crops = [self._crop(self._samples[index], rng) for index in chosen]
        images = torch.stack([image for image, _, _ in crops])  # (N, 3, crop, crop) in 0 to 255
        images = jitter_stain(images, self._recipe.stain_sigma, rng)
        factor = 1 + rng.uniform(-1, 1, (len(crops), 1, 1, 1)) * self._recipe.brightness
        images = (images * torch.from_numpy(factor).float()).clamp_(0, 255)
        return Batch(
            normalise(images),
            torch.stack([class_map for _, class_map, _ in crops]),
            torch.tensor([labels for _, _, labels in crops], dtype=torch.float32),
        )

    def _crop(self, sample: Sample, rng: np.random.Generator) -> tuple[Tensor, Tensor, tuple[bool, ...]]:
        """Cut one rotated, zoomed and perhaps mirrored crop around a random point of the sample."""
        side = self._recipe.crop_px
        height, width = sample.class_map.shape
        zoom = math.exp(rng.uniform(math.log(self._recipe.scale[0]), math.log(self._recipe.scale[1])))
        angle = rng.uniform(0, 2 * math.pi)
        mirror = rng.choice([-1.0, 1.0])
        center_x, center_y = rng.uniform(-1, 1, 2) * [max(0.0, 1 - side / zoom / n) for n in (width, height)]
        cos, sin = math.cos(angle) * side / zoom, math.sin(angle) * side / zoom
        affine = torch.tensor(
            [
                [mirror * cos / width, -sin / width, center_x],
                [mirror * sin / height, cos / height, center_y],
            ],
            dtype=torch.float32,
        )
        grid = functional.affine_grid(affine[None], [1, 1, side, side], align_corners=False)
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].float()
        crop = functional.grid_sample(image, grid, "bilinear", "reflection", align_corners=False)[0]
        if not sample.has_mask:
            return crop, torch.full((side, side), IGNORE, dtype=torch.int64), sample.labels
        shifted = torch.from_numpy(sample.class_map)[None, None].float() + 1  # 0 is left for "outside the image"
        nearest = functional.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)[0, 0].long() - 1
        class_map = torch.where(nearest < 0, IGNORE, nearest)
        return crop, class_map, labels_of(class_map.numpy().astype(np.uint8), self._classes)


def jitter_stain(images: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Scale and shift each stain of each image at random, as a laboratory's protocol would.

    Source: Tellez et al., "Quantifying the effects of data augmentation and stain color normalization in
    convolutional neural networks for computational pathology", Medical Image Analysis 58 (2019).

    Args:
        images: float (N, 3, H, W), 0 to 255.
        sigma: Half range of the scale around 1 and of the shift around 0, in optical density.
        rng: Source of the choices.

    Returns:
        float (N, 3, H, W), 0 to 255.
    """
    scale = torch.from_numpy(rng.uniform(1 - sigma, 1 + sigma, (len(images), 1, 1, 3))).float()
    shift = torch.from_numpy(rng.uniform(-sigma, sigma, (len(images), 1, 1, 3))).float()
    density = -torch.log((images.permute(0, 2, 3, 1) + 1) / 256)  # (N, H, W, 3)
    stains = (density @ _HED_FROM_RGB) * scale + shift * density.mean(dim=(1, 2, 3), keepdim=True)
    rgb = torch.exp(-(stains @ _RGB_FROM_HED)) * 256 - 1
    return rgb.clamp_(0, 255).permute(0, 3, 1, 2)


def normalise(images: Tensor) -> Tensor:
    """Scale float (N, 3, H, W) images of 0 to 255 as the network expects."""
    mean = torch.tensor(INPUT_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(INPUT_STD).view(1, 3, 1, 1)
    return (images - mean) / std
