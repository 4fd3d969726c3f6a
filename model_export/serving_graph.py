"""The graph that is served: bytes of RGB in, class map, confidence and label probabilities out.

Normalisation is inside, so a server needs to know no mean; the outputs are what an answer is made of, so a batch of
224 px patches leaves the accelerator as 0.4 MB and not as 3.2 MB of logits. See `app/pathology/manifest.py`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.pathology.classes import TissueClass, label_indices
from model_export.channels import index_of_highest, planes, shares, total
from model_export.errors import InvalidCheckpoint, first_line

_LEAST_LABEL_BLOCK_PX = 32
"""The least side of the blocks of which a class has to fill one for a label; a few stray pixels fill none."""


def outputs_of(found: object) -> tuple[Tensor, Tensor | None]:
    """Return a network's logits and its labels' logits, None where it has none.

    Raises:
        InvalidCheckpoint: They are not such as `ServingGraph` takes.
    """
    logits, labels = (found.get("out"), found.get("labels")) if isinstance(found, Mapping) else (found, None)
    if not isinstance(logits, Tensor) or logits.ndim != 4:
        raise InvalidCheckpoint("the network must return logits (N, C, H, W), or a dictionary with them under out")
    if labels is not None and not isinstance(labels, Tensor):
        raise InvalidCheckpoint("what the network returns under labels must be logits (N, L)")
    return logits, labels


class ServingGraph(nn.Module):
    """Wraps a segmentation network.

    Args:
        network: Returns logits (N, C, h, w), or a dictionary with them under `out` (torchvision's convention) and,
            where it has a classification head, logits (N, L) under `labels`. h and w may be the input's sides
            divided by a whole number.
        classes: The C classes of the logits, in order.
        mean: Per-channel mean of RGB in 0 to 255.
        std: Per-channel standard deviation of RGB in 0 to 255.
        stride: Sides of an input are multiples of this, in px.
        temperature: What the logits are divided by before the softmax; it moves the confidence and no class.

    Raises:
        InvalidCheckpoint: A trial run shows that the network's outputs do not fit.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[TissueClass],
        mean: Sequence[float],
        std: Sequence[float],
        stride: int,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        # The exporter gives constants of the network's own such names as mean, which must not be taken.
        self.register_buffer("input_mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("input_std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))
        self.label_indices = list(label_indices(classes))
        self.block_px = stride
        self.label_block_px = -(-_LEAST_LABEL_BLOCK_PX // stride) * stride
        self.temperature = temperature
        self.scale = self._try_out(len(classes), stride * 2)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class map, confidence and label probabilities.

        Args:
            image: uint8 (N, H, W, 3) RGB; H and W multiples of the stride.

        Returns:
            uint8 (N, H, W) class indices, uint8 (N, H, W) confidence times 255, float32 (N, L) probabilities.
        """
        return self.answer(*self.logits_of(image))

    def logits_of(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return what the network itself says of `image`, uint8 (N, H, W, 3): logits, and its labels' or None."""
        return outputs_of(self.network((image.permute(0, 3, 1, 2).float() - self.input_mean) / self.input_std))

    def answer(self, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` does of the image that the network says this of."""
        if self.scale != 1:
            logits = functional.interpolate(
                logits, scale_factor=float(self.scale), mode="bilinear", align_corners=False
            )
        if self.temperature != 1:
            logits = logits / self.temperature
        channels = planes(logits)
        class_map = index_of_highest(channels).squeeze(1)
        confidence = 1 / total(shares(channels)).squeeze(1)  # the winner's own share is 1
        probabilities = self._labels_from(class_map) if labels is None else labels.sigmoid()
        return class_map, (confidence * 255).round().to(torch.uint8), probabilities

    def _labels_from(self, class_map: Tensor) -> Tensor:
        """Without a classification head: the largest share that each label class has of any block.

        A block that an image's border cuts off counts as a whole one, or a pixel in a corner might fill it; an image
        smaller than a block is one itself.
        """
        indices = torch.tensor(self.label_indices, device=class_map.device).view(1, -1, 1, 1)
        found = (class_map.unsqueeze(1) == indices).float()
        beyond = self.label_block_px - self.block_px
        if not beyond:
            return functional.avg_pool2d(found, self.block_px).amax(dim=(2, 3))
        planes_of_one = torch.cat([found, torch.ones_like(found[:, :1])], dim=1)
        padded = functional.pad(planes_of_one, (0, beyond, 0, beyond))
        share = functional.avg_pool2d(padded, self.label_block_px).amax(dim=(2, 3))
        return share[:, :-1] / share[:, -1:]  # by the largest part of the image that a block holds

    @torch.inference_mode()
    def _try_out(self, class_count: int, side: int) -> int:
        """Run once on a blank `side` px image; return by how much the logits are smaller than it."""
        self.network.eval()
        try:
            logits, labels = self.logits_of(torch.full((1, side, side, 3), 240, dtype=torch.uint8))
        except InvalidCheckpoint:
            raise
        except Exception as error:  # whatever a user's own network raises is that network's fault, said in one line
            raise InvalidCheckpoint(
                f"the network does not run on a {side}x{side} px image: {first_line(error)}; try a larger --stride;"
                " inputs are any multiples of it up to --window, so a network made for one size has to interpolate its"
                " learned positions"
            ) from error
        if logits.shape[1] != class_count:
            if logits.shape[1] == 1:
                raise InvalidCheckpoint(
                    f"the network has 1 class, the class list {class_count}: where the sigmoid of its logit z is a"
                    " class's probability, return torch.cat([z, 0 * z], dim=1), and list that class and the rest"
                )
            raise InvalidCheckpoint(f"the network has {logits.shape[1]} classes, the class list {class_count}")
        if labels is not None and tuple(labels.shape) != (1, len(self.label_indices)):
            raise InvalidCheckpoint(f"the label head returns {tuple(labels.shape)}, not (N, {len(self.label_indices)})")
        scale, rest = divmod(side, logits.shape[2])
        if rest or tuple(logits.shape[2:]) != (side // scale, side // scale):
            height, width = logits.shape[2:]
            raise InvalidCheckpoint(f"logits of {width}x{height} do not divide an input of {side}x{side} px evenly")
        return scale
