"""Coded concepts as highdicom takes them, and the project's own codes for what no public scheme names.

Source: DICOM PS3.16, section 8, and PS3.3, section 8.2: a designator that begins with 99 is private.
"""

import hashlib
from typing import Any

from app.pathology.classes import Code, Coding, TissueClass
from app.pathology.manifest import ModelManifest

PRIVATE_SCHEME = "99TESSERA"
PIXEL_FRACTION = Code(value="PIXEL-FRACTION", scheme=PRIVATE_SCHEME, meaning="Fraction of the image's pixels")
AREA = Code(value="42798000", scheme="SCT", meaning="Area")
_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")


def coding_of(tissue: TissueClass) -> Coding:
    """Return what a class is; one whose maker gave no codes is a tissue of a private code, named as the class.

    The code's value is made of the name, so that it means the same in any model.
    """
    if tissue.coding is not None:
        return tissue.coding
    value = hashlib.sha256(tissue.name.encode()).hexdigest()[:16]
    return Coding(category=_TISSUE, type=Code(value=value, scheme=PRIVATE_SCHEME, meaning=tissue.name))


def concept(code: Code) -> Any:
    """Return `code` as highdicom's CodedConcept."""
    from highdicom.sr import CodedConcept  # noqa: PLC0415

    return CodedConcept(code.value, code.scheme, code.meaning)


def private_schemes(manifest: ModelManifest) -> list[Any] | None:
    """Return what says whose the project's codes are; None if no class of `manifest` needs one.

    Source: DICOM PS3.3, section C.12.1.1.4, Coding Scheme Identification.
    """
    return [private_scheme()] if any(tissue.coding is None for tissue in manifest.label_classes) else None


def private_scheme() -> Any:
    """Return what says whose the project's codes are."""
    from highdicom.coding_schemes import CodingSchemeIdentificationItem  # noqa: PLC0415

    return CodingSchemeIdentificationItem(
        PRIVATE_SCHEME, name="Classes and measurements of tessera", responsible_organization="tessera"
    )
