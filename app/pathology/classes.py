"""The four tissue classes of WSSS4LUAD, in the index order of its masks. The only place that knows them.

Source: Han et al., "WSSS4LUAD: Grand Challenge on Weakly-supervised Tissue Semantic Segmentation for Lung
Adenocarcinoma", 2022 (arXiv:2204.06455). A model with classes of its own brings them in its manifest.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Byte = Annotated[int, Field(ge=0, le=255)]


class Code(BaseModel):
    """A coded concept (DICOM PS3.3, section 8.8).

    Attributes:
        value: Code Value, as in "108369006".
        scheme: Coding Scheme Designator: SCT for SNOMED CT, DCM for DICOM; one that begins with 99 is private.
        meaning: Code Meaning, in English.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: str = Field(pattern=r"^[A-Za-z0-9.-]{1,16}$")
    scheme: str = Field(pattern=r"^[A-Za-z0-9_]{1,16}$")
    meaning: str = Field(min_length=1, max_length=64)


class Coding(BaseModel):
    """What a class is, in the words of DICOM's Segment Description (PS3.3, section C.8.20.4).

    Attributes:
        category: Segmented Property Category.
        type: Segmented Property Type.
        modifier: Segmented Property Type Modifier, or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: Code
    type: Code
    modifier: Code | None = None


class TissueClass(BaseModel):
    """One class of a class map.

    Attributes:
        name: English name, which goes into headers and metrics: letters, digits, space, ".", "_" and "-".
        letter: The class's letter in a patch's code; unique within a list.
        color: sRGB, 0 to 255 a channel.
        label: Whether a patch can carry the class as a label. False for background.
        definition: What belongs to it, in one sentence for a pathologist, or None where a model's maker gave none.
        coding: The class as coded concepts, or None likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")
    letter: str = Field(pattern=r"^[A-Za-z0-9]{1,3}$")
    color: tuple[Byte, Byte, Byte]
    label: bool = True
    definition: str | None = Field(default=None, min_length=1, max_length=200)
    coding: Coding | None = None

    @property
    def hex_color(self) -> str:
        """Its colour as in "#f39800"."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)


def _snomed(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="SCT", meaning=meaning)


TUMOR = TissueClass(
    name="tumor",
    letter="T",
    color=(0, 64, 128),
    definition="Tumor epithelium: the cells of the adenocarcinoma.",
    coding=Coding(
        category=_snomed("49755003", "Morphologically Abnormal Structure"), type=_snomed("108369006", "Neoplasm")
    ),
)
STROMA = TissueClass(
    name="stroma",
    letter="S",
    color=(64, 128, 0),
    definition="Tumor-associated stroma: connective tissue within and around the tumor.",
    coding=Coding(category=_snomed("85756007", "Tissue"), type=_snomed("21793004", "Connective tissue")),
)
NORMAL = TissueClass(
    name="normal",
    letter="N",
    color=(243, 152, 0),
    definition="Normal tissue: lung beside the tumor.",
    coding=Coding(
        category=_snomed("91723000", "Anatomical Structure"),
        type=_snomed("39607008", "Lung"),
        modifier=_snomed("17621005", "Normal"),
    ),
)
BACKGROUND = TissueClass(
    name="background",
    letter="B",
    color=(255, 255, 255),
    label=False,
    definition="No tissue: glass, and clefts and spaces without cells.",
)

WSSS4LUAD: tuple[TissueClass, ...] = (TUMOR, STROMA, NORMAL, BACKGROUND)


def label_indices(classes: Sequence[TissueClass]) -> tuple[int, ...]:
    """Return the class-map index of each class that a patch can carry as a label, in list order."""
    return tuple(index for index, tissue in enumerate(classes) if tissue.label)


def code(classes: Iterable[TissueClass]) -> str:
    """Return the letters of `classes` joined by "+", as in "T+S"; empty for no class."""
    return "+".join(tissue.letter for tissue in classes)
