"""Self-training: a first network labels the pixels that a source leaves unknown, where it is sure.

Source: Lee, "Pseudo-Label", ICML 2013 workshop; with an ignore class where in doubt, as in Zoph et al., "Rethinking
Pre-training and Self-training", NeurIPS 2020.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from app.pathology.arrays import Probabilities, RgbImage
from model_export.predict import predict
from model_export.training.dataset import IGNORE, Sample
from model_export.views import with_views


def fill_unknown(
    networks: Sequence[nn.Module], sample: Sample, confidence: float, scales: Sequence[float] = (1.0,)
) -> Sample:
    """Give unknown pixels of `sample` the class that `networks` together are sure of, if the source allows it.

    A class whose label the sample is known not to have is no candidate: the others share its probability.

    Args:
        networks: Networks in evaluation mode, with outputs as `TissueNetwork`'s.
        sample: Its `guesses` are the classes that an unknown pixel may be; its labels are of the first classes.
        confidence: The least probability, 0 to 1.
        scales: Zooms at which the networks see the image; their probabilities are averaged.
    """
    if not sample.guesses or not (sample.class_map == IGNORE).any():
        return sample
    views = [_probabilities(network, sample.image, scale) for network in networks for scale in scales]
    probability = np.mean(views, axis=0)  # (C, H, W)
    probability[[index for index, held in enumerate(sample.labels) if held is False]] = 0
    probability /= probability.sum(axis=0)
    likeliest = probability.argmax(axis=0).astype(np.uint8)
    sure = (probability.max(axis=0) >= confidence) & np.isin(likeliest, sample.guesses)
    return replace(sample, class_map=np.where((sample.class_map == IGNORE) & sure, likeliest, sample.class_map))


@torch.inference_mode()
def _probabilities(network: nn.Module, image: RgbImage, scale: float) -> Probabilities:
    """Return float32 (C, H, W) of the zoomed image, seen as it is, turned by 180 degrees and mirrored both ways."""
    height, width = image.shape[:2]
    zoomed = np.asarray(Image.fromarray(image).resize((round(width * scale), round(height * scale))))
    probability = predict(with_views(network, 4), zoomed).logits.softmax(dim=1)  # (1, C, zoomed H, W)
    resized = functional.interpolate(probability, (height, width), mode="bilinear", align_corners=False)
    return np.asarray(resized[0].numpy(), np.float32)
