"""Random crops of random samples: flips, rotations, zoom, CutMix, H&E stain jitter, brightness and blur.

The batch of a step depends on the seed and the step alone, so a resumed training sees what an uninterrupted one does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from app.pathology.classes import TissueClass, label_indices
from model_export.config import Recipe, Source
from model_export.encoders import INPUT_MEAN, INPUT_STD
from model_export.errors import InvalidData
from model_export.training.dataset import IGNORE, LABEL_MIN_FRACTION, Sample

_RGB_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density of haematoxylin, eosin and DAB; Ruifrok and Johnston, Anal Quant Cytol Histol 23 (2001)."""
_HED_FROM_RGB = torch.linalg.inv(_RGB_FROM_HED)

MAX_BLUR_PX = 2.0
"""The widest Gaussian of the random blur."""
_BLUR_REACH = 5

_MAX_UNKNOWN = 0.02
"""A crop of which a larger share than this is unknown may hold any class."""

_LEAST_PART = 0.5
"""A crop that shows a smaller share of its image than this need not hold what the image's labels say."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Network input and truth.

    Attributes:
        images: float (N, 3, crop, crop), scaled as the network expects.
        class_maps: int64 (N, crop, crop) with `IGNORE` outside the image and where nothing is known.
        labels: float (N, L), 0 or 1, NaN where it is not known.
        inside: bool (N, crop, crop), where a crop shows its image and not the mirrored rim.
    """

    images: Tensor
    class_maps: Tensor
    labels: Tensor
    inside: Tensor


def sampling_weights(samples: Sequence[Sample], class_count: int, rarity: float) -> np.ndarray:
    """Return the probability of drawing each sample, (len(samples),) float64.

    With `rarity` 0 it is uniform; with 1 each class is drawn equally often through the samples that hold it. A
    sample of which no pixel's class can be told is drawn as often as the one of the others that is drawn least.
    """
    holds = np.array([[teaches(s, index) for index in range(class_count)] for s in samples], float)
    teaching = holds.any(axis=1)
    weights = np.ones(len(samples))
    if teaching.any():
        by_class = holds / np.maximum(holds.sum(axis=0), 1.0)
        weights = by_class.sum(axis=1) ** rarity
        weights[~teaching] = weights[teaching].min()
    return np.asarray(weights / weights.sum())


def teaches(sample: Sample, index: int) -> bool:
    """Whether `sample` teaches the class, by known pixels or by a label that its unknown ones answer for.

    A stray stroke of a label class teaches it as little as it makes a label.
    """
    is_label = index < len(sample.labels)
    least = LABEL_MIN_FRACTION * sample.class_map.size if is_label else 1
    labelled = is_label and index in sample.guesses and bool(sample.labels[index])
    return labelled or bool(np.count_nonzero(sample.class_map == index) >= max(1, least))


