"""Which stains a slide's header names. What it does not name may be there all the same.

Source: DICOM PS3.3, section C.7.6.22 (Specimen), and PS3.16, templates TID 8001 and 8003.
"""

from collections.abc import Iterator

from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

_PROCESSING_TYPE = Code("111701", "DCM", "Processing type")
_STAINING = Code("127790008", "SCT", "Staining")
_USING_SUBSTANCE = Code("424361007", "SCT", "Using substance")
_HAEMATOXYLIN = Code("12710003", "SCT", "hematoxylin stain")
_OF_HE = (
    Code("104210008", "SCT", "Hematoxylin and eosin stain method"),
    Code("36879007", "SCT", "water soluble eosin stain"),
    Code("83600004", "SCT", "spirit soluble eosin stain"),
    Code("1346008", "SCT", "blue shade eosin stain"),
    Code("71957009", "SCT", "phloxin B stain"),
    Code("7434003", "SCT", "erythrosin B stain"),
    Code("5043000", "SCT", "erythrosin Y stain"),
)
"""PS3.16, CID 8130: H&E as a whole; CID 8112: eosin, and the pink dyes that take its place in some laboratories."""
_KNOWN = tuple(codes.cid8112.concepts.values())
"""The stains of PS3.16, CID 8112. Immunostains are not among them."""


def names_other_stains(header: Dataset) -> bool:
    """Return whether a slide's header codes a known stain, and none that makes H&E.

    Haematoxylin says nothing: it is the counterstain of nearly all others. Nor do codes that are not known, which may
    be a laboratory's own for H&E, nor those of H&E, which converters put where nobody knows better; the caller looks at
    the colours then.

    Args:
        header: Of an instance. What is malformed in it counts as not there.
    """
    stains = list(_stains(header))  # pydicom takes SRT's former codes for the same
    if any(stain in _OF_HE for stain in stains):
        return False
    return any(stain != _HAEMATOXYLIN and stain in _KNOWN for stain in stains)


def _stains(header: Dataset) -> Iterator[Code]:
    for specimen in _items(header, "SpecimenDescriptionSequence"):
        for step in _items(specimen, "SpecimenPreparationSequence"):
            stated = [
                (_code(item, "ConceptNameCodeSequence"), _code(item, "ConceptCodeSequence"))
                for item in _items(step, "SpecimenPreparationStepContentItemSequence")
            ]
            if (_PROCESSING_TYPE, _STAINING) in stated:
                yield from (value for name, value in stated if name == _USING_SUBSTANCE and value.value)


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    try:
        return [item for item in dataset.get(keyword) or () if isinstance(item, Dataset)]
    except (TypeError, ValueError):  # no sequence
        return []


def _code(item: Dataset, keyword: str) -> Code:
    """Return a coded value, an empty one for a text."""
    for found in _items(item, keyword):
        return Code(str(found.get("CodeValue") or ""), str(found.get("CodingSchemeDesignator") or ""), "")
    return Code("", "", "")
