"""Training data drawn in a folder, tiny recipes and foreign networks, for the tests of the offline step."""

import importlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.pathology.arrays import ClassMap, RgbImage
from app.pathology.classes import NORMAL, STROMA, TUMOR, WSSS4LUAD, TissueClass
from app.pathology.geometry import Size
from model_export.config import Recipe
from model_export.synthetic import draw_patch
from model_export.training.augment import Batch
from model_export.training.dataset import IGNORE, Sample, labels_of
from model_export.training.losses import parts
from tests.pictures import png_of

TISSUES = ((TUMOR, STROMA), (NORMAL,), (STROMA, NORMAL), (TUMOR,))
"""What the drawn patches hold, in turn."""

TINY = {
    "seed": 3,
    "epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 2,
    "crop_px": 32,
    "learning_rate": 1e-3,
    "warmup": 0.25,
    "average_decay": 0.5,
}

TWO_CLASSES = (
    TissueClass(name="gland", letter="G", color=(200, 30, 90)),
    TissueClass(name="other", letter="O", color=(20, 20, 20), label=False),
)

FOREIGN_NETWORK = """
    import torch
    from torch import nn

    class Foreign(nn.Module):
        '''Two classes, logits at half the resolution, no label head: nothing of the project's.'''

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
            self.last = nn.Conv2d(8, 2, 3, padding=1)

        def forward(self, images):
            return {"out": self.last(torch.relu(self.first(images)))}

    class Branching(Foreign):
        '''Runs, and cannot be traced.'''

        def forward(self, images):
            return super().forward(images if images.mean() > 0 else -images)

    class Noisy(Foreign):
        '''Can be traced, and never says the same twice.'''

        def forward(self, images):
            return super().forward(images + torch.randn_like(images))

    class Choosy(Foreign):
        def forward(self, images):
            assert images.shape[-1] == 224, "made for 224 px\\nand for nothing else"
            return super().forward(images)

    def broken():
        raise ValueError("the first line\\nand the second")

    def number():
        return 7
"""


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate({**TINY, **changes})


def objective(outputs: dict[str, torch.Tensor], batch: Batch, asked: Recipe) -> torch.Tensor:
    """The whole loss, as the loop sums it up."""
    return torch.stack(list(parts(outputs, batch, asked).values())).sum()


def write_recipe(path: Path, **changes: Any) -> Path:
    lines = [
        f"{name} = {list(value) if isinstance(value, tuple) else value}" for name, value in {**TINY, **changes}.items()
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_mask(path: Path, class_map: ClassMap, colors: Sequence[tuple[int, int, int]] | None = None) -> None:
    """Write an indexed PNG as WSSS4LUAD's are: mode P, the classes' colours in the palette."""
    image = Image.fromarray(class_map).convert("L")
    mask = Image.frombytes("P", image.size, image.tobytes())
    mask.putpalette([channel for color in colors or [tissue.color for tissue in WSSS4LUAD] for channel in color])
    mask.save(path)


def write_pair(root: Path, name: str, image: RgbImage, class_map: ClassMap) -> None:
    for folder in ("img", "mask"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "img" / name)
    write_mask(root / "mask" / name, class_map)


def write_pairs(root: Path, count: int, side_px: int = 64) -> Path:
    for seed in range(count):
        write_pair(root, f"{seed:02}.png", *draw_patch(seed, Size(side_px, side_px), TISSUES[seed % len(TISSUES)]))
    return root


def write_patches(root: Path, *names: str, side_px: int = 48) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(draw_patch(seed, Size(side_px, side_px))[0]).save(root / name)
    return root


def write_huge_png(path: Path, side_px: int = 4096) -> None:
    """Write a valid PNG of a few bytes that promises more pixels than anyone should decode."""
    path.write_bytes(png_of((side_px, side_px), 8, 2, b"\0"))


def masked_sample(class_map: ClassMap, name: str = "drawn.png") -> Sample:
    """Return a sample whose pixels have exactly the colours of their classes; white where nothing is known."""
    table = np.full((IGNORE + 1, 3), 255, np.uint8)
    table[: len(WSSS4LUAD)] = [tissue.color for tissue in WSSS4LUAD]
    return Sample(name, table[class_map], class_map, labels_of(class_map, WSSS4LUAD))


def label_only_sample(labels: tuple[bool, ...], side_px: int = 48, name: str = "labelled.png") -> Sample:
    image, _ = draw_patch(0, Size(side_px, side_px))
    return Sample(name, image, np.full((side_px, side_px), IGNORE, np.uint8), labels)


def drawn_samples(count: int, side_px: int = 64) -> list[Sample]:
    samples = []
    for seed in range(count):
        image, class_map = draw_patch(seed, Size(side_px, side_px), TISSUES[seed % len(TISSUES)])
        samples.append(Sample(f"{seed:02}.png", image, class_map, labels_of(class_map, WSSS4LUAD)))
    return samples


def write_module(folder: Path, name: str, source: str = FOREIGN_NETWORK) -> Path:
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    importlib.invalidate_caches()
    return path


def hidden_files(folder: Path) -> list[Path]:
    """Return what temporary files and folders a failed write left in `folder`."""
    return sorted(folder.glob(".*"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: sums come in one order, and a busy machine is not waited for at each operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Silent:
    """Progress that nobody watches."""

    def bar(self, steps: Iterable[int], title: str) -> nullcontext[Iterable[int]]:
        return nullcontext(steps)

    def line(self, text: str) -> None:
        pass
