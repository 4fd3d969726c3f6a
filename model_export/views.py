"""One network that looks at an image in several orientations, and averages what it says.

Tissue has no up, down, left or right, and a network is trained on crops turned every way; yet it says something a
little different of each. Their mean is right more often (Krizhevsky, Sutskever & Hinton, "ImageNet Classification with
Deep Convolutional Neural Networks", NIPS 2012, section 4.1). It is inside the graph, so that a server need not know of
it. Measured in docs/decisions/0019-views.md.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from app.pathology.manifest import Views
from model_export.channels import total
from model_export.serving_graph import outputs_of

_ROWS, _COLUMNS = 2, 3
_FLIPS: tuple[tuple[int, ...], ...] = ((), (_ROWS, _COLUMNS), (_COLUMNS,), (_ROWS,))


class AveragedViews(nn.Module):
    """A network whose logits are the mean of those that `network` gives for each view.

    Args:
        network: As `ServingGraph` takes it.
        views: How many, of those that `Views` names.
    """

    def __init__(self, network: nn.Module, views: Views) -> None:
        super().__init__()
        self.network = network
        flips = _FLIPS[:views]
        self.views = [(transposed, axes) for transposed in (False, True)[: views // len(flips)] for axes in flips]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `out`, float (N, C, h, w), and `labels`, float (N, L), where the network has them.

        Args:
            images: float (N, 3, H, W).

        Raises:
            InvalidCheckpoint: The network's outputs are not such as `ServingGraph` takes.
        """
        maps, labels = [], []
        for transposed, axes in self.views:
            logits, of_labels = outputs_of(self.network(_turned(images.flip(axes) if axes else images, transposed)))
            maps.append(_turned(logits, transposed).flip(axes) if axes else _turned(logits, transposed))
            if of_labels is not None:
                labels.append(of_labels)
        return {"out": _mean(maps)} | ({"labels": _mean(labels)} if labels else {})


def with_views(network: nn.Module, views: Views) -> nn.Module:
    """Return `network` as it answers when it looks this often; once, as it is."""
    return AveragedViews(network, views) if views > 1 else network


def _turned(images: Tensor, transposed: bool) -> Tensor:
    return images.transpose(_ROWS, _COLUMNS) if transposed else images


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return total(tensors) / len(tensors)
