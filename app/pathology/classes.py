"""The four tissue classes of WSSS4LUAD, in the index order of its masks. The only place that knows them.

Source: Han et al., "WSSS4LUAD: Grand Challenge on Weakly-supervised Tissue Semantic Segmentation for Lung
Adenocarcinoma", 2022 (arXiv:2204.06455). A model with classes of its own brings them in its manifest.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Byte = Annotated[int, Field(ge=0, le=255)]


class TissueClass(BaseModel):
    """One class of a class map.

    Attributes:
        name: English name, which goes into headers and metrics: letters, digits, space, ".", "_" and "-".
        letter: The class's letter in a patch's code; unique within a list.
        color: sRGB, 0 to 255 a channel.
        label: Whether a patch can carry the class as a label. False for background.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    letter: str = Field(pattern=r"^[A-Za-z0-9]{1,3}$")
    color: tuple[Byte, Byte, Byte]
    label: bool = True


TUMOR = TissueClass(name="tumor", letter="T", color=(0, 64, 128))
STROMA = TissueClass(name="stroma", letter="S", color=(64, 128, 0))
NORMAL = TissueClass(name="normal", letter="N", color=(243, 152, 0))
BACKGROUND = TissueClass(name="background", letter="B", color=(255, 255, 255), label=False)

WSSS4LUAD: tuple[TissueClass, ...] = (TUMOR, STROMA, NORMAL, BACKGROUND)


def label_indices(classes: Sequence[TissueClass]) -> tuple[int, ...]:
    """Return the class-map index of each class that a patch can carry as a label, in list order."""
    return tuple(index for index, tissue in enumerate(classes) if tissue.label)


def code(classes: Iterable[TissueClass]) -> str:
    """Return the letters of `classes` joined by "+", as in "T+S"; empty for no class."""
    return "+".join(tissue.letter for tissue in classes)