class BatchSource:
    """Draws the batch of any step.

    Args:
        sources: The samples of each source that `recipe.shares` names.
        classes: The classes of the class maps.
        recipe: How to draw.

    Raises:
        InvalidData: One of these sources has no samples.
    """

    def __init__(
        self, sources: Mapping[Source, Sequence[Sample]], classes: Sequence[TissueClass], recipe: Recipe
    ) -> None:
        for name in recipe.shares:
            if not sources[name]:
                raise InvalidData(f"the recipe draws from {name}, and there are no images of it to learn from")
        self._samples = [sample for name in recipe.shares for sample in sources[name]]
        self._classes = classes
        self._recipe = recipe
        self._weights = np.concatenate(
            [
                share * sampling_weights(sources[name], len(classes), recipe.rarity)
                for name, share in recipe.shares.items()
            ]
        )
        self._weights /= self._weights.sum()

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`, counted from 0."""
        recipe = self._recipe
        rng = np.random.default_rng([recipe.seed, step])
        chosen = rng.choice(len(self._samples), recipe.batch_size, p=self._weights)
        crops = [self._crop(self._samples[index], rng) for index in chosen]
        images = torch.stack([image for image, _, _, _ in crops])  # (N, 3, crop, crop) in 0 to 255
        class_maps = torch.stack([class_map for _, class_map, _, _ in crops])
        inside = torch.stack([shown for _, _, shown, _ in crops])
        labels = torch.tensor([known for _, _, _, known in crops], dtype=torch.float32)
        images = jitter_stain(images, recipe.stain_sigma, rng)
        factor = 1 + rng.uniform(-1, 1, (len(crops), 1, 1, 1)) * recipe.brightness
        images = (images * torch.from_numpy(factor).float()).clamp_(0, 255)
        for index in np.flatnonzero(rng.random(len(crops)) < recipe.blur):
            images[index] = blurred(images[index], rng.uniform(0.5, MAX_BLUR_PX))
        for index in np.flatnonzero(rng.random(len(crops)) < recipe.cutmix):
            other = (index + 1) % len(crops)
            if (class_maps[[index, other]] != IGNORE).any(dim=(1, 2)).all():
                where = self._rectangle(rng)
                for each in (images, class_maps, inside):
                    each[index][where] = each[other][where]
                absent = [0.0 if held == 0 else math.nan for held in (labels[index] + labels[other]).tolist()]
                labels[index] = torch.tensor(self._known_labels(class_maps[index], inside[index], absent))
        return Batch(normalise(images), class_maps, labels, inside)

    def _crop(self, sample: Sample, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, list[float]]:
        """Cut one rotated, zoomed and perhaps mirrored crop around a random point of the sample."""
        side = self._recipe.crop_px
        zoom = math.exp(rng.uniform(math.log(self._recipe.scale[0]), math.log(self._recipe.scale[1])))
        angle = rng.uniform(0, 2 * math.pi)
        mirror = rng.choice([-1.0, 1.0])
        size = np.array(sample.class_map.shape[::-1])
        within = (1 - 2 * self._recipe.overhang) * side / zoom  # of a crop that is not turned, in px
        center = (1 + rng.uniform(-1, 1, 2) * np.maximum(0.0, 1 - within / size)) / 2 * size  # x, y in px
        reach = side / zoom * math.sqrt(0.5) + 2
        left, top = np.maximum(0, np.floor(center - reach)).astype(int)
        right, bottom = np.minimum(size, np.ceil(center + reach)).astype(int)
        width, height = right - left, bottom - top
        center_x, center_y = 2 * (center - (left, top)) / (width, height) - 1
        cos, sin = math.cos(angle) * side / zoom, math.sin(angle) * side / zoom
        affine = torch.tensor(
            [
                [mirror * cos / width, -sin / width, center_x],
                [mirror * sin / height, cos / height, center_y],
            ],
            dtype=torch.float32,
        )
        grid = functional.affine_grid(affine[None], [1, 1, side, side], align_corners=False)
        image = torch.from_numpy(sample.image[top:bottom, left:right]).permute(2, 0, 1)[None].float()
        # Bicubic: what is shown to the network later was not resampled, and bilinear takes a fifth of its sharpness.
        crop = functional.grid_sample(image, grid, "bicubic", "reflection", align_corners=False)[0].clamp_(0, 255)
        shifted = torch.from_numpy(sample.class_map[top:bottom, left:right])[None, None].float() + 1
        nearest = functional.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)[0, 0].long() - 1
        inside = nearest >= 0
        class_map = torch.where(inside, nearest, IGNORE)
        part = int(inside.sum()) / zoom**2 / sample.class_map.size
        annotated = [
            math.nan if held is None or (held and part < _LEAST_PART) else float(held) for held in sample.labels
        ]
        return crop, class_map, inside, self._known_labels(class_map, inside, annotated)

    def _rectangle(self, rng: np.random.Generator) -> tuple[EllipsisType, slice, slice]:
        """Return which part of another crop is laid over a crop.

        Source: Yun et al., "CutMix", ICCV 2019, for segmentation: the class map is cut with the image.
        """
        side = self._recipe.crop_px
        width, height = (int(side * part) for part in rng.uniform(0.3, 0.7, 2))
        left, top = int(rng.integers(side - width + 1)), int(rng.integers(side - height + 1))
        return ..., slice(top, top + height), slice(left, left + width)

    def _known_labels(self, class_map: Tensor, inside: Tensor, annotated: Sequence[float]) -> list[float]:
        """Return each label of a crop: 1 or 0 as its pixels tell, and `annotated` where unknown ones may hide it.

        A class has to fill its part of all that the crop shows, not of the few pixels that may be known.
        """
        shown = int(inside.sum())
        least = max(1.0, LABEL_MIN_FRACTION * shown)
        held = [int((class_map == index).sum()) >= least for index in label_indices(self._classes)]
        unknown = int((inside & (class_map == IGNORE)).sum()) > _MAX_UNKNOWN * shown
        return [
            1.0 if label else otherwise if unknown else 0.0 for label, otherwise in zip(held, annotated, strict=True)
        ]


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Return float (3, H, W) `image` out of focus by a Gaussian of `sigma` px."""
    offsets = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = functional.pad(image[:, None], [_BLUR_REACH] * 4, mode="reflect")
    across = functional.conv2d(padded, kernel.view(1, 1, 1, -1))
    return functional.conv2d(across, kernel.view(1, 1, -1, 1))[:, 0]


def jitter_stain(images: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    """Scale and shift each stain of each image at random, as a laboratory's protocol would.

    Source: Tellez et al., "Quantifying the effects of data augmentation and stain color normalization in
    convolutional neural networks for computational pathology", Medical Image Analysis 58 (2019). Theirs shifts a stain
    by a fixed density; here the shift goes with the image's mean density, so that a pale image is not drowned by it.

    Args:
        images: float (N, 3, H, W), 0 to 255.
        sigma: Half range of the scale around 1, and of the shift around 0, a fraction of the mean optical density.
        rng: Source of the choices.

    Returns:
        float (N, 3, H, W), 0 to 255.
    """
    scale = torch.from_numpy(rng.uniform(1 - sigma, 1 + sigma, (len(images), 1, 1, 3))).float()
    shift = torch.from_numpy(rng.uniform(-sigma, sigma, (len(images), 1, 1, 3))).float()
    return change_stain(images, scale, shift)


def change_stain(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift the optical densities of haematoxylin, eosin and DAB.

    Args:
        images: float (N, 3, H, W), 0 to 255.
        scale: float (N, 1, 1, 3), factors.
        shift: float (N, 1, 1, 3), fractions of the image's mean optical density.

    Returns:
        float (N, 3, H, W), 0 to 255.
    """
    density = -torch.log((images.permute(0, 2, 3, 1) + 1) / 256)  # (N, H, W, 3)
    stains = (density @ _HED_FROM_RGB) * scale + shift * density.mean(dim=(1, 2, 3), keepdim=True)
    rgb = torch.exp(-(stains @ _RGB_FROM_HED)) * 256 - 1
    return rgb.clamp_(0, 255).permute(0, 3, 1, 2)


def normalise(images: Tensor) -> Tensor:
    """Scale float (N, 3, H, W) images of 0 to 255 as the network expects."""
    mean = torch.tensor(INPUT_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(INPUT_STD).view(1, 3, 1, 1)
    return (images - mean) / std
